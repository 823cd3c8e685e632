"""Ray does not start in time on a busy machine: it is tried again, then there is one error."""

from pathlib import Path
from typing import Any

import pytest
import ray

from rayswift.cluster.connect import connect
from rayswift.cluster.layout import Layout
from rayswift.config.schema import ClusterConfig
from rayswift.log import UserError

# What Ray 2.60 raises, class and words, where a node's raylet takes longer than 30 s.
TOO_SLOW = Exception(
    "The current node timed out during startup. This could happen because some of the raylet failed to startup or the "
    "GCS has become overloaded."
)


def start(monkeypatch: pytest.MonkeyPatch, *outcomes: Exception | None) -> int:
    """`connect` on a machine where Ray comes up so; returns how many outcomes are left."""
    left = list(outcomes)

    def init(**_: Any) -> None:
        outcome = left.pop(0)
        if outcome is not None:
            raise outcome

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    try:
        connect(ClusterConfig(), Layout(1, "cpu", 1, local=True), Path("/run"))
    finally:
        monkeypatch.undo()
    return len(left)


def test_a_start_that_takes_too_long_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(monkeypatch, TOO_SLOW, TOO_SLOW, TOO_SLOW, None) == 0


def test_four_times_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"Ray cannot start on this machine: The current .* tried 4 times") as e:
        start(monkeypatch, *[TOO_SLOW] * 4)
    assert e.value.exit_code == 1


def test_what_stays_wrong_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="AF_UNIX path too long; set RAY_TMPDIR to a short path"):
        start(monkeypatch, OSError("AF_UNIX path too long"))
    with pytest.raises(UserError, match="bad address"):
        start(monkeypatch, ValueError("bad address"))
    with pytest.raises(UserError, match=r"No such file or directory: '/dev/shm'; mount a tmpfs there"):
        start(monkeypatch, FileNotFoundError(2, "No such file or directory", "/dev/shm"))


def test_another_version_of_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = "The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.10.2\n"
    mine = "This process on 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    with pytest.raises(UserError, match=r"started with: Ray: 2\.9\.0 .* with: Ray: 2\.60\.0 Python: 3\.11\.7$") as e:
        start(monkeypatch, RuntimeError(f"Version mismatch: {theirs}{mine}"))
    assert e.value.exit_code == 2
