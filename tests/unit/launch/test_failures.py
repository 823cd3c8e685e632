"""Which failures restart the workers, and which end a run at once or at their second time."""

import errno
import pickle
from pathlib import Path

import pytest
import ray
import torch
import torch.distributed as dist

from rayswift.config.load import load
from rayswift.config.schema import TrainingConfig
from rayswift.data.feed.feed import DataEnded, StaleAttempt
from rayswift.launch.failures import Failures, WorkerFailure, explain, main_cause
from rayswift.log import UserError


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    """A run with a callback of the user's own."""
    (tmp_path / "mine.py").write_text("def boom():\n    raise ConnectionResetError('my service hung up')\n")
    flags = ["--model", "examples/tiny", "--data.dataset", "examples/gsm8k/train.jsonl"]
    loaded = load("sft", [*flags, "--callbacks", f"{tmp_path}/mine.py:boom"]).config
    assert isinstance(loaded, TrainingConfig)
    return loaded


def raised(error: BaseException) -> BaseException:
    """With a traceback, as a worker has it."""
    try:
        raise error
    except BaseException as caught:
        return caught


OF_MACHINES = [
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    dist.DistBackendError("NCCL error: unhandled system error"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    OSError(errno.EIO, "Input/output error"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    TimeoutError("the data feed had no batch for step 3 within 60 s"),
    EOFError(),
    MemoryError(),
    ray.exceptions.ObjectLostError("0123", None, ""),
    ray.exceptions.RaySystemError("the object store is full"),
    StaleAttempt("attempt 1 is over, attempt 2 has begun"),
]
OF_THE_CODE = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x8 and 16x2)"),
    KeyError("labels"),
    ValueError("a value"),
    AssertionError(),
    ZeroDivisionError("division by zero"),
    SystemExit(3),
]


@pytest.mark.parametrize("error", [*OF_MACHINES, *OF_THE_CODE], ids=lambda error: type(error).__name__)
def test_what_is_not_the_users_own_is_restarted(error: BaseException, config: TrainingConfig, tmp_path: Path) -> None:
    failure = explain(raised(error), config, tmp_path, 1)
    assert isinstance(failure, WorkerFailure)
    assert type(error).__name__ in str(failure)
    assert str(error) in str(failure)
    assert "logs/rank-1.log" in str(failure)
    sent = pickle.loads(pickle.dumps(failure))
    assert (str(sent), sent.may_pass) == (str(failure), failure.may_pass)
    Failures().check({1: sent}, 0)  # raises nothing


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_ends_the_run_wherever_it_is_met(
    error: BaseException, config: TrainingConfig, tmp_path: Path
) -> None:
    """Not only while a model is saved: a manifest, metrics, rows."""
    found = explain(raised(error), config, tmp_path, 0)
    assert isinstance(found, UserError)
    assert str(found).startswith(f"the disk is full: {error}; free some space")
    assert found.exit_code == 1


@pytest.mark.parametrize("error", [UserError("train.x = 1: no"), DataEnded(7)])
def test_the_users_own_ends_the_run(error: UserError, config: TrainingConfig, tmp_path: Path) -> None:
    found = explain(raised(error), config, tmp_path, 0)
    assert found is error
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = error
    with pytest.raises(UserError, match=str(error)):
        Failures().check({0: OSError(errno.EIO, "at a peer"), 1: wrapped}, 0)


def test_what_the_users_code_raises_ends_the_run_whatever_it_is(config: TrainingConfig, tmp_path: Path) -> None:
    code: dict[str, object] = {}
    file = tmp_path / "mine.py"
    exec(compile(file.read_text(), str(file), "exec"), code)
    try:
        code["boom"]()  # type: ignore[operator]
    except ConnectionResetError as error:
        found = explain(error, config, tmp_path, 0)
    assert isinstance(found, UserError)
    assert "mine.py:2, in boom) raised ConnectionResetError: my service hung up" in str(found)


@pytest.mark.parametrize("error", OF_THE_CODE, ids=lambda error: type(error).__name__)
def test_a_bug_is_restarted_once(error: BaseException, config: TrainingConfig, tmp_path: Path) -> None:
    failures, bug = Failures(), explain(raised(error), config, tmp_path, 1)
    lost_a_peer = WorkerFailure("RuntimeError: connection closed by 10.0.0.1:4711", True)
    failures.check({0: lost_a_peer, 1: bug}, 4)
    with pytest.raises(UserError, match=r"rank 1, the same error again after a restart") as ended:
        failures.check({0: lost_a_peer, 1: bug}, 4)
    assert ended.value.exit_code == 1
    assert type(error).__name__ in str(ended.value)


@pytest.mark.parametrize("error", OF_MACHINES, ids=lambda error: type(error).__name__)
def test_a_fault_of_the_machine_has_all_restarts(error: BaseException, config: TrainingConfig, tmp_path: Path) -> None:
    failures, fault = Failures(), explain(raised(error), config, tmp_path, 0)
    for _ in range(10):
        failures.check({0: fault}, 0)


def test_an_error_that_is_no_repetition_has_all_restarts() -> None:
    failures = Failures()
    bug = WorkerFailure("ValueError: 1", False)
    failures.check({0: bug}, 0)
    failures.check({0: bug}, 5)  # it got further
    failures.check({1: bug}, 5)  # another rank
    failures.check({1: WorkerFailure("ValueError: 2", False)}, 5)
    failures.check({0: OSError()}, 5)
    failures.check({1: WorkerFailure("ValueError: 2", False)}, 5)  # not twice in a row


def test_an_error_of_a_collective_may_pass(config: TrainingConfig, tmp_path: Path) -> None:
    """gloo raises a plain RuntimeError; where it was raised tells."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        dist.recv(torch.zeros(1), src=0)  # it has no connection with itself
    except RuntimeError as error:
        failure = explain(error, config, tmp_path, 0)
    finally:
        dist.destroy_process_group()
    assert isinstance(failure, WorkerFailure)
    assert failure.may_pass


def test_the_rank_that_failed_of_itself_is_named() -> None:
    lost_a_peer = WorkerFailure("RuntimeError: connection closed by peer", True)
    bug = WorkerFailure("ValueError: 1", False)
    died = ray.exceptions.RayActorError()
    assert main_cause({0: lost_a_peer, 1: bug}) == (1, bug)
    assert main_cause({0: lost_a_peer, 1: died}) == (1, died)
    assert main_cause({0: lost_a_peer, 1: lost_a_peer}) == (0, lost_a_peer)
