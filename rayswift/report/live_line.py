"""The newest metrics of a run -> what stands beside its progress bar; its newest completions -> a line; pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from rayswift.report.charts import show
from rayswift.report.curves import Curve

_PARTS = (
    ("loss", "loss {}", ""),
    ("reward", "reward {}", ""),
    ("teacher_kl", "KL to the teacher {}", ""),
    ("completions/mean_length", "{} tokens each", ""),
    ("rollout_tokens_per_s", "{} tokens/s", ""),
    ("engines", "{} engine(s)", ""),
    ("staleness", "{} version(s) behind", ""),
)
_WORTH_TELLING = 0.1
_EXCERPT_CHARS = 160


def live_line(curves: dict[str, Curve]) -> str:
    """Loss; of a run that samples, reward, throughput, engines, staleness, and who waits for whom."""
    told = [text.format(show(last, unit)) for name, text, unit in _PARTS if (last := _last(curves, name)) is not None]
    if "reward" in curves:
        waits = [("trainer waits", _last(curves, "data_wait")), ("engines wait", _last(curves, "engines_idle"))]
        told += [f"{who} {show(share, '%')}" for who, share in waits if share and share > _WORTH_TELLING]
    return "  ".join(told)


def completions_line(rows: Sequence[Mapping[str, Any]]) -> str:
    """The best- and the worst-rewarded completion of a round, so that one sees what is paid for.

    Args:
        rows: Of `rollout.completions`, of one round, the best first; at least one.
    """
    best, worst = rows[0], rows[-1]
    if not any(name.startswith("reward_") for name in best):
        return f"round {best['round']:,}: {_excerpt(best['completion'])}"
    told = [f"reward {show(row['reward'])} for {_excerpt(row['completion'])}" for row in (best, worst)]
    if best["reward"] == worst["reward"]:
        return f"round {best['round']:,}: every {told[0].replace(' for ', ', as for ', 1)}"
    return f"round {best['round']:,}: {told[0]}, {told[1]}"


def _excerpt(text: str) -> str:
    """In one line, with the ends of a long text: answers stand at the end."""
    half = _EXCERPT_CHARS // 2
    return repr(text if len(text) <= _EXCERPT_CHARS else f"{text[:half]} [...] {text[-half:]}")


def _last(curves: dict[str, Curve], name: str) -> float | None:
    return curves[name].last if name in curves else None
