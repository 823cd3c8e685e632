"""What the screen shows during a run: rank 0's log, failures, sample completions, and on a terminal a progress bar."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from rayswift.data.sequence.global_batches import FeedPlan
from rayswift.report.charts import show
from rayswift.report.curves import Curve, MetricsFile
from rayswift.rollout.completions import newest
from rayswift.run import events
from rayswift.run.folder import METRICS
from rayswift.run.waiting import Lines, size_of

_POLL_S = 0.3
_COMPLETIONS_EVERY_S = 30.0
# Metric, text and unit of each part of the progress bar.
_PARTS = (
    ("loss", "loss {}", ""),
    ("reward", "reward {}", ""),
    ("teacher_kl", "KL to the teacher {}", ""),
    ("completions/mean_length", "{} tokens each", ""),
    ("rollout_tokens_per_s", "{} tokens/s", ""),
    ("engines", "{} engine(s)", ""),
    ("staleness", "{} version(s) behind", ""),
)
_SHOWN_WAIT = 0.1
_EXCERPT_CHARS = 160


class Console:
    """A thread that shows the progress of a run while its block runs.

    progress: returns the current step and the epochs done before it.
    """

    def __init__(self, run_dir: Path, progress: Callable[[], tuple[int, float]], plan: FeedPlan):
        self._log = Lines(run_dir / "logs" / "rank-0.log")
        self._metrics = MetricsFile(run_dir / METRICS)
        self._progress, self._plan = progress, plan
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._run_dir = run_dir
        self._num_events = len(events.read(run_dir))
        self._events_size = size_of(run_dir / events.EVENTS)
        self._shown_round, self._shows_completions_at = self._newest_round(), 0.0

    def __enter__(self) -> "Console":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=10 if error is None or isinstance(error, Exception) else 1)

    def _run(self) -> None:
        bar = tqdm(total=100, bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}", leave=False, delay=1e-3)
        bar.disable = bar.disable or not sys.stderr.isatty()
        with bar:
            while not self._done.wait(_POLL_S):
                with contextlib.suppress(OSError):  # a closed terminal, or a network folder that is briefly unreachable
                    self._copy_lines()
                    self._tell_failures()
                    self._tell_completions()
                if not bar.disable:
                    self._draw(bar)
            with contextlib.suppress(OSError):
                self._copy_lines()

    def _tell_failures(self) -> None:
        size = size_of(self._run_dir / events.EVENTS)
        if size == self._events_size:
            return
        self._events_size, recorded = size, events.read(self._run_dir)
        for event in recorded[self._num_events :]:
            if event.kind == "failure":
                say(f"failed: {event.text}")
        self._num_events = len(recorded)

    def _newest_round(self) -> int | None:
        rows = newest(self._run_dir, 1)
        return int(rows[0]["round"]) if rows else None

    def _tell_completions(self) -> None:
        """Show completions of a new round, at most once in `_COMPLETIONS_EVERY_S`."""
        if time.monotonic() < self._shows_completions_at:
            return
        rows = newest(self._run_dir, 2)
        if rows and rows[0]["round"] != self._shown_round:
            self._shown_round, self._shows_completions_at = rows[0]["round"], time.monotonic() + _COMPLETIONS_EVERY_S
            say(completions_line(rows))

    def _draw(self, bar: Any) -> None:
        with contextlib.suppress(Exception):  # an error of the display must not end the run
            step, epochs = self._progress()
            share = step / self._plan.max_steps if self._plan.ends_by_steps else epochs / self._plan.num_epochs
            bar.n = min(100.0, 100 * share)
            self._metrics.read()
            bar.set_description(f"step {step}  {live_line(self._metrics.curves)}".rstrip(), refresh=True)

    def _copy_lines(self) -> None:
        for line in self._log.new():
            _, mark, message = line.partition(" rank-0 INFO ")
            if mark:
                say(message)


def say(line: str) -> None:
    """Print a line to stderr, above the progress bar."""
    tqdm.write(line, file=sys.stderr)


def live_line(curves: dict[str, Curve]) -> str:
    """Text beside the progress bar: loss or reward, throughput, engines, staleness, and waits."""
    parts = [text.format(show(last, unit)) for name, text, unit in _PARTS if (last := _last(curves, name)) is not None]
    if "reward" in curves:
        waits = [("trainer waits", _last(curves, "data_wait")), ("engines wait", _last(curves, "engines_idle"))]
        parts += [f"{who} {show(share, '%')}" for who, share in waits if share and share > _SHOWN_WAIT]
    return "  ".join(parts)


def completions_line(rows: Sequence[Mapping[str, Any]]) -> str:
    """The completions with the highest and the lowest reward of a round. rows: of that round, the best first."""
    best, worst = rows[0], rows[-1]
    if not any(name.startswith("reward_") for name in best):
        return f"round {best['round']:,}: {_excerpt(best['completion'])}"
    parts = [f"reward {show(row['reward'])} for {_excerpt(row['completion'])}" for row in (best, worst)]
    if best["reward"] == worst["reward"]:
        return f"round {best['round']:,}: every {parts[0].replace(' for ', ', as for ', 1)}"
    return f"round {best['round']:,}: {parts[0]}, {parts[1]}"


def _excerpt(text: str) -> str:
    half = _EXCERPT_CHARS // 2
    return repr(text if len(text) <= _EXCERPT_CHARS else f"{text[:half]} [...] {text[-half:]}")


def _last(curves: dict[str, Curve], name: str) -> float | None:
    return curves[name].last if name in curves else None
