"""Keeps `report.html` and `events.jsonl` up to date during a run."""

import contextlib
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType

from rayswift import signals
from rayswift.config.schema import TrainingConfig
from rayswift.data.filesystem import write_whole
from rayswift.data.sequence.global_batches import UnusableRows
from rayswift.log import UserError, logger
from rayswift.report.curves import MetricsFile
from rayswift.report.environment import environment
from rayswift.report.page import View, render
from rayswift.rollout.completions import newest, newest_evaluated
from rayswift.run import events
from rayswift.run.accounting import read_accounting, read_evaluation, write_accounting
from rayswift.run.checkpoint import Checkpoint
from rayswift.run.folder import METRICS, REPORT

_EVERY_S = (4.0, 30.0)
_NUM_SAMPLES = 8
_SHARE_OF_TIME = 0.005  # of a core: an expensive page is written less often, within the limits above


class LiveReport:
    """A thread that writes `report.html` while its block runs, and records how the block ended.

    Each page replaces the last one atomically. local: Ray is started for this run; continued: the checkpoint that the
    launch continues.
    """

    def __init__(self, run_dir: Path, config: TrainingConfig, local: bool, continued: Checkpoint | None):
        self._run_dir, self._config, self._local = run_dir, config, local
        self._continued = continued
        self._metrics = MetricsFile(run_dir / METRICS)
        self._environment: dict[str, str] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ending, self._ended = threading.Lock(), False
        self._writing = threading.Lock()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "LiveReport":
        step, name = (self._continued.step, self._continued.path.name) if self._continued else (0, "")
        events.record(self._run_dir, "launch", step=step, text=name)
        self._stack.enter_context(signals.last_words(lambda: self._end("interrupted", "")))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=0.5 if signals.asked_to_end() else 30)
        if isinstance(error, UnusableRows):
            write_accounting(self._run_dir, error.counts)
        self._end(*_outcome(error))
        self._stack.close()

    def _end(self, state: events.State, text: str) -> None:
        """Record how the run ended; only the first call counts."""
        if not self._ending.acquire(timeout=1):
            return
        try:
            if self._ended:
                return
            self._ended = True
            self._done.set()
            self._metrics.read()
            events.record(self._run_dir, "end", state=state, text=text, step=self._metrics.step)
            self.write(state, text)
        except Exception as problem:  # e.g. a full disk must not hide how the run ended
            logger.warning("report.html could not be written: %s: %s", type(problem).__name__, problem)
        finally:
            self._ending.release()

    def write(self, state: events.State, error: str = "") -> None:
        """Write the page of the current state."""
        self._metrics.read()
        view = View(
            name=self._config.train.output_dir,
            state=state,
            updated_s=time.time(),
            config=self._config,
            step=self._metrics.step,
            curves=self._metrics.curves,
            counts=read_accounting(self._run_dir),
            eval_counts=read_evaluation(self._run_dir),
            events=events.read(self._run_dir),
            environment=self._environment,
            local=self._local,
            error=error,
            samples=newest(self._run_dir, _NUM_SAMPLES),
            eval_samples=newest_evaluated(self._run_dir, _NUM_SAMPLES),
        )
        page = render(view)
        with self._writing:
            if state == "running" and self._done.is_set():
                return
            write_whole(self._run_dir / REPORT, page)

    def _run(self) -> None:
        try:
            self._environment = environment()
            wait_s = 0.0
            while not self._done.wait(wait_s):
                began = time.thread_time()
                with contextlib.suppress(OSError):
                    self.write("running")
                wait_s = min(max(_EVERY_S[0], (time.thread_time() - began) / _SHARE_OF_TIME), _EVERY_S[1])
        except Exception:  # an error of the page must not end the run
            logger.warning("report.html is no longer updated:\n%s", traceback.format_exc())


def _outcome(error: BaseException | None) -> tuple[events.State, str]:
    if error is None:
        return "finished", ""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted", ""
    return "failed", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
