"""Locks that a killed compilation leaves behind."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from rayswift.train.parallel import compile_locks

HOLDS = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("holds", flush=True)
time.sleep(60)
"""


def lock_of(folder: Path, name: str = "cpu_adam") -> Path:
    (folder / name).mkdir(parents=True)
    return folder / name / "lock"


def test_a_lock_that_nobody_holds_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    locks = [lock_of(tmp_path), lock_of(tmp_path / "py311_cpu", "utils")]
    for lock in locks:
        lock.touch()
    compile_locks.remove_stale(compile_locks.folder(), False, pytest.fail)
    assert not any(lock.exists() for lock in locks)


def test_whoever_compiles_is_waited_for_until_it_ends_or_dies(tmp_path: Path) -> None:
    lock, said = lock_of(tmp_path), list[str]()
    command = [sys.executable, "-c", HOLDS, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "holds\n"
        waits = threading.Thread(target=compile_locks.remove_stale, args=(tmp_path, False, said.append))
        waits.start()
        time.sleep(1)
        assert lock.exists()
        assert waits.is_alive()
        holder.kill()
        waits.join(20)
    assert not lock.exists()
    assert said[0] == f"waits for the process that compiles in {lock.parent}"
    baton = FileBaton(str(lock))
    assert baton.try_acquire()  # torch compiles again
    baton.release()


def test_a_lock_that_another_machine_may_hold_is_left_while_it_is_young(tmp_path: Path) -> None:
    lock, said = lock_of(tmp_path), list[str]()
    lock.touch()

    def at(what: str) -> None:
        said.append(what)
        os.utime(lock, (time.time() - 3600,) * 2)  # an hour passes

    compile_locks.remove_stale(tmp_path, True, at)
    assert len(said) == 1
    assert not lock.exists()
