"""The lock of a run folder: one launch at a time.

The lock is a file that names its holder; the holder's heartbeat rewrites it. A second launch on the same machine looks
for the holder's process. On another machine it waits for a heartbeat: a lock whose file does not change is free. No
clocks are compared, and the lock works on every storage that can read and write files.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import psutil

from rayswift.data.filesystem import is_url
from rayswift.log import UserError, logger
from rayswift.run.url_files import Remote

NAME = ".lock"
_FIELD = "train.output_dir"
_TRIES = 50


@dataclass(frozen=True)
class Holder:
    """The process that holds a run folder. machine: its boot and pid namespace; started_s: since the epoch."""

    host: str
    pid: int
    started_s: float
    machine: str
    token: str
    beat: int = 0

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started_s))
        return f"pid {self.pid} on {self.host}, since {since}"


def this_process() -> Holder:
    machine = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    process = psutil.Process()
    return Holder(socket.gethostname(), process.pid, process.create_time(), machine, uuid.uuid4().hex)


class Folder:
    """The lock file in a folder, local or shared.

    field: with its name; beat_s: time between heartbeats; settle_s: time until a write is visible to all.
    """

    def __init__(self, folder: Path, beat_s: float = 4.0, settle_s: float = 0.1, field: str = _FIELD):
        self.where, self.field = str(folder), field
        self.beat_s, self.settle_s = beat_s, settle_s
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.field} = {self.where!r} cannot be written: {error.strerror}") from error

    def read(self) -> bytes | None:
        try:
            return (self._folder / NAME).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, content: bytes) -> None:
        partial = self._folder / f"{NAME}.{os.getpid()}"
        try:
            partial.write_bytes(content)
            partial.replace(self._folder / NAME)
        except OSError as error:
            raise UserError(f"{self.field} = {self.where!r} cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        (self._folder / NAME).unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other launches of this machine from reading and writing the lock file."""
        try:
            descriptor = os.open(self._folder, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{self.field} = {self.where!r} cannot be read: {error.strerror}") from error
        try:
            for _ in range(_TRIES):  # bounded: a launch that is stopped (SIGSTOP) may hold it for ever
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.1)
                except OSError:  # some file systems have no flock; `settle_s` is then the only protection
                    break
            yield
        finally:
            os.close(descriptor)


class Url:
    """The lock file behind a URL; fields as in `Folder`."""

    def __init__(self, remote: Remote):
        self.where, self.field, self.beat_s, self.settle_s = remote.url, _FIELD, 15.0, 1.0
        self._remote = remote

    def read(self) -> bytes | None:
        return self._remote.read(NAME) if self._remote.has(NAME) else None

    def write(self, content: bytes) -> None:
        self._remote.write(NAME, content)

    def remove(self) -> None:
        self._remote.remove(NAME)

    def alone(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


Place = Folder | Url


def held(output_dir: str, field: str = _FIELD) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of the folder of a field while the block runs; raise UserError if another launch has or takes it.

    Only `train.output_dir` may be a URL.
    """
    place = Url(Remote(output_dir)) if is_url(output_dir) else Folder(Path(output_dir).resolve(), field=field)
    return hold(place, this_process())


@contextlib.contextmanager
def hold(place: Place, mine: Holder, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
    acquire(place, mine, sleep)
    heart = _Heart(place, mine)
    try:
        yield
    except KeyboardInterrupt:
        if heart.lost:
            raise UserError(heart.lost, exit_code=1) from None
        raise
    finally:
        heart.stop()


_BEATS_WATCHED = 5


def acquire(place: Place, mine: Holder, sleep: Callable[[float], None] = time.sleep) -> None:
    """Take the lock; raise UserError if a living process holds it."""
    with place.alone():
        theirs = _read(place)
        if theirs:
            state = examine(mine, theirs)
            if state == "alive" or (state == "unknown" and _shows_life(place, theirs, sleep)):
                raise _taken(place, theirs)
            logger.info("%s was held by %s, which is gone", place.where, theirs)
        place.write(_record(mine))
        sleep(place.settle_s)
        now = _read(place)
    if now is None or now.token != mine.token:
        raise _taken(place, now or mine)


def examine(mine: Holder, theirs: Holder) -> Literal["alive", "dead", "unknown"]:
    """Whether another holder lives, as far as this machine's process table tells."""
    if not mine.machine or mine.machine != theirs.machine:
        return "unknown"
    try:
        is_same = abs(psutil.Process(theirs.pid).create_time() - theirs.started_s) < 1
    except psutil.NoSuchProcess:
        return "dead"
    return "alive" if is_same else "dead"


def _shows_life(place: Place, theirs: Holder, sleep: Callable[[float], None]) -> bool:
    watched_s = _BEATS_WATCHED * place.beat_s
    logger.info("%s is held by %s; waiting up to %.0f s for its heartbeat", place.where, theirs, watched_s)
    for _ in range(2 * _BEATS_WATCHED):
        sleep(place.beat_s / 2)
        now = _read(place)
        if now is None:
            return False  # the holder ended and removed its lock
        if now != theirs:
            return True
    return False


def _taken(place: Place, holder: Holder) -> UserError:
    return UserError(
        f"{place.field} = {place.where!r} is in use by another launch ({holder}); wait for its end, or choose another "
        f"--{place.field}"
    )


def _record(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _read(place: Place) -> Holder | None:
    """The holder; None also for a record that was cut off."""
    content = place.read()
    try:
        return Holder(**json.loads(content)) if content else None
    except (ValueError, TypeError):
        return None


class _Heart:
    """A thread that writes heartbeats, and interrupts this process if another launch takes the lock."""

    def __init__(self, place: Place, mine: Holder):
        self.lost = ""
        self._place, self._mine = place, mine
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the heartbeat, and remove the lock if it is still ours."""
        self._stopped.set()
        self._thread.join(timeout=30)
        with contextlib.suppress(UserError, OSError):
            now = _read(self._place)
            if now and now.token == self._mine.token:
                self._place.remove()

    def _run(self) -> None:
        while not self._stopped.wait(self._place.beat_s):
            try:
                now = _read(self._place)
                if now and now.token != self._mine.token:
                    self.lost = f"this launch lost {self._place.where!r} to another one ({now}) and ends"
                    logger.error("%s", self.lost)
                    os.kill(os.getpid(), signal.SIGINT)  # also interrupts a main thread that waits
                    return
                self._mine = replace(self._mine, beat=self._mine.beat + 1)
                self._place.write(_record(self._mine))
            except (UserError, OSError) as error:  # storage that is unreachable for a moment
                logger.debug("no heartbeat: %s", error)
