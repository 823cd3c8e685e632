"""Two launches and one run folder: the second is refused with the name of the first; a dead launch holds no lock."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rayswift.log import UserError
from rayswift.run.lock import NAME, Folder, Holder, Place, Url, acquire, held, hold, this_process
from rayswift.run.url_files import Remote

ELSEWHERE = Holder("node-7", 4711, 1.7e9, "another boot", "t1")


@pytest.fixture(params=["folder", "file://", "memory://"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return Folder(tmp_path / "run")
    return Url(Remote(f"{request.param}{tmp_path}/run"))


def record(place: Place, holder: Holder) -> None:
    place.write(json.dumps(holder.__dict__).encode())


def no_wait(_: float) -> None:
    pass


def test_it_is_held_and_given_back(place: Place) -> None:
    with hold(place, this_process(), no_wait):
        assert place.read()
        with pytest.raises(UserError, match="is in use by another launch") as caught, hold(place, this_process()):
            pytest.fail("entered")
    assert caught.value.exit_code == 2
    assert place.read() is None
    with hold(place, this_process(), no_wait):
        pass


def test_the_other_is_named(place: Place) -> None:
    me = this_process()
    record(place, me)
    with pytest.raises(UserError, match=rf"\(pid {me.pid} on {me.host}, since 20\d\d-") as caught:
        acquire(place, this_process(), no_wait)
    assert repr(place.where) in str(caught.value)
    assert place.read(), "the first keeps it"


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:  # root may read all folders
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(UserError, match=r"encode.to = '.*' cannot be read: Permission denied"):
        acquire(Folder(tmp_path, field="encode.to"), this_process())


def test_a_dead_process_of_this_machine_holds_nothing(place: Place) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    slept: list[float] = []
    for gone in (replace(this_process(), pid=child.pid), replace(this_process(), started_s=1.0)):  # the pid of another
        record(place, gone)
        acquire(place, this_process(), slept.append)
        place.remove()
    assert sum(slept) < 3, "nothing is waited for but the storage"


def test_another_host_is_given_time_for_a_sign_of_life(place: Place) -> None:
    record(place, ELSEWHERE)
    slept: list[float] = []

    def beats(seconds: float) -> None:
        slept.append(seconds)
        if sum(slept) >= place.beat_s:
            record(place, replace(ELSEWHERE, beat=len(slept)))

    with pytest.raises(UserError, match="pid 4711 on node-7"):
        acquire(place, this_process(), beats)
    assert sum(slept) <= 2 * place.beat_s
    record(place, ELSEWHERE)
    slept.clear()
    acquire(place, this_process(), slept.append)  # killed: no sign comes
    assert 4 * place.beat_s <= sum(slept) <= 90


def test_one_that_ends_meanwhile_is_not_waited_for(place: Place) -> None:
    record(place, ELSEWHERE)
    acquire(place, this_process(), lambda _: place.remove() if b"node-7" in (place.read() or b"") else None)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 1}', b"\0\0"])
def test_a_cut_off_record_holds_nothing(place: Place, content: bytes) -> None:
    place.write(content)
    acquire(place, this_process(), no_wait)


def test_of_two_that_write_at_once_one_is_refused(place: Place) -> None:
    mine = this_process()
    with pytest.raises(UserError, match="node-7"):
        acquire(place, mine, lambda _: record(place, ELSEWHERE))


def test_a_launch_that_lost_the_folder_ends(tmp_path: Path) -> None:
    place = Folder(tmp_path, beat_s=0.05)
    lost = r"lost .* to another one \(pid 4711 on node-7"
    with pytest.raises(UserError, match=lost) as caught, hold(place, this_process()):
        record(place, ELSEWHERE)
        time.sleep(20)
    assert caught.value.exit_code == 1
    assert b"node-7" in (place.read() or b""), "what the other holds is left alone"


def test_many_at_once(tmp_path: Path) -> None:
    won: list[int] = []

    def launch(number: int) -> None:
        try:
            acquire(Folder(tmp_path), this_process())
            won.append(number)
        except UserError:
            pass

    threads = [threading.Thread(target=launch, args=[n]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_killed_or_not(tmp_path: Path) -> None:
    code = f"from rayswift.run.lock import held; import time\nwith held({str(tmp_path)!r}): time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / NAME).exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for sent in (signal.SIGSTOP, signal.SIGCONT):  # one that hangs holds it as well
            child.send_signal(sent)
            with pytest.raises(UserError, match=f"pid {child.pid} on"), held(str(tmp_path)):
                pytest.fail("entered")
        psutil.Process(child.pid).kill()
        child.wait()
        with held(str(tmp_path)):
            pass
        assert not (tmp_path / NAME).exists()
    finally:
        child.kill()
