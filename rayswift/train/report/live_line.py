"""The newest metrics of a run -> what stands beside its progress bar; pure."""

from rayswift.train.report.charts import show
from rayswift.train.report.curves import Curve

_PARTS = (
    ("loss", "loss {}", ""),
    ("reward", "reward {}", ""),
    ("completions/mean_length", "{} tokens each", ""),
    ("rollout_tokens_per_s", "{} tokens/s", ""),
    ("engines", "{} engine(s)", ""),
    ("staleness", "{} version(s) behind", ""),
)
_WORTH_TELLING = 0.1


def live_line(curves: dict[str, Curve]) -> str:
    """Loss; of a run that samples, reward, throughput, engines, staleness, and who waits for whom."""
    told = [text.format(show(last, unit)) for name, text, unit in _PARTS if (last := _last(curves, name)) is not None]
    if "reward" in curves:
        waits = [("trainer waits", _last(curves, "data_wait")), ("engines wait", _last(curves, "engines_idle"))]
        told += [f"{who} {show(share, '%')}" for who, share in waits if share and share > _WORTH_TELLING]
    return "  ".join(told)


def _last(curves: dict[str, Curve], name: str) -> float | None:
    return curves[name].last if name in curves else None
