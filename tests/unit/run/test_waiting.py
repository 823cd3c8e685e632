"""Reports of the driver if there is no progress, and when it ends the run."""

import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rayswift.cluster.preflight import Ask
from rayswift.launch import watch
from rayswift.log import UserError, announced, logger
from rayswift.run.waiting import NO_SIGN_S, SAY_S, Lines, Note, Notes, Waiting, clear, read, warnings

HOSTS = ("10.0.0.1", "10.0.0.2", "10.0.0.3")


def notes(*doings: str, number: int = 0) -> dict[int, Note]:
    return {rank: Note(rank, 3, HOSTS[rank], what, number) for rank, what in enumerate(doings)}


def test_nothing_is_said_while_something_moves() -> None:
    waiting = Waiting(3, 0.0)
    for second in range(200):
        waiting.look(float(second), notes("trains step 1", "trains step 1", number=second), moved=second // 20)
        assert not waiting.due()


def test_silence_is_said_within_its_time_and_again() -> None:
    waiting, said = Waiting(3, 0.0), []
    for second in range(100):
        waiting.look(float(second), notes("trains step 1", number=second), moved=None)
        if waiting.due():
            said.append(second)
    assert said == [SAY_S, 2 * SAY_S, 3 * SAY_S]


def test_before_the_first_step_only_what_is_shown_counts() -> None:
    waiting, said = Waiting(3, 0.0), []
    doings = ("loads its libraries", "connects to the other ranks", "loads the model", "trains step 1")
    for second in range(100):
        waiting.look(float(second), notes(doings[second // 25], number=second), moved=second, shown=second >= 50)
        if waiting.due():
            said.append((second, waiting.describe("")))
    assert [at for at, _ in said] == [SAY_S]
    assert "rank 0: connects to the other ranks" in said[0][1]


def test_a_rank_that_is_lost_is_said_though_something_moves() -> None:
    waiting, said = Waiting(2, 0.0), []
    for second in range(60):
        now = notes("trains step 5", "trains step 5", number=second)
        now[1] = replace(now[1], number=min(second, 10))  # its host is gone
        waiting.look(float(second), now, moved=second)
        if waiting.due():
            said.append((second, waiting.describe("")))
    assert [at for at, _ in said] == [10 + NO_SIGN_S + 1]
    assert f"waiting for rank 1 on {HOSTS[1]}, which has given no sign for 21 s" in said[0][1]


def test_a_rank_that_gives_no_sign_is_the_one_that_others_wait_for() -> None:
    waiting = Waiting(3, 0.0)
    for second in range(41):
        now = notes("trains step 5", "trains step 5", "trains step 5", number=second)
        now[2] = replace(now[2], number=0)  # its host is gone
        waiting.look(float(second), now, moved=None)
    assert waiting.describe("", [HOSTS[2]]) == (
        "nothing has moved for 40 s: ranks 0, 1: trains step 5, waiting for rank 2 on 10.0.0.3, which has given no "
        "sign for 40 s; no connection to node(s) 10.0.0.3"
    )
    assert waiting.without_ranks_s == 0


def test_ranks_that_have_not_started_are_named() -> None:
    waiting = Waiting(3, 0.0)
    waiting.look(31.0, {}, moved=None)
    assert waiting.describe("") == "nothing has moved for 0 s: waiting for ranks 0, 1, 2 to start"
    waiting.look(62.0, notes("waits for all ranks to start", "waits for all ranks to start"), moved=None)
    assert waiting.describe("").endswith("ranks 0, 1: waits for all ranks to start, waiting for rank 2 to start")


def test_a_group_that_is_gone_is_counted_from_its_last_sign() -> None:
    waiting = Waiting(3, 0.0)
    for second in range(100):
        number = min(second, 10)  # all of them end
        waiting.look(float(second), notes("trains step 1", "trains step 1", number=number), moved=None)
    assert waiting.without_ranks_s == 99 - 10 > NO_SIGN_S
    waiting.begin_anew(100.0)
    assert waiting.without_ranks_s == 0


def test_what_supplies_the_batches_speaks_for_itself() -> None:
    waiting, alone = Waiting(1, 0.0), Note(0, 1, HOSTS[0], "waits for the rows of step 3", 0)
    waiting.look(30.0, {0: alone}, moved=None)
    waiting.look(60.0, {0: replace(alone, number=1)}, moved=None)
    said = waiting.describe("the rows of step 3 are not encoded yet")
    assert said.endswith("rank 0: waits for the rows of step 3; the rows of step 3 are not encoded yet")


def test_notes_change_while_a_rank_lives(tmp_path: Path) -> None:
    (tmp_path / "rank-5.note").write_text("{}")  # of a larger group before
    with Notes(tmp_path, 0, 2, HOSTS[0]) as at:
        first = read(tmp_path)
        assert first[0].what == "starts"
        at("trains step 1")
        while (now := read(tmp_path))[0].what != "trains step 1":
            pass
        assert now[0].number > first[0].number
    assert read(tmp_path) == {}
    (tmp_path / "rank-1.note").write_text("half a li")
    assert read(tmp_path) == {}
    clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_new_lines_and_their_warnings(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.log"
    file.write_text("12:00:00 rollouts WARNING of a launch before\n")
    lines = Lines(file)
    with file.open("a", encoding="utf-8") as log:
        log.write("12:00:01 rollouts INFO all is well\n12:00:02 rollouts WARNING engine-0 is lost; its last lines:\n")
        log.write("  RuntimeError: no such model é\n12:00:03 rollouts INFO fine\n")
        for number in range(9):
            log.write(f"12:00:04 rollouts ERROR number {number}\n")
        log.write("12:00:05 rollouts WARNING half a li")
    found = warnings(lines.new())
    assert found[0] == "engine-0 is lost; its last lines:\n  RuntimeError: no such model é"
    assert found[1:] == ["number 0", "number 1", "and 7 more warnings"]
    assert lines.new() == []


def test_a_long_step_of_the_driver_is_announced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    with announced("looking at the rows", every_s=0.05), caplog.at_level("INFO", logger.name):
        time.sleep(0.12)
    assert caplog.messages[0] == "looking at the rows goes on, 0 s so far"
    caplog.clear()
    with announced("looking at the rows", every_s=0.5):
        pass
    assert caplog.messages == []


def test_a_head_that_does_not_answer_is_said_and_then_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, short_s in (("_HEAD_EVERY_S", 0.05), ("_TELL_HEAD_S", 0.1), ("_HEAD_S", 0.5)):
        monkeypatch.setattr(watch, name, short_s)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = head.getsockname()
        cluster = watch.Cluster(address, Ask(1, {"CPU": 1.0}), 10)
        time.sleep(0.1)
        cluster.check_head()
        assert cluster.has_head
    with pytest.raises(UserError, match=f"the head of the Ray cluster, 127.0.0.1:{address[1]}, has not answered") as e:
        for _ in range(100):
            cluster.check_head()
            time.sleep(0.05)
    assert e.value.exit_code == 1
    assert cluster.lost_nodes() == ["127.0.0.1 (the head)"]
    assert f"the head of the Ray cluster, 127.0.0.1:{address[1]}, has not answered for 0 s" in capsys.readouterr().err
