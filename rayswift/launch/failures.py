"""Which failure of a training process ends a run, and which one restarts its workers.

The user's own errors (bad rows, a callback that raises, a NaN or infinite loss) come again after a restart, so they
end the run. All else, whatever it is called, may be a passing fault of the machines below and is restarted, up to
`cluster.max_failures` times. A plain bug would be restarted in vain: an error that speaks of no machine and comes
again, word by word and without a checkpoint in between, ends the run at its second time.
"""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayswift.config.schema import TrainingConfig
from rayswift.data.feed.feed import StaleAttempt
from rayswift.data.feed.pipeline import user_error_in
from rayswift.launch import user_code
from rayswift.log import UserError, logger

# What these packages call an error of their own speaks of processes, connections and devices.
_OF_MACHINES = ("ray", "torch", "grpc", "pyarrow", "fsspec", "botocore")


class WorkerFailure(Exception):
    """What stopped a rank and is not the user's own error; plain, because not every library's error can be pickled.

    Args:
        text: Type and message.
        may_pass: Whether it can be gone after a restart although it comes twice.
    """

    def __init__(self, text: str, may_pass: bool):
        super().__init__(text)
        self.may_pass = may_pass

    def __reduce__(self) -> tuple[Any, ...]:
        return WorkerFailure, (str(self), self.may_pass)


def explain(error: BaseException, config: TrainingConfig, run_dir: Path, rank: int) -> UserError | WorkerFailure:
    """What a rank's error means for the run: a `UserError` ends it. Its traceback goes to the rank's log."""
    logger.error("rank %d stopped", rank, exc_info=error)
    user_error = user_error_in(error)
    if user_error:
        return user_error
    culprit = user_code.blame(error, config)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    where = f"\n  traceback in {run_dir / 'logs' / f'rank-{rank}.log'}"
    if culprit:
        return UserError(f"{culprit} raised {what}{where}", exit_code=1)
    return WorkerFailure(f"{what}{where}", _may_pass(error))


class Failures:
    """Compares the failures of one worker group with those of the group before; lives in Ray Train's controller."""

    def __init__(self) -> None:
        self._before: dict[int, str] = {}
        self._newest_before: int | None = None

    def check(self, failed: Mapping[int, Exception], newest_step: int) -> None:
        """Return if the group is worth a restart.

        Args:
            failed: The error of each rank that has one.
            newest_step: Of the newest checkpoint, 0 without one.

        Raises:
            UserError: a rank met the user's own error, or twice the same one from the same checkpoint.
        """
        for error in failed.values():
            found = user_error_in(error)
            if found:
                raise found
        lasting = {
            rank: str(error)
            for rank, error in failed.items()
            if isinstance(error, WorkerFailure) and not error.may_pass
        }
        for rank, failure in sorted(lasting.items()):
            if newest_step == self._newest_before and failure == self._before.get(rank):
                what, _, where = failure.partition("\n")
                raise UserError(
                    f"{what} on rank {rank}, again after a restart and word by word the same: no passing fault, so it "
                    f"is not tried again\n{where}",
                    exit_code=1,
                )
        self._before, self._newest_before = lasting, newest_step


def main_cause(failed: Mapping[int, Exception]) -> tuple[int, Exception]:
    """The rank that failed of itself, if one can be told from those that only lost their peer."""

    def only_lost_a_peer(error: Exception) -> bool:
        return isinstance(error, WorkerFailure) and error.may_pass

    return min(failed.items(), key=lambda item: (only_lost_a_peer(item[1]), item[0]))


def first_line(error: BaseException) -> str:
    """Of its text, or its type where it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _may_pass(error: BaseException) -> bool:
    """Whether it speaks of the machine, not of the code: what the system, Ray, CUDA or a collective raised."""
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, (OSError, EOFError, MemoryError, StaleAttempt)) or package in _OF_MACHINES:
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return any("torch/distributed/" in frame.filename for frame in frames)
