"""Two ranks wait for each other's work, and agree on a checkpoint, over gloo."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayswift.log import UserError
from rayswift.run import checkpoint
from tests.unit.run.test_run_folder import config_of, save

TIMEOUT_S = 3  # of a collective


def outcome(work: Callable[[], Any]) -> list[str]:
    """[type, text] of what a call returned or raised."""
    try:
        return ["returned", str(work())]
    except Exception as error:
        return [type(error).__name__, str(error)]


def scenarios(rank: int, folder: Path) -> dict[str, list[str]]:
    """A rank's half of all that is tried."""
    from rayswift.train import startup as restart
    from rayswift.train.parallel import group_work
    from rayswift.train.parallel.group_work import work_together

    found = {}

    def work(name: str, limit_s: float, *halves: Callable[[], Any]) -> None:
        started_s = time.monotonic()
        found[name] = outcome(lambda: work_together(rank, 2, name, limit_s, halves[rank]))
        found[f"{name}: seconds"] = [str(time.monotonic() - started_s)]

    def fail(error: Exception) -> Any:
        raise error

    work("both", 60, lambda: "a", lambda: "b")
    group_work._SAY_EVERY_S = 1.0
    work("longer than a collective", 60, lambda: time.sleep(2 * TIMEOUT_S), lambda: "b")
    work("a user's error", 60, lambda: fail(UserError("no room")), lambda: "b")
    work("another error", 60, lambda: "a", lambda: fail(OSError("EIO")))
    restart._SEEN_WITHIN_S = 1.0
    for name in ("seen", "flipped", "unseen"):
        found[name] = outcome(lambda name=name: agreed(rank, folder / name))  # type: ignore[misc]
    # The last: it leaves one rank behind.
    work("too long", 2, lambda: time.sleep(2 * TIMEOUT_S), lambda: "b")
    return found


def agreed(rank: int, run_dir: Path) -> str:
    """The checkpoint that the group begins at; where it is `unseen`, rank 1 looks at an empty folder."""
    from rayswift.cluster.layout import lay_out
    from rayswift.data.sequence.global_batches import FeedPlan
    from rayswift.run import checkpoint as checkpoints
    from rayswift.train import startup as restart
    from rayswift.train.clock import Clock
    from rayswift.train.spec import RunSpec, Worker

    class Attempts:
        def new_attempt(self) -> int:
            return 1

    if rank == 1 and run_dir.name == "unseen":
        checkpoints.read.__globals__["MANIFEST"] = "not-there-yet"  # as a file system that lags behind shows it
    config = config_of(run_dir, "--resume", "auto", "--device", "cpu", "--num_workers", "2")
    plan = FeedPlan(8, 100, 2000, 1, -1, 0.01)
    spec = RunSpec(config, lay_out(config.cluster), run_dir, run_dir, plan, Clock(0), None, run_dir)
    resume, _ = restart.agree_on_checkpoint(spec, Worker(rank, 2, Attempts()))  # type: ignore[arg-type]
    return resume.saved.path.name if resume else "the first step"


def main(rank: int, folder: Path) -> None:
    """A rank's process."""
    import logging
    from datetime import timedelta

    import torch.distributed as dist

    from rayswift.log import setup_worker

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    setup_worker(folder / "logs", f"rank-{rank}")
    logging.getLogger("rayswift").setLevel(logging.INFO)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, timedelta(seconds=TIMEOUT_S), rank=rank, world_size=2)
    (folder / f"{rank}.json").write_text(json.dumps(scenarios(rank, folder)))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], dict[str, list[str]], Path]:
    folder = tmp_path_factory.mktemp("ranks")
    for name in ("seen", "flipped", "unseen"):
        for step in (10, 20):
            made = save(folder / name, step, complete=False)
            for rank in (0, 1):
                (made / f"rng_state_{rank}.pth").write_text(f"{step} {rank}")
            checkpoint.write_manifest(made, step, 2, 0)
    (folder / "flipped" / "checkpoint-20" / "rng_state_1.pth").write_text("20 9")
    command = [sys.executable, "-m", "tests.unit.train.test_group_work"]
    ranks = [subprocess.Popen([*command, str(rank), str(folder)]) for rank in (0, 1)]
    assert [rank.wait(300) for rank in ranks] == [0, 0]
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    return first, second, folder


Found = tuple[dict[str, list[str]], dict[str, list[str]], Path]


def test_all_learn_what_each_returned(found: Found) -> None:
    assert found[0]["both"] == found[1]["both"] == ["returned", "['a', 'b']"]


def test_a_rank_may_work_longer_than_a_collective_may_take(found: Found) -> None:
    assert found[0]["longer than a collective"][0] == found[1]["longer than a collective"][0] == "returned"
    assert "longer than a collective: worker 0 is still working" in (found[2] / "logs" / "rank-0.log").read_text()


def test_an_error_ends_the_waiting(found: Found) -> None:
    assert found[0]["a user's error"] == found[1]["a user's error"] == ["UserError", "no room"]
    assert found[1]["another error"] == ["OSError", "EIO"]
    assert found[0]["another error"] == ["PeerFailed", "another error: worker 1 failed: OSError: EIO"]


def test_work_has_an_end(found: Found) -> None:
    for rank in (0, 1):
        kind, text = found[rank]["too long"]
        assert kind == "UserError"
        assert "worker 0 is still working and took longer than cluster.storage_timeout_s = 2" in text
    assert float(found[1]["too long: seconds"][0]) < 2 * TIMEOUT_S


def test_the_ranks_read_a_checkpoint_together(found: Found) -> None:
    assert found[0]["seen"] == found[1]["seen"] == ["returned", "checkpoint-20"]
    # A file that rank 1 reads.
    assert found[0]["flipped"] == found[1]["flipped"] == ["returned", "checkpoint-10"]
    assert (found[2] / "flipped" / "set_aside" / "checkpoint-20" / "rng_state_0.pth").exists()


def test_a_rank_that_does_not_see_the_checkpoint_is_named(found: Found) -> None:
    for rank in (0, 1):
        kind, text = found[rank]["unseen"]
        assert kind == "NotSeen"
        assert "is not seen by all workers" in text
        assert "worker 1 on " in text
    assert (found[2] / "unseen" / "checkpoint-20").is_dir()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
