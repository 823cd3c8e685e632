"""The screen follows the log of rank 0, whatever bytes it contains."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rayswift.data.sequence.global_batches import FeedPlan
from rayswift.log import logger, setup_worker
from rayswift.report import console
from rayswift.report.console import Console
from rayswift.rollout.completions import CompletionsFile
from tests.unit.rollout.test_completions import group

PLAN = FeedPlan(8, 100, 2000, 1, -1, 0.01)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_half_a_letter_ends_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "logs" / "rank-0.log"
    log.parent.mkdir()
    log.write_bytes("12:00:00 rank-0 INFO before the console: é\n".encode())
    shown = ""

    def seen(text: str) -> bool:
        nonlocal shown
        shown += capfd.readouterr().err
        return text in shown

    with Console(tmp_path, lambda: (0, 0.0), PLAN), log.open("ab", buffering=0) as file:
        letter = "€".encode()
        file.write(b"12:00:00 rank-0 INFO first " + letter[:1])
        time.sleep(0.7)  # the console has looked at it
        file.write(letter[1:] + b"\n")
        wait_for(lambda: seen("first €"))
        file.write(b"user code prints \xff\xfe\x80\n12:00:00 rank-0 INFO broken \xe2\n")
        wait_for(lambda: seen("broken \ufffd"))
        file.write("12:00:00 rank-0 INFO a \u2028 b\n12:00:00 rank-0 INFO last\n".encode())
        wait_for(lambda: seen("last"))
    assert "before the console" not in shown
    assert shown.splitlines()[0] == "first €"
    assert "a \u2028 b" in shown
    assert "user code" not in shown


def test_the_best_and_the_worst_completion_are_shown_as_they_come(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_COMPLETIONS_EVERY_S", 0.0)
    file, shown = CompletionsFile(tmp_path, ["accuracy", "judge"], str), ""

    def seen(text: str) -> bool:
        nonlocal shown
        shown += capfd.readouterr().err
        return text in shown

    file.add(1, [group(0, [1.0])], "trained")  # of an earlier launch
    file.flush()
    with Console(tmp_path, lambda: (0, 0.0), PLAN):
        time.sleep(0.7)
        file.add(2, [group(1, [0.5, 0.0, 1.0]), group(2, [0.25])], "trained")
        file.flush()
        wait_for(lambda: seen("round 2: reward 1 for 'answer 2', reward 0 for 'answer 1'\n"))
        file.add(3, [group(3, [0.5, 0.5])], "filtered: all rewards equal")
        file.flush()
        wait_for(lambda: seen("round 3: every reward 0.5, as for 'answer 0'\n"))
        time.sleep(0.7)
    shown += capfd.readouterr().err
    assert shown.count("round") == 2


def test_half_a_surrogate_pair_loses_no_line(tmp_path: Path) -> None:
    before = logger.handlers
    try:
        setup_worker(tmp_path, "rank-0")
        logger.info("a row holds %s", "\ud83d")
        assert "a row holds \\ud83d" in (tmp_path / "rank-0.log").read_text(encoding="utf-8")
    finally:
        logger.handlers = before
