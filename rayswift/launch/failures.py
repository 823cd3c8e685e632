"""Which failure of a training process ends a run, and which one restarts its workers.

The user's own errors (bad rows, a callback that raises, a NaN or infinite loss) end the run. All others may be passing
faults of the machines and restart the workers, up to `cluster.max_failures` times. An error of the code itself ends the
run at its second time, if the message is the same and there is no new checkpoint.
"""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayswift.config.schema import TrainingConfig
from rayswift.data.feed.feed import StaleAttempt
from rayswift.data.feed.pipeline import user_error_in
from rayswift.files import disk_is_full
from rayswift.launch import user_code
from rayswift.log import UserError, logger

# Errors defined in these packages are about processes, connections and devices.
_OF_MACHINES = ("ray", "torch", "grpc", "pyarrow", "fsspec", "botocore")


class WorkerFailure(Exception):
    """An error of a rank that is not the user's own, as text: not every library's error can be pickled.

    may_pass: a restart may help, even if the error came twice.
    """

    def __init__(self, text: str, may_pass: bool):
        super().__init__(text)
        self.may_pass = may_pass

    def __reduce__(self) -> tuple[Any, ...]:
        return WorkerFailure, (str(self), self.may_pass)


def explain(error: BaseException, config: TrainingConfig, run_dir: Path, rank: int) -> UserError | WorkerFailure:
    """A rank's error as a `UserError`, which ends the run, or a `WorkerFailure`; log its traceback."""
    logger.error("rank %d stopped", rank, exc_info=error)
    user_error = user_error_in(error)
    if user_error:
        return user_error
    if disk_is_full(error):
        return UserError(f"the disk is full: {error}; free some space and continue with --resume auto", exit_code=1)
    culprit = user_code.blame(error, config)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    where = f"\n  traceback in {run_dir / 'logs' / f'rank-{rank}.log'}"
    if culprit:
        return UserError(f"{culprit} raised {what}{where}", exit_code=1)
    return WorkerFailure(f"{what}{where}", _may_pass(error))


class Failures:
    """Compares the failures of a worker group with those of the group before; lives in Ray Train's controller."""

    def __init__(self) -> None:
        self._before: dict[int, str] = {}
        self._newest_before: int | None = None

    def check(self, failed: Mapping[int, Exception], newest_step: int) -> None:
        """Raise UserError if a restart cannot help: an error of the user, or twice the same one at a checkpoint.

        failed: error by rank; newest_step: of the newest checkpoint, or 0.
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
                    f"{what} on rank {rank}, the same error again after a restart; it is not tried again\n{where}",
                    exit_code=1,
                )
        self._before, self._newest_before = lasting, newest_step


def main_cause(failed: Mapping[int, Exception]) -> tuple[int, Exception]:
    """The rank that failed first, as opposed to those that only lost their peer, if that is known."""

    def only_lost_a_peer(error: Exception) -> bool:
        return isinstance(error, WorkerFailure) and error.may_pass

    return min(failed.items(), key=lambda item: (only_lost_a_peer(item[1]), item[0]))


def _may_pass(error: BaseException) -> bool:
    """Whether the system, Ray, CUDA or a collective raised it, not the code."""
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, (OSError, EOFError, MemoryError, StaleAttempt)) or package in _OF_MACHINES:
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return any("torch/distributed/" in frame.filename for frame in frames)
