"""The state of a run -> one HTML page without external resources, from the template `page.html`; pure."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from rayswift.config.load import to_yaml
from rayswift.config.schema import TrainingConfig
from rayswift.data.sources import parse_source
from rayswift.report.advice import advise, verdict
from rayswift.report.charts import Chart, draw, show
from rayswift.report.curves import Curve
from rayswift.run.events import Event, State, starts

CHARTS = (
    Chart("Reward", {"training": "reward", "evaluation": "eval_reward"}),
    Chart(
        "Tokens of a completion",
        {"training": "completions/mean_length", "evaluation": "eval_completion_length"},
        from_zero=True,
    ),
    Chart("Loss", {"training": "loss", "evaluation": "eval_loss"}),
    Chart(
        "Token accuracy", {"training": "mean_token_accuracy", "evaluation": "eval_mean_token_accuracy"}, "%", cap=1.0
    ),
    Chart("Learning rate", {"now": "learning_rate"}, from_zero=True),
    Chart(
        "Gradient norm", {"before clipping": "grad_norm", "of the critic": "critic/grad_norm"}, from_zero=True, log=True
    ),
    Chart("Returns that the critic foresees", {"share of the variance": "critic/vf_explained_var"}, "%", cap=1.0),
    Chart("Tokens per second", {"all": "tokens_per_s", "trained": "trained_tokens_per_s"}, from_zero=True),
    Chart("Step time", {"of one step": "step_s"}, "s", from_zero=True),
    Chart("Waiting for the next batch", {"share of the time": "data_wait"}, "%", from_zero=True, cap=1.0),
    Chart("Engines without work", {"share of the time": "engines_idle"}, "%", from_zero=True, cap=1.0),
    Chart("Tokens per second of the engines", {"all together": "rollout_tokens_per_s"}, from_zero=True),
    Chart("Turns of a completion", {"turns": "num_turns"}, from_zero=True),
    Chart(
        "Calls of tools",
        {"a completion": "tools/call_frequency", "failed, as a share": "tools/failure_frequency"},
        from_zero=True,
    ),
    Chart("Completions cut off at their longest", {"share": "completions/clipped_ratio"}, "%", from_zero=True, cap=1.0),
    Chart("Groups of equal rewards", {"share": "frac_reward_zero_std"}, "%", from_zero=True, cap=1.0),
    Chart("KL to the teacher", {"estimate": "teacher_kl"}, from_zero=True),
    Chart("Staleness", {"policy versions behind": "staleness"}, from_zero=True),
    Chart("Engines", {"serving": "engines"}, from_zero=True, varying=True),
    Chart("Taking over new weights", {"of the slowest engine": "sync_s"}, "s", from_zero=True),
    Chart("Fill of packed rows", {"tokens / capacity": "fill"}, "%", from_zero=True, cap=1.0),
    Chart("Workers", {"training": "workers"}, from_zero=True, varying=True),
    Chart("Memory of the largest worker", {"host": "host_memory_gib", "GPU": "gpu_memory_gib"}, "GiB", from_zero=True),
)
# Metrics without a chart: the x axis, and summaries that HF logs at the end.
_NOT_DRAWN = {"epoch", "total_flos", "train_loss"} | {
    f"{prefix}_{name}" for prefix in ("train", "eval") for name in ("runtime", "samples_per_second", "steps_per_second")
}
_MAX_MORE_CHARTS = 24
_SAMPLE_CHARS = 2000
_SECRET = r"hub_token|password|secret|api_key|access_key"


@dataclass(frozen=True)
class View:
    """What the page shows. updated_s: now, since the epoch; step: the last logged one; counts: raw rows by outcome;

    local: Ray was started for this run; error: why it failed; samples, eval_samples: rows of `rollout.completions`.
    """

    name: str
    state: State
    updated_s: float
    config: TrainingConfig
    step: int = 0
    curves: dict[str, Curve] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    eval_counts: dict[str, int] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    local: bool = True
    error: str = ""
    samples: list[dict[str, Any]] = field(default_factory=list)
    eval_samples: list[dict[str, Any]] = field(default_factory=list)


def render(view: View) -> str:
    config, curves = view.config, view.curves
    restarts = [start.step for start in starts(view.events)[1:] if start.workers is not None]
    epoch = curves["epoch"].last if "epoch" in curves else None
    by_steps = config.train.max_steps > 0
    wanted = config.train.max_steps if by_steps else config.train.num_train_epochs
    launched = [event.time_s for event in view.events if event.kind == "launch"]
    last = {name: show(curve.last) for name, curve in curves.items() if curve.last is not None}
    sources = ", ".join(parse_source(each).written for each in config.data.dataset)
    return _template().render(
        view=view,
        what=f"{config.model.path}, {config.model.tuner}, {sources}",
        done=min(1.0, (view.step if by_steps else epoch or 0.0) / wanted),
        tiles=[
            ("step", f"{view.step:,}" + (f" of {wanted:,}" if by_steps else "")),
            ("epoch", show(epoch) + ("" if by_steps else f" of {wanted:g}") if epoch is not None else ""),
            ("reward", last.get("reward")),
            ("loss", last.get("loss")),
            ("evaluation loss", last.get("eval_loss")),
            ("tokens / s", last.get("tokens_per_s")),
            ("time of this launch", duration(view.updated_s - launched[-1]) if launched else ""),
        ],
        advice=advise(config, curves, view.counts, view.events, view.local),
        verdict=verdict(config, curves),
        charts="".join(draw(chart, curves, restarts) for chart in (*CHARTS, *_more_charts(curves))),
        starts=starts(view.events),
        config=to_yaml(config),
    )


@cache
def _template() -> jinja2.Template:
    here = Path(__file__).parent
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, trim_blocks=True, keep_trailing_newline=True
    )
    page.filters |= {"show": show, "excerpt": _excerpt, "rewards": _rewards, "without_secrets": without_secrets}
    page.filters["utc"] = lambda time_s, form: time.strftime(form, time.gmtime(time_s))
    assets = {name: (here / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    return page.get_template("page.html", globals=assets)


def _more_charts(curves: Mapping[str, Curve]) -> list[Chart]:
    """A chart for each metric without one in `CHARTS`; training and evaluation share a chart."""
    known = {key for chart in CHARTS for key in chart.lines.values()}
    pairs: dict[str, dict[str, str]] = {}
    for name in [name for name in curves if name not in known | _NOT_DRAWN]:
        side = "evaluation" if name.startswith("eval_") else "training"
        pairs.setdefault(name.removeprefix("eval_"), {})[side] = name
    return [
        Chart(title[:1].upper() + title[1:].replace("_", " "), lines)
        for title, lines in list(pairs.items())[:_MAX_MORE_CHARTS]
    ]


def _rewards(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The single rewards of a completion, if there are several."""
    found = [(name.removeprefix("reward_"), value) for name, value in row.items() if name.startswith("reward_")]
    return found if len(found) > 1 else []


def _excerpt(text: str) -> str:
    """A text, or the beginning and end of a long one."""
    half = _SAMPLE_CHARS // 2
    return text if len(text) <= _SAMPLE_CHARS else f"{text[:half]} [...] {text[-half:]}"


def without_secrets(text: str) -> str:
    """Replace the values of `hub_token`, passwords and keys, of a command line, YAML or URL, by stars."""
    text = re.sub(r"(://[^\s/:@]*:)[^\s/@]+@", r"\1***@", text)
    return re.sub(rf"(?i)([\w.-]*(?:{_SECRET})\w*['\"]?(?:\s*[:=]\s*|\s+))(?!null\b)\S+", r"\1***", text)


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 7 min, 2 d 3 h."""
    whole = max(0, int(seconds))
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count or unit == "s")
