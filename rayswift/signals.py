"""How a command ends on SIGINT, SIGTERM or SIGHUP, exit code 128 + the signal's number.

The main thread gets a `KeyboardInterrupt` and unwinds. That may come to nothing: it raises in a destructor and is
swallowed, or the thread sits in one long call of compiled code. Whoever sent the signal kills soon (`ray job stop`
after 3 s, `docker stop` after 10 s), so a thread looks on, which a signal reaches at once: where the end takes too
long, or a second signal comes, it ends the process itself.
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
# `timeout` signals its child and then the child's process group: that is one wish.
_SAME_WISH_S = 1.0


@dataclass
class _State:
    """Of this process. number: of the first signal, 0 before it."""

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
    """From here on a signal ends this process in order; ignored ones (`nohup`) stay so. Main thread only."""
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
    """The command is done; what a signal does is again what it did before."""
    for number, handler in _state.before.items():
        signal.signal(number, handler)
    _state.before.clear()
    if _state.wakeup is not None:
        signal.set_wakeup_fd(-1)
        os.close(_state.wakeup)
        _state.wakeup = None


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Around `ray.init`, which puts a handler of its own for SIGTERM, one that calls `sys.exit`.

    Ray's processes get process groups of their own: a signal to the command's group (`timeout`, Ctrl-C, a scheduler)
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
    """Of an interrupted command."""
    return 128 + (_state.number or signal.SIGINT)


@contextlib.contextmanager
def last_words(write: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `write` is called if the process is ended without unwinding; from another thread."""
    _state.last_words.append(write)
    try:
        yield
    finally:
        _state.last_words.remove(write)


def take_time() -> None:
    """The end may last from here on, for what must not be lost; a second signal still ends it at once."""
    _state.unhurried.set()


def tell() -> None:
    """The last line on the screen: from here on what libraries and children print goes nowhere."""
    with _state.telling:
        if _state.shutting_down:
            return
        _state.shutting_down = True
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        with contextlib.suppress(OSError):  # a terminal that was closed
            os.write(2, b"interrupted\n")
        silence()


def silence() -> None:
    """Nothing more on stdout and stderr, whoever writes."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)


def leave(code: int) -> None:
    """End this process and everything below it, now, with this exit code.

    Ray's own shutdown takes seconds, and aborts the process where a thread still waits for Ray. All that a run keeps is
    written in one rename each, so nothing is worth waiting for.
    """
    import psutil  # not at the top: until it is loaded, a signal would not be heard

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
    """The pipe is the parent's: a pool that terminates its workers would end the run."""
    if _state.starts_ray:
        os.setpgid(0, 0)
    stop_listening()
    _after_fork()


def _interrupt(number: int, frame: FrameType | None) -> None:
    _state.number = _state.number or number
    if not _state.raised:  # a second one would cut the unwinding short
        _state.raised = True
        raise KeyboardInterrupt


def _watch(readable: int) -> None:
    """Wait for a signal, then for the end that it asks for."""
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
        with contextlib.suppress(Exception):  # the process ends, whatever they meet
            write()
    tell()
    leave(exit_code())
