"""`report.html`: curves, charts, advice, the whole page; also after a kill, a NaN or a hundred thousand lines."""

import json
import math
import os
import re
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayswift.config.load import load
from rayswift.config.schema import RlhfConfig, SftConfig
from rayswift.data.sequence.global_batches import UnusableRows
from rayswift.log import UserError
from rayswift.report.advice import advise, verdict
from rayswift.report.charts import Chart, draw, show
from rayswift.report.console import live_line
from rayswift.report.curves import MAX_BUCKETS, Curve, MetricsFile
from rayswift.report.environment import environment
from rayswift.report.live import LiveReport
from rayswift.report.page import CHARTS, View, duration, render, without_secrets
from rayswift.run import events
from rayswift.run.accounting import read_accounting
from rayswift.run.checkpoint import Checkpoint
from rayswift.run.events import Event, Start, starts
from tests.html_page import Page


def config_of(*argv: str) -> SftConfig:
    config = load("sft", ["--model", "m", "--dataset", "d.jsonl", "--learning_rate", "1e-4", *argv]).config
    assert isinstance(config, SftConfig)
    return config


def curve_of(values: list[float]) -> Curve:
    curve = Curve()
    for step, value in enumerate(values, 1):
        curve.add(step, value)
    return curve


def view_of(**fields: Any) -> View:
    return View(name="run", state="running", updated_s=1.7e9, config=config_of(), **fields)


# ---- curves ----


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000))
def test_a_curve_is_short_and_keeps_extremes_and_sum(values: list[float]) -> None:
    curve = curve_of(values)
    assert len(curve.buckets) <= MAX_BUCKETS
    assert min(b.low for b in curve.buckets) == min(values)
    assert max(b.high for b in curve.buckets) == max(values)
    assert sum(b.count for b in curve.buckets) == len(values)
    assert math.fsum(b.total for b in curve.buckets) == pytest.approx(math.fsum(values), abs=1e-2)
    steps = [b.step for b in curve.buckets]
    assert steps == sorted(set(steps))
    assert steps[-1] == len(values)
    assert curve.last == values[-1]


def test_values_that_are_not_finite_are_counted_and_not_drawn() -> None:
    curve = curve_of([1.0, math.nan, math.inf, 2.0])
    assert (curve.broken, curve.first_broken) == (2, 2)
    assert [b.step for b in curve.buckets] == [1, 4]


def test_metrics_are_read_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.read()
    assert (metrics.step, metrics.curves) == (0, {})
    path.write_text('{"step": 1, "loss": 2.5, "note": "x", "flag": true, "none": null}\n{"step": 2, "lo')
    for _ in range(2):  # the rest of the line is still to come
        metrics.read()
        assert (metrics.step, set(metrics.curves), len(metrics.curves["loss"].recent)) == (1, {"loss"}, 1)
    with path.open("a") as file:
        file.write('ss": 2.0}\n{"step": 3, "loss": NaN}\nno json\n[1]\n{"loss": 1}\n')
    metrics.read()
    assert (metrics.step, metrics.curves["loss"].last, metrics.curves["loss"].first_broken) == (3, 2.0, 3)


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    """As after a restart, which drops the entries of steps that are trained again."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "loss": 9.0}}\n' for step in range(1, 9)))
    metrics = MetricsFile(path)
    metrics.read()
    again = path.with_suffix(".partial")
    again.write_text("".join(f'{{"step": {step}, "loss": 1.25}}\n' for step in range(1, 12)))
    os.replace(again, path)
    metrics.read()
    assert [b.high for b in metrics.curves["loss"].buckets] == [1.25] * 11


def test_a_hundred_thousand_lines_are_quick_and_give_a_small_page(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = (f'{{"step": {step}, "loss": {1 / (step + 1)}, "fill": 0.9}}\n' for step in range(100_000))
    path.write_text("".join(lines))
    began = time.process_time()
    metrics = MetricsFile(path)
    metrics.read()
    assert time.process_time() - began < 8
    began = time.process_time()
    page = render(view_of(curves=metrics.curves, step=metrics.step))
    assert time.process_time() - began < 1
    assert len(page) < 400_000
    with path.open("a") as file:
        file.write('{"step": 100001, "loss": 7.0}\n')
    began = time.process_time()
    metrics.read()
    assert time.process_time() - began < 0.1
    assert metrics.step == 100_001


# ---- charts ----


@given(
    st.lists(st.floats(-1e12, 1e12, allow_subnormal=False), min_size=1, max_size=50),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "%", "s", "GiB"]),
)
def test_a_chart_of_anything_has_its_points_inside_and_its_ticks_apart(
    values: list[float], from_zero: bool, log: bool, unit: str
) -> None:
    chart = Chart("T", {"a": "x"}, unit, from_zero=from_zero, log=log)
    text = draw(chart, {"x": curve_of(values)}, [1])
    places = [
        float(number)
        for path in re.findall(r'class="line c0" d="M([^"]*)"', text)
        for point in path.split("L")
        for number in point.split()
    ]
    assert places and all(-0.1 <= place <= 1000.1 for place in places)
    ys = [float(bottom) for bottom in re.findall(r'class="y" style="bottom:([-\d.]+)%', text)]
    assert len(ys) <= 7
    assert all(b - a >= 9 for a, b in pairwise(ys))
    assert all(-0.1 <= y <= 100.1 for y in ys)


def test_a_chart_without_its_metrics_is_left_out() -> None:
    assert draw(CHARTS[0], {"fill": curve_of([1.0])}, []) == ""


def test_a_chart_of_what_never_changes_may_be_left_out() -> None:
    chart = Chart("Workers", {"training": "workers"}, varying=True)
    assert draw(chart, {"workers": curve_of([2, 2, 2])}, []) == ""
    assert "Workers" in draw(chart, {"workers": curve_of([2, 2, 1])}, [])


def test_a_chart_of_nothing_finite_says_so() -> None:
    assert "no finite value" in draw(Chart("Loss", {"training": "loss"}), {"loss": curve_of([math.nan])}, [])


def test_a_spread_over_many_magnitudes_is_drawn_in_logarithms() -> None:
    chart = Chart("Gradient norm", {"g": "g"}, log=True)
    labels = re.findall(r'class="y"[^>]*>([^<]*)<', draw(chart, {"g": curve_of([0.1, 1.0, 1e4])}, []))
    assert labels == ["0.1", "1", "10", "100", "1,000", "10k"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.9846, "%", "98.5 %"),
        (0.0, "%", "0 %"),
        (12345.6, "", "12.3k"),
        (2_500_000, "", "2.5M"),
        (1234.5, "", "1,234"),
        (2.0e-5, "", "2e-5"),
        (0.0021, "s", "0.0021 s"),
        (1.5, "GiB", "1.5 GiB"),
        (-3.25, "", "-3.25"),
        (math.nan, "", "nan"),
        (None, "", "none"),
    ],
)
def test_numbers_as_people_read_them(value: float | None, unit: str, text: str) -> None:
    assert show(value, unit) == text


def test_durations() -> None:
    assert [duration(s) for s in (5, 200, 18420, 185000)] == ["5 s", "3 min 20 s", "5 h 7 min", "2 d 3 h"]


# ---- advice ----

GOOD = {"loss": [2.0, 1.0], "fill": [0.98], "data_wait": [0.01], "tokens_per_s": [9.0], "trained_tokens_per_s": [4.0]}


def advised(
    *argv: str,
    counts: dict[str, int] | None = None,
    happened: list[Event] | None = None,
    local: bool = True,
    **curves: list[float],
) -> list[str]:
    named = {name: curve_of(values) for name, values in (GOOD | curves).items()}
    return [advice.text for advice in advise(config_of(*argv), named, counts or {}, happened or [], local)]


def test_a_run_that_lacks_nothing_has_no_advice() -> None:
    assert advised(counts={"trained": 100}) == []
    page = render(view_of(curves={name: curve_of(values) for name, values in GOOD.items()}))
    assert "No bottleneck: workers wait for data 1 % of the time, rows are 98 % full." in page


def test_a_bottleneck_is_named_with_its_remedy() -> None:
    (text,) = advised(data_wait=[0.34])
    assert "34 % of the time" in text and "cluster.num_data_cpus (now 2)" in text
    (text,) = advised(data_wait=[0.34], local=False)
    assert "more CPUs" in text and "num_data_cpus" not in text
    (text,) = advised("--window_rows", "2000", fill=[0.4])
    assert "40 % full" in text and "data.window_rows (now 2,000)" in text
    (text,) = advised("--packing", "false", fill=[0.4])
    assert "data.packing true" in text
    (text,) = advised(trained_tokens_per_s=[0.1])
    assert "data.loss_on" in text


def test_rows_that_are_left_out() -> None:
    (text,) = advised(counts={"trained": 80, "filtered: longer than data.max_length": 20})
    assert "20 % of the rows are longer than data.max_length = 2,048 and were left out" in text
    assert "data.truncation" in text
    (text,) = advised("--truncation", "right", counts={"trained": 80, "trained, cut to data.max_length": 20})
    assert "were cut: raise it." in text
    (text,) = advised(counts={"trained": 999, "quarantined: malformed JSON": 1})
    assert "1 of 1,000 rows (0.1 %) are bad" in text and "data/quarantine.jsonl" in text


def test_a_run_that_goes_wrong() -> None:
    (text,) = advised(loss=[2.0, math.nan])
    assert "The loss was NaN or infinite once, first at step 2" in text and "train.learning_rate (now 1e-4)" in text
    (text,) = advised(eval_loss=[3.0, 2.0, 2.5, 2.6, 2.7])
    assert "best at step 2 (2)" in text
    assert advised(eval_loss=[3.0, 2.0, 2.5, 1.9, 2.7]) == []
    (text,) = advised(
        happened=[Event("failure", 0.0, text="worker 1: died"), Event("failure", 1.0, text="worker 0: x")]
    )
    assert "lost 2 times; the last error: worker 0: x" in text


# ---- advice and display of tasks that sample ----

ROLLOUTS = {"reward": [0.5], "data_wait": [0.2], "engines_idle": [0.1], "engines": [1.0], "fill": [0.4]}


def online(*argv: str) -> RlhfConfig:
    flags = ["--model", "m", "--dataset", "d.jsonl", "--rlhf_type", "grpo", "--reward_funcs", "accuracy"]
    config = load("rlhf", [*flags, *argv]).config
    assert isinstance(config, RlhfConfig)
    return config


def advised_online(*argv: str, counts: dict[str, int] | None = None, **curves: list[float]) -> list[str]:
    named = {name: curve_of(values) for name, values in (ROLLOUTS | curves).items()}
    return [advice.text for advice in advise(online(*argv), named, counts or {}, [], True)]


def test_who_waits_for_whom() -> None:
    assert advised_online() == []
    assert advised_online(data_wait=[0.63]) == [
        "The trainer waits 63 % of the time for rollouts: raise rollout.num_engines (now none), or set "
        "rollout.max_staleness 1 to train while they are sampled."
    ]
    (text,) = advised_online("--num_engines", "2", "--max_staleness", "1", data_wait=[0.63])
    assert text == "The trainer waits 63 % of the time for rollouts: raise rollout.num_engines (now 2)."
    (text,) = advised_online("--num_engines", "1", "3", data_wait=[0.63])
    assert "rollout.num_engines (now 1, of [1, 3])" in text
    (text,) = advised_online(data_wait=[0.4], engines_idle=[0.5])
    assert text.startswith("The trainer waits 40 % of the time and the engines 50 %, for each other")
    (text,) = advised_online("--num_engines", "3", engines_idle=[0.5])
    assert text == "The engines have no work 50 % of the time: the trainer is slower; lower rollout.num_engines."
    curves = {name: curve_of(values) for name, values in ROLLOUTS.items()}
    assert verdict(online(), curves) == "No bottleneck: the trainer waits for rollouts 20 % of the time."


def test_completions_and_prompts_that_teach_nothing() -> None:
    (text,) = advised_online(**{"completions/clipped_ratio": [0.4]})
    assert text.startswith("40 % of the completions are cut off at rollout.max_completion_length = 512: raise it")
    (text,) = advised_online(frac_reward_zero_std=[0.7])
    assert text.startswith("For 70 % of the prompts all completions have the same reward")
    assert advised_online("--dynamic_sampling", "true", frac_reward_zero_std=[0.7]) == []
    counts = {"trained": 90, "failed: reward f raised ValueError": 6, "failed: too few": 1}
    (text,) = advised_online(counts=counts)
    assert text.startswith("7 of 97 prompts (7.2 %) failed, most often for this reason: reward f raised ValueError;")
    (text,) = advised_online(counts={"trained": 80, "filtered: longer than rollout.max_prompt_length": 20})
    assert text.startswith("20 % of the prompts are longer than rollout.max_prompt_length")


def test_the_live_line() -> None:
    assert live_line({}) == ""
    assert live_line({"loss": curve_of([2.0, 1.5])}) == "loss 1.5"
    curves = ROLLOUTS | {"rollout_tokens_per_s": [4100.0], "staleness": [0.5], "completions/mean_length": [12.0]}
    line = live_line({name: curve_of(values) for name, values in curves.items()})
    assert line == (
        "reward 0.5  12 tokens each  4,100 tokens/s  1 engine(s)  0.5 version(s) behind  trainer waits 20 %"
    )


def test_samples_are_shown_as_text() -> None:
    row = {"round": 7, "prompt": "<b>q</b>", "completion": "x" * 5000, "reward": 0.75, "num_tokens": 5000}
    row |= {"finish": "length", "reward_accuracy": 1.0, "reward_format": 0.5}
    page = Page(render(replace(view_of(samples=[row]), config=online())))
    for text in ("Round 7", "<b>q</b>", "0.75", "accuracy 1", "format 0.5", "5,000 tokens, cut off", "x [...] x"):
        assert text in page.text, text
    assert len(page.text) < 30_000
    page = Page(render(replace(view_of(eval_samples=[row | {"outcome": "greedy"}]), config=online())))
    for text in ("Evaluated completions", "Evaluation after round 7", "cut off, greedy"):
        assert text in page.text, text


# ---- events ----


def test_starts_tell_why_and_how_they_ended() -> None:
    happened = [
        Event("launch", 1.0, step=0),
        Event("start", 2.0, step=0, workers=1),
        Event("failure", 3.0, text="worker 0: the actor died"),
        Event("start", 4.0, step=8, workers=2),
        Event("start", 5.0, step=9, workers=1),
        Event("launch", 6.0, step=12, text="checkpoint-12"),
        Event("start", 7.0, step=12, workers=1),
        Event("end", 8.0, state="failed", text="disk full"),
        Event("launch", 9.0, step=12, text="checkpoint-12"),
        Event("end", 10.0, state="interrupted"),
        Event("launch", 11.0, step=12, text="checkpoint-12"),
        Event("start", 12.0, step=12, workers=1),
    ]
    assert starts(happened) == [
        Start(2.0, 0, 1, "new run", "lost a worker"),
        Start(4.0, 8, 2, "restarted from 1 to 2 workers after: worker 0: the actor died", "resized"),
        Start(5.0, 9, 1, "resized from 2 to 1 workers", "killed"),
        Start(7.0, 12, 1, "continued from checkpoint-12", "failed"),
        Start(9.0, 12, None, "continued from checkpoint-12", "interrupted"),
        Start(12.0, 12, 1, "continued from checkpoint-12", "running"),
    ]


def test_events_survive_a_line_that_was_cut_off(tmp_path: Path) -> None:
    assert events.read(tmp_path) == []
    events.record(tmp_path, "launch", step=0)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "sta')
    events.record(tmp_path, "start", step=0, workers=3)
    assert [(event.kind, event.workers) for event in events.read(tmp_path)] == [("launch", None), ("start", 3)]


# ---- the page ----


def full_view() -> View:
    metrics = {name: [0.5, 0.4, math.nan, 0.3] for chart in CHARTS for name in chart.lines.values()}
    return view_of(
        step=4,
        curves={name: curve_of(values) for name, values in (metrics | {"<b>mine</b>": [1.0], "epoch": [0.5]}).items()},
        counts={"trained": 3, "quarantined: <script>alert(1)</script>": 1},
        events=[Event("launch", 1.0, step=0), Event("start", 2.0, 0, 1), Event("start", 3.0, 2, 2)],
        environment={"command": "rayswift sft --x '<&>'"},
        error="broken: </pre><script>alert(2)</script>",
    )


@pytest.mark.parametrize("view", [view_of(), full_view(), replace(full_view(), state="failed")])
def test_the_page_is_whole_and_needs_nothing_outside_itself(view: View) -> None:
    text = render(view)
    page = Page(text)
    outside = [(name, value) for name, value in page.attributes if name in ("src", "href", "action", "data", "srcset")]
    assert outside == []
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", text)
    assert "alert(1)" in page.text or not view.counts
    assert page.tags["script"] == 1 + page.tags["figure"]  # no text of a run's became one


def test_an_empty_run_has_a_page() -> None:
    page = Page(render(view_of()))
    assert "No step has been logged yet." in page.text
    assert "None is counted yet." in page.text
    assert page.tags["figure"] == 0


def test_every_metric_has_a_chart() -> None:
    page = Page(render(full_view()))
    assert page.tags["figure"] == len(CHARTS) + 1
    for title in (*(chart.title for chart in CHARTS), "<b>mine</b>"):
        assert title in page.text
    assert "restart" in page.text


def test_no_secret_is_shown() -> None:
    assert (
        without_secrets("rayswift sft --train.hub_token abc --model m")
        == "rayswift sft --train.hub_token *** --model m"
    )
    assert without_secrets("--hub_token=abc") == "--hub_token=***"
    assert (
        without_secrets("hub_token: abc\npad_token: x\nhub_token: null")
        == "hub_token: ***\npad_token: x\nhub_token: null"
    )
    url = "s3://KEY:s3cret@bucket/run"
    assert (
        without_secrets(f"rayswift sft --output_dir {url} --x")
        == "rayswift sft --output_dir s3://KEY:***@bucket/run --x"
    )
    assert without_secrets("http://10.0.0.1:8265/a:b@c") == "http://10.0.0.1:8265/a:b@c"
    page = render(replace(view_of(error=f"no {url}"), name=url, config=config_of("--output_dir", url)))
    assert "s3cret" not in page
    assert "s3cret" not in render(replace(view_of(), config=config_of("--train.hub_token", "s3cret")))


def test_the_environment_is_named() -> None:
    facts = environment()
    assert {"command", "folder", "host", "system", "processor", "GPUs here", "rayswift", "ray"} <= set(facts)
    assert all(facts.values())


def test_evaluation_rows_have_a_table_of_their_own() -> None:
    counts = {"evaluated": 3, "quarantined: malformed JSON": 1}
    page = Page(render(view_of(counts={"trained": 7}, eval_counts=counts)))
    assert "Evaluation rows" in page.text
    assert "evaluated" in page.text
    assert "Evaluation rows" not in Page(render(view_of(counts={"trained": 7}))).text


# ---- live ----


def test_the_page_follows_the_run_and_says_how_it_ended(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    with LiveReport(tmp_path, config_of(), True, Checkpoint(tmp_path / "checkpoint-3", 3, 1, 0)):
        deadline = time.monotonic() + 20
        while not page.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running = page.read_text()
        assert 'data-state="running"' in running
        assert "continued from checkpoint-3" in Page(running).text
        (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 1.5}\n')
    done = page.read_text()
    assert 'data-state="finished"' in done
    assert Page(done).tags["figure"] == 1
    assert not (tmp_path / "report.html.partial").exists()


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (UserError("data.x = 1: no"), "failed", "data.x = 1: no"),
        (RuntimeError("boom"), "failed", "RuntimeError: boom"),
        (KeyboardInterrupt(), "interrupted", ""),
        (SystemExit(0), "interrupted", ""),
        (UserError("the row 'a\u2028b\x85c' is bad"), "failed", "is bad"),
        (UserError("half of a pair: \ud83d"), "failed", "half of a pair: \\ud83d"),
    ],
)
def test_how_a_run_ended_is_shown(tmp_path: Path, error: BaseException, state: str, text: str) -> None:
    with pytest.raises(type(error)), LiveReport(tmp_path, config_of(), True, None):
        raise error
    page = (tmp_path / "report.html").read_text()
    assert f'data-state="{state}"' in page
    assert text in Page(page).text
    assert events.read(tmp_path)[-1].state == state


def test_bad_rows_that_end_the_run_are_accounted_for(tmp_path: Path) -> None:
    counts = {"trained": 3, "quarantined: malformed JSON": 2}
    with pytest.raises(UnusableRows), LiveReport(tmp_path, config_of(), True, None):
        raise UnusableRows("2 of 5 rows are bad:", counts)
    assert read_accounting(tmp_path) == counts
    assert json.loads((tmp_path / "data" / "accounting.json").read_text())["rows seen"] == 5
    page = Page((tmp_path / "report.html").read_text())
    assert "2 of 5 rows are bad" in page.text
    assert "quarantined: malformed JSON" in page.text
