"""One launch at a time per run folder: a record of who holds it, kept alive by a heartbeat.

The record tells a second launch whom it would disturb. A holder on this machine is looked up among its processes. One
elsewhere is given time to show a sign of life: its heartbeat changes the record. Clocks are not compared, and a holder
that was killed holds nothing for longer than that. It works wherever files can be read and written: on a shared folder
and behind a URL.
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
from typing import Literal, Protocol

import psutil

from rayswift.data.filesystem import is_url
from rayswift.log import UserError, logger
from rayswift.run.url_files import Remote

NAME = ".lock"
_TRIES = 50


@dataclass(frozen=True)
class Holder:
    """Who holds a run folder; `machine`: of which boot and pid namespace; `started_s`: the process, since the epoch."""

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
    """This process as a holder."""
    machine = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    process = psutil.Process()
    return Holder(socket.gethostname(), process.pid, process.create_time(), machine, uuid.uuid4().hex)


class Place(Protocol):
    """Where the record lies. beat_s: between heartbeats; settle_s: until what another has written is seen."""

    where: str
    beat_s: float
    settle_s: float

    def read(self) -> bytes | None:
        """The record, or None."""

    def write(self, content: bytes) -> None:
        """Replace the record."""

    def remove(self) -> None:
        """Remove it."""

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep others from looking and writing meanwhile, where the storage can do that."""


class Folder:
    """A folder of a file system, local or shared."""

    def __init__(self, folder: Path, beat_s: float = 4.0, settle_s: float = 0.1):
        self.where, self.beat_s, self.settle_s = str(folder), beat_s, settle_s
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"train.output_dir = {self.where!r} cannot be written: {error.strerror}") from error

    def read(self) -> bytes | None:
        """See Place."""
        try:
            return (self._folder / NAME).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, content: bytes) -> None:
        """See Place."""
        partial = self._folder / f"{NAME}.{os.getpid()}"
        try:
            partial.write_bytes(content)
            partial.replace(self._folder / NAME)
        except OSError as error:
            raise UserError(f"train.output_dir = {self.where!r} cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        """See Place."""
        (self._folder / NAME).unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """See Place."""
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            for _ in range(_TRIES):  # another launch looks for a moment; one that is stopped is not waited for
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.1)
                except OSError:  # not every file system can: then `settle_s` must do
                    break
            yield
        finally:
            os.close(descriptor)


class Url:
    """What lies behind a URL."""

    def __init__(self, remote: Remote):
        self.where, self.beat_s, self.settle_s = remote.url, 15.0, 1.0
        self._remote = remote

    def read(self) -> bytes | None:
        """See Place."""
        return self._remote.read(NAME) if self._remote.has(NAME) else None

    def write(self, content: bytes) -> None:
        """See Place."""
        self._remote.write(NAME, content)

    def remove(self) -> None:
        """See Place."""
        self._remote.remove(NAME)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """See Place."""
        yield


def held(output_dir: str) -> contextlib.AbstractContextManager[None]:
    """Hold `train.output_dir` while the block runs.

    Raises:
        UserError: another launch holds it; or, at the block's end, one has taken it over meanwhile.
    """
    place = Url(Remote(output_dir)) if is_url(output_dir) else Folder(Path(output_dir).resolve())
    return hold(place, this_process())


@contextlib.contextmanager
def hold(place: Place, mine: Holder, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Hold a place as `mine` while the block runs; see `held`."""
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
    """Become the holder.

    Raises:
        UserError: another one is, and lives.
    """
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
    """What can be said of another holder at once."""
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
            return False  # it has ended
        if now != theirs:
            return True
    return False


def _taken(place: Place, holder: Holder) -> UserError:
    return UserError(
        f"train.output_dir = {place.where!r} is in use by another launch ({holder}); wait for its end, or choose "
        "another --train.output_dir"
    )


def _record(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _read(place: Place) -> Holder | None:
    """The holder; a record that is cut off has none."""
    content = place.read()
    try:
        return Holder(**json.loads(content)) if content else None
    except (ValueError, TypeError):
        return None


class _Heart:
    """Beats in a thread; ends the run when another launch has taken the folder over."""

    def __init__(self, place: Place, mine: Holder):
        self.lost = ""
        self._place, self._mine = place, mine
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more, and give the place back if it is still held."""
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
                    os.kill(os.getpid(), signal.SIGINT)  # wakes what waits, too
                    return
                self._mine = replace(self._mine, beat=self._mine.beat + 1)
                self._place.write(_record(self._mine))
            except (UserError, OSError) as error:  # a storage that is away for a while
                logger.debug("no heartbeat: %s", error)
