"""The logger of every process, and the exception whose message is written for the user.

The driver's lines go to stderr; a worker's lines go to `<run>/logs/<name>.log`, with its name in front.
"""

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("rayswift")


class UserError(Exception):
    """Bad input or a broken environment: what, the value, and what to do. Shown without a traceback.

    Args:
        message: One line for each problem; a line that begins with a space continues the one above.
        exit_code: 2 for bad input found before any work began, 1 for a run that failed.
    """

    def __init__(self, message: str, exit_code: int = 2):
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, int]]:
        return UserError, (str(self), self.exit_code)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def refuse(problems: Sequence[str]) -> None:
    """Raise UserError with a line for each problem, if there is one."""
    if problems:
        raise UserError("\n".join(problems))


def raise_together(*checks: Callable[[], None]) -> None:
    """Make every check, so that one problem hides no other.

    Raises:
        UserError: the lines of all that raised one, each once.
    """
    lines: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            lines += [line for line in str(error).splitlines() if line not in lines]
    refuse(lines)


@contextmanager
def announced(what: str, every_s: float = 30.0) -> Iterator[None]:
    """Report every `every_s` that a long step is still running."""
    begun, done = time.monotonic(), threading.Event()

    def run() -> None:
        while not done.wait(every_s):
            logger.info("%s goes on, %.0f s so far", what, time.monotonic() - begun)

    thread = threading.Thread(target=run, name="announced", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def setup_driver() -> None:
    """Send this process's lines to stderr, without time and name."""
    _setup(logging.StreamHandler(sys.stderr), "%(message)s")


def setup_worker(log_dir: Path, name: str) -> None:
    """Append this process's lines to `log_dir/name.log`, each with time and name."""
    log_dir.mkdir(parents=True, exist_ok=True)
    # Half of a surrogate pair, for example from a broken row, cannot be encoded: escape it to keep the line.
    handler = logging.FileHandler(log_dir / f"{name}.log", encoding="utf-8", errors="backslashreplace")
    os.utime(log_dir / f"{name}.log")  # a new time also on a file of an earlier process: this process has started
    _setup(handler, f"%(asctime)s {name} %(levelname)s %(message)s")


def quiet_libraries() -> None:
    """Remove progress bars and remarks of libraries from this process's output; warnings stay."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("ray.data", "ray.train", "DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=UserWarning, module="accelerate")


def _setup(handler: logging.Handler, fmt: str) -> None:
    handler.setFormatter(logging.Formatter(fmt, datefmt="%H:%M:%S"))
    quiet_libraries()
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
