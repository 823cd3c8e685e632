"""How a command ends on SIGINT, SIGTERM or SIGHUP, exit code 128 + the signal's number.

The main thread gets a `KeyboardInterrupt` and unwinds. This can fail: the exception is raised in a destructor and
ignored, or the thread is in one long call of compiled code. The sender of the signal soon kills the process (`ray job
stop` after 3 s, `docker stop` after 10 s). So a second thread, which gets every signal at once, ends the process if
unwinding takes too long or a second signal comes.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ORDERLY_S = 2.0
# `timeout` signals its child and then the child's process group: both count as one signal.
_SAME_WISH_S = 1.0


@dataclass
class _State:
    """The state of this process. number: of the first signal, 0 before it."""

    number: int = 0
    raised: bool = False
    shutting_down: bool = False
    before: dict[int, Any] = field(default_factory=dict)
    wakeup: int | None = None
    watches_forks: bool = False
    starts_ray: bool = False
    unhurried: threading.Event = field(default_factory=threading.Event)
    last_words: list[Callable[[], None]] = field(default_factory=list)
    telling: threading.Lock = field(default_factory=threading.Lock)


_state = _State()
_forking = threading.local()


def listen() -> None:
    """From now on a signal ends this process in order; ignored signals (`nohup`) stay ignored. Main thread only."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            _state.before.setdefault(number, signal.signal(number, _interrupt))
    if _state.wakeup is None:
        readable, _state.wakeup = os.pipe()
        os.set_blocking(_state.wakeup, False)
        signal.set_wakeup_fd(_state.wakeup, warn_on_full_buffer=False)
        if not _state.watches_forks:
            os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
            _state.watches_forks = True
        threading.Thread(target=_watch, args=(readable,), name="signals", daemon=True).start()


def stop_listening() -> None:
    """Restore the signal handlers that were set before `listen`."""
    for number, handler in _state.before.items():
        signal.signal(number, handler)
    _state.before.clear()
    if _state.wakeup is not None:
        signal.set_wakeup_fd(-1)
        os.close(_state.wakeup)
        _state.wakeup = None


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep our handlers while the block calls `ray.init`, which sets a handler for SIGTERM that calls `sys.exit`.

    Ray's processes get their own process groups: a signal to the command's group (`timeout`, Ctrl-C, a scheduler)
    would end them first, and Ray's C++ then holds this process in one call, or aborts it.
    """
    listening = _state.wakeup is not None
    _state.starts_ray = True
    try:
        yield
    except SystemExit as error:
        if not listening:
            raise
        _state.number = _state.number or signal.SIGTERM
        raise KeyboardInterrupt from error
    finally:
        _state.starts_ray = False
        if listening:
            listen()


def asked_to_end() -> bool:
    """Whether a signal came."""
    return bool(_state.number)


def exit_code() -> int:
    """The exit code of an interrupted command."""
    return 128 + (_state.number or signal.SIGINT)


@contextlib.contextmanager
def last_words(write: Callable[[], None]) -> Iterator[None]:
    """Within the block, `write` is called in another thread if the process is ended without unwinding."""
    _state.last_words.append(write)
    try:
        yield
    finally:
        _state.last_words.remove(write)


def take_time() -> None:
    """From now on the end may take any time, to save results; a second signal still ends the process at once."""
    _state.unhurried.set()


def tell() -> None:
    """Print the last line; from now on the output of libraries and child processes is dropped."""
    with _state.telling:
        if _state.shutting_down:
            return
        _state.shutting_down = True
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        with contextlib.suppress(OSError):  # the terminal is closed
            os.write(2, b"interrupted\n")
        silence()


def silence() -> None:
    """Drop all further output on stdout and stderr."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)


def leave(code: int) -> None:
    """End this process and its children at once, with this exit code.

    Ray's own shutdown takes seconds, and aborts the process if a thread still waits for Ray. A run puts every file that
    it keeps in place by one rename, so it can end at any moment.
    """
    import psutil  # not at the top: until it is loaded, signals would be missed

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    os._exit(code)


def _before_fork() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    """Forget the pipe of the parent: otherwise a pool that terminates its workers would end the run."""
    if _state.starts_ray:
        os.setpgid(0, 0)
    stop_listening()
    _after_fork()


def _interrupt(number: int, frame: FrameType | None) -> None:
    _state.number = _state.number or number
    if not _state.raised:  # a second one would interrupt the unwinding
        _state.raised = True
        raise KeyboardInterrupt


def _watch(readable: int) -> None:
    """Wait for a signal, then for the end of the process."""
    numbers: list[int] = []
    while not numbers:
        received = os.read(readable, 64)
        if not received:
            return os.close(readable)
        numbers = [number for number in received if number in _SIGNALS]
    _state.number = _state.number or numbers[0]
    began = time.monotonic()
    while _state.unhurried.is_set() or time.monotonic() - began < _ORDERLY_S:
        if select.select([readable], [], [], 0.1)[0]:
            again = any(number in _SIGNALS for number in os.read(readable, 64))
            if again and time.monotonic() - began > _SAME_WISH_S:
                break
    for write in reversed(_state.last_words):
        with contextlib.suppress(Exception):  # the process ends even if they fail
            write()
    tell()
    leave(exit_code())
