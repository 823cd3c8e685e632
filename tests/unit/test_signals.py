"""A process gets a signal at any moment and ends; each test starts a Python of its own."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

# Behind `nohup`, where these tests may run, a hangup is ignored.
HEAD = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from rayswift import signals
signals.listen()
def main():
    {}
try:
    main()
except KeyboardInterrupt:
    print("unwound", flush=True)
    signals.tell()
    print("nobody reads this", flush=True)
    sys.exit(signals.exit_code())
"""
SLEEPS = "print('ready', flush=True); time.sleep(30)"
SWALLOWS = """
    class Careless:
        def __del__(self):
            print("ready", flush=True)
            time.sleep(30)  # what is raised here goes nowhere
    careless = Careless()
    del careless
    with signals.last_words(lambda: print("last words", flush=True)):
        time.sleep(30)
"""
COMPILED = """
    import hashlib, threading
    with signals.last_words(lambda: print("last words", flush=True)):
        threading.Timer(0.5, print, ("ready",), {"flush": True}).start()  # once the other is in compiled code
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""
UNWINDS_FOR_LONG = """
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        signals.take_time()
        print("copying", flush=True)
        time.sleep(30)
"""
HAS_A_CHILD = """
    import os, subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        print("ready", child.pid, flush=True)
        time.sleep(30)
    except KeyboardInterrupt:
        signals.tell()
        signals.leave(signals.exit_code())
"""

FORKS = """
    import multiprocessing
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    child.start()
    print("ready", flush=True)
    child.terminate()
    child.join()
    print(child.exitcode, flush=True)
    time.sleep(3)
    print("done", flush=True)
"""


OF_A_GROUP = """
    import os, subprocess
    def in_our_group():
        child = subprocess.Popen(["sleep", "30"], preexec_fn=lambda: None)  # as Ray starts its processes
        same = os.getpgid(child.pid) == os.getpgid(0)
        child.kill()
        return same
    print("ready", flush=True)
    with signals.kept():
        print(in_our_group())
    print(in_our_group())
"""


def begin(body: str) -> "subprocess.Popen[str]":
    """A process that has printed `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD.format(body)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    assert process.stdout.readline().startswith("ready")
    return process


def end(process: "subprocess.Popen[str]") -> tuple[int, str, float]:
    """Exit code, what it printed, seconds."""
    began = time.monotonic()
    limit = threading.Timer(20, process.kill)
    limit.start()
    assert process.stdout
    out = process.stdout.read()  # not `communicate`, which loses what was read behind `ready`
    code = process.wait()
    limit.cancel()
    return code, out, time.monotonic() - began


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_unwinds_the_command(number: signal.Signals, code: int) -> None:
    process = begin(SLEEPS)
    process.send_signal(number)
    assert end(process)[:2] == (code, "unwound\ninterrupted\n")


@pytest.mark.parametrize("body", [SWALLOWS, COMPILED])
def test_a_signal_that_nobody_sees_ends_the_process_all_the_same(body: str) -> None:
    process = begin(body)
    process.send_signal(signal.SIGTERM)
    code, out, seconds = end(process)
    assert code == 143
    assert out.endswith("last words\ninterrupted\n")
    assert "unwound" not in out
    assert seconds < 5


def test_a_second_signal_ends_what_takes_its_time() -> None:
    process = begin(UNWINDS_FOR_LONG)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # as `timeout` does: to the child, and to its group
    assert process.stdout
    assert process.stdout.readline() == "copying\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    process.send_signal(signal.SIGTERM)
    code, out, seconds = end(process)
    assert (code, out) == (143, "interrupted\n")
    assert seconds < 5


def test_nothing_is_left_below_it() -> None:
    process = begin(HAS_A_CHILD)
    process.send_signal(signal.SIGTERM)
    code, out, seconds = end(process)  # the child would hold the pipe open
    assert (code, out) == (143, "interrupted\n")
    assert seconds < 5


def test_the_signals_of_a_forked_child_are_its_own() -> None:
    """`multiprocessing` ends the workers of a pool by SIGTERM."""
    process = begin(FORKS)
    code, out, _ = end(process)
    assert (code, out) == (0, "-15\ndone\n")


def test_what_ray_init_starts_is_no_part_of_the_commands_process_group() -> None:
    """A signal to the group would end Ray's processes before the command has left them."""
    process = begin(OF_A_GROUP)
    assert end(process)[:2] == (0, "False\nTrue\n")


def test_an_ignored_signal_stays_ignored() -> None:
    """`nohup rayswift ...`"""
    code = "import signal; from rayswift import signals; signals.listen(); print(signal.getsignal(signal.SIGHUP).name)"
    nohup = subprocess.run(["nohup", sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert nohup.stdout == "SIG_IGN\n"


@pytest.mark.parametrize("words", ["--help", "sft --help all"])
def test_a_reader_that_has_enough_ends_the_command_in_silence(words: str) -> None:
    """`rayswift sft --help all | head -1`; a short page is written only at the end."""
    command = f"{sys.executable} -m rayswift {words} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{128 + signal.SIGPIPE}\n", "")


def test_a_full_disk_is_one_error(tmp_path: Path) -> None:
    code = """
from rayswift import cli
from rayswift.verbs import tasks
def run(_): raise OSError(28, "No space left on device")
tasks.run = run
cli.main(["tasks"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "error: the disk is full: [Errno 28] No space left on device\n")


def test_a_command_ends_without_pythons_teardown_but_behind_every_handler_of_its_end() -> None:
    """Trackers and user code register handlers; threads that are no daemons are waited for."""
    code = """
import atexit, sys, threading, time
from rayswift import cli
class Slow:
    def __del__(self): time.sleep(60)
slow = sys.modules["slow"] = Slow()
def end_late(): time.sleep(0.5); print("thread")
def main():
    atexit.register(print, "handler")
    threading.Thread(target=end_late).start()
    sys.exit(3)
cli.main = main
cli.command()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (3, "thread\nhandler\n"), done.stderr


@pytest.mark.parametrize("delay_s", [0, 1])
def test_an_example_ends_what_it_started(delay_s: int, repo: Path, tmp_path: Path) -> None:
    """`make demo`, told to end: its training ends first, in order, and its exit code is the signal's.

    delay_s: how slow the example is once its training has started.
    """
    child = tmp_path / "child.py"
    child.write_text(
        "import pathlib, signal, sys, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: ((here / 'ended').touch(), sys.exit(143)))\n"
        "(here / 'began').touch()\n"
        "time.sleep(120)\n"
    )
    code = (
        "import subprocess, sys, time\nfrom examples import demo\n"
        "class Slow(subprocess.Popen):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        f"        time.sleep({delay_s})\n"
        "subprocess.Popen = Slow\n"
        f"demo.run_child([sys.executable, {str(child)!r}])"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=repo)
    deadline = time.monotonic() + 120
    while not (tmp_path / "began").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.terminate()
    assert parent.wait(60) == 143
    assert (tmp_path / "ended").exists()
