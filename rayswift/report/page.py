"""The state of a run -> one HTML page without external resources; pure."""

import html
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

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
    Chart("Gradient norm", {"before clipping": "grad_norm"}, from_zero=True, log=True),
    Chart("Tokens per second", {"all": "tokens_per_s", "trained": "trained_tokens_per_s"}, from_zero=True),
    Chart("Step time", {"of one step": "step_s"}, "s", from_zero=True),
    Chart("Waiting for the next batch", {"share of the time": "data_wait"}, "%", from_zero=True, cap=1.0),
    Chart("Engines without work", {"share of the time": "engines_idle"}, "%", from_zero=True, cap=1.0),
    Chart("Tokens per second of the engines", {"all together": "rollout_tokens_per_s"}, from_zero=True),
    Chart("Completions cut off at their longest", {"share": "completions/clipped_ratio"}, "%", from_zero=True, cap=1.0),
    Chart("Groups of equal rewards", {"share": "frac_reward_zero_std"}, "%", from_zero=True, cap=1.0),
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

    local: Ray was started for this run; error: why it failed; samples: rows of `rollout.completions`.
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


def render(view: View) -> str:
    restarts = [start.step for start in starts(view.events)[1:] if start.workers is not None]
    charts = "".join(draw(chart, view.curves, restarts) for chart in (*CHARTS, *_more_charts(view.curves)))
    advice = advise(view.config, view.curves, view.counts, view.events, view.local)
    lines = [f'<li class="{"bad" if each.bad else "slow"}">{_escape(each.text)}</li>' for each in advice]
    config = _escape(without_secrets(to_yaml(view.config)))
    body = [
        _header(view),
        _section("Error", f"<pre>{_escape(view.error)}</pre>", "error") if view.error else "",
        '<section><ul class="advice">'
        f"{''.join(lines) or f'<li>{verdict(view.config, view.curves)}</li>'}</ul></section>",
        f'<section class="charts">{charts}</section>' if charts else "",
        _section("Completions", _samples(view.samples)),
        _section("Rows", _rows(view.counts, "over all epochs")),
        _section("Evaluation rows", _rows(view.eval_counts, "once")) if view.eval_counts else "",
        _section("Starts", _starts(view.events)),
        _section("Environment", _facts(view.environment)),
        f"<section><details><summary>Resolved config</summary><pre>{config}</pre></details></section>",
    ]
    return (
        f'<!doctype html>\n<html lang="en" data-state="{view.state}" data-updated="{view.updated_s:.0f}">\n<head>'
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{_escape(view.name)} · {view.state}</title>'
        f"<style>{_asset('page.css')}</style></head>\n<body><main>{''.join(body)}</main>\n"
        f"<script>{_asset('page.js')}</script></body>\n</html>\n"
    )


@cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _escape(text: object) -> str:
    return html.escape(str(text))


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


def _samples(samples: list[dict[str, Any]]) -> str:
    if not samples:
        return ""
    lines = []
    for row in samples:
        rewards = [(name.removeprefix("reward_"), value) for name, value in row.items() if name.startswith("reward_")]
        parts = "".join(f"<br>{_escape(name)} {show(value)}" for name, value in rewards if len(rewards) > 1)
        cut = ", cut off" if row["finish"] == "length" else ""
        lines.append(
            f'<tr><td class="n"><b>{show(row["reward"])}</b>{parts}</td><td><pre>{_excerpt(row["prompt"])}</pre></td>'
            f"<td><pre>{_excerpt(row['completion'])}</pre>{row['num_tokens']:,} tokens{cut}</td></tr>"
        )
    what = f"Round {samples[0]['round']:,}, from the highest to the lowest reward; all are in completions/."
    head = '<tr><th class="n">reward</th><th>prompt</th><th>completion</th></tr>'
    return f'<p class="what">{what}</p>{_table(head, lines)}'


def _table(head: str, lines: Iterable[str]) -> str:
    return f'<div class="wide"><table>{head}{"".join(lines)}</table></div>'


def _excerpt(text: str) -> str:
    """A text, or the beginning and end of a long one."""
    half = _SAMPLE_CHARS // 2
    return _escape(text if len(text) <= _SAMPLE_CHARS else f"{text[:half]} [...] {text[-half:]}")


def _section(title: str, content: str, kind: str = "") -> str:
    return f'<section class="{kind}"><h2>{title}</h2>{content}</section>' if content else ""


def _header(view: View) -> str:
    config, curves = view.config, view.curves
    epoch = curves["epoch"].last if "epoch" in curves else None
    by_steps = config.train.max_steps > 0
    wanted = config.train.max_steps if by_steps else config.train.num_train_epochs
    done = min(1.0, (view.step if by_steps else epoch or 0.0) / wanted)
    launched = [event.time_s for event in view.events if event.kind == "launch"]
    tiles = [
        ("step", f"{view.step:,}" + (f" of {wanted:,}" if by_steps else "")),
        ("epoch", show(epoch) + ("" if by_steps else f" of {wanted:g}") if epoch is not None else ""),
        ("reward", _of(curves, "reward")),
        ("loss", _of(curves, "loss")),
        ("evaluation loss", _of(curves, "eval_loss")),
        ("tokens / s", _of(curves, "tokens_per_s")),
        ("time of this launch", duration(view.updated_s - launched[-1]) if launched else ""),
    ]
    shown = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles if value)
    sources = ", ".join(parse_source(each).written for each in config.data.dataset)
    what = f"{_escape(config.model.path)}, {config.model.tuner}, {_escape(sources)}"
    return (
        f'<header><div class="title"><h1>{_escape(view.name)}</h1><span class="state">{view.state}</span></div>'
        f'<p class="what">{what}</p>'
        f'<div class="progress" role="progressbar" aria-valuenow="{100 * done:.0f}" aria-label="progress">'
        f'<i style="width:{100 * done:.1f}%"></i></div>'
        f'<dl class="tiles">{shown}</dl>'
        f'<p class="updated">Written {_moment(view.updated_s)}<span id="silent"></span></p></header>'
    )


def _of(curves: Mapping[str, Curve], name: str) -> str:
    last = curves[name].last if name in curves else None
    return "" if last is None else show(last)


def _rows(counts: Mapping[str, int], seen_when: str) -> str:
    seen = sum(counts.values())
    if not seen:
        return '<p class="none">None is counted yet.</p>'
    lines = []
    for outcome, count in sorted(counts.items(), key=lambda item: -item[1]):
        kind = outcome.split(":")[0].split(",")[0]
        share = f'<i class="{_escape(kind)}" style="width:{100 * count / seen:.2f}%"></i>'
        lines.append(
            f'<tr><td>{_escape(outcome)}</td><td class="n">{count:,}</td><td class="n">{show(count / seen, "%")}</td>'
            f'<td class="share">{share}</td></tr>'
        )
    total = f'<tr class="total"><td>rows seen, {seen_when}</td><td class="n">{seen:,}</td><td></td><td></td></tr>'
    head = '<tr><th>outcome</th><th class="n">rows</th><th class="n">share</th><th></th></tr>'
    return _table(head, [*lines, total])


def _starts(events: list[Event]) -> str:
    lines = [
        f'<tr><td class="t">{_moment(start.time_s)}</td><td class="n">{start.step:,}</td>'
        f'<td class="n">{"none" if start.workers is None else start.workers}</td><td>{_escape(start.why)}</td>'
        f"<td>{_escape(start.ended)}</td></tr>"
        for start in starts(events)
    ]
    head = '<tr><th>when</th><th class="n">at step</th><th class="n">workers</th><th>why</th><th>how it ended</th></tr>'
    return _table(head, lines) if lines else ""


def _facts(facts: Mapping[str, str]) -> str:
    lines = "".join(
        f"<tr><th>{_escape(name)}</th><td>{_escape(without_secrets(fact))}</td></tr>" for name, fact in facts.items()
    )
    return f'<table class="facts">{lines}</table>' if lines else ""


def _moment(time_s: float) -> str:
    iso = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))
    return f'<time datetime="{iso}">{time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_s))}</time>'


def without_secrets(text: str) -> str:
    """Replace the values of `hub_token`, passwords and keys, of a command line or YAML, by stars."""
    return re.sub(rf"(?i)([\w.-]*(?:{_SECRET})\w*['\"]?(?:\s*[:=]\s*|\s+))(?!null\b)\S+", r"\1***", text)


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 7 min, 2 d 3 h."""
    whole = max(0, int(seconds))
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count or unit == "s")
