"""What a person sees while a run goes on: rank 0's log lines, what failed and is tried again, the best and the worst
completion of a round now and then, and on a terminal a progress bar below them."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from rayswift.data.sequence.global_batches import FeedPlan
from rayswift.report.curves import MetricsFile
from rayswift.report.live_line import completions_line, live_line
from rayswift.rollout.completions import newest
from rayswift.run import events
from rayswift.run.folder import METRICS
from rayswift.run.waiting import Lines, size_of

_POLL_S = 0.3
_COMPLETIONS_EVERY_S = 30.0


class Console:
    """Follows `<run>/logs/rank-0.log` from its current end, and `metrics.jsonl`, in a thread, while its block runs.

    Args:
        run_dir: The run folder.
        progress: The step that is being trained and the passes over the data before it.
        plan: When the run ends.
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
        self._told_round, self._tells_completions_s = self._newest_round(), 0.0

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
                with contextlib.suppress(OSError):  # a closed terminal, a network folder that is away for a moment
                    self._copy_lines()
                    self._tell_failures()
                    self._tell_completions()
                if not bar.disable:
                    self._draw(bar)
            with contextlib.suppress(OSError):
                self._copy_lines()

    def _tell_failures(self) -> None:
        """What was recorded since the last look."""
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
        """Of a round that was not told yet; not of every one."""
        if time.monotonic() < self._tells_completions_s:
            return
        rows = newest(self._run_dir, 2)
        if rows and rows[0]["round"] != self._told_round:
            self._told_round, self._tells_completions_s = rows[0]["round"], time.monotonic() + _COMPLETIONS_EVERY_S
            say(completions_line(rows))

    def _draw(self, bar: Any) -> None:
        with contextlib.suppress(Exception):  # a display must not end a run, whatever the feed is going through
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
    """Show a line, above the progress bar where there is one."""
    tqdm.write(line, file=sys.stderr)
