"""Modules that start at once: processes forked from one that has done the imports (`preloaded`).

A run on two cores spends up to nine seconds in imports; the suite starts some sixty runs and a dozen references. What a
module does behind its imports is what `python -m` does.
"""

import atexit
import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.ray.preloaded"])


class Forked:
    """A running `python -m MODULE`; the few methods of `subprocess.Popen` that tests use.

    Args:
        module: Run as `__main__`.
        argv: Words behind the module.
        environment: All of the process's environment variables.
        cwd: Its working directory.
        num_threads: Of torch, which reads OMP_NUM_THREADS when it is imported only; None leaves them.
    """

    def __init__(
        self, module: str, argv: list[str], environment: dict[str, str], cwd: Path, num_threads: int | None = None
    ):
        self.args = [module, *argv]
        self._output = tempfile.NamedTemporaryFile(prefix="rayswift-", suffix=".out")  # noqa: SIM115
        self._process = _CONTEXT.Process(
            target=_run_module, args=(module, argv, environment, self._output.name, str(cwd), num_threads)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Exit code, None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to the command."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0, self.printed().encode())
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Its output, once it has ended; as for `wait`."""
        self.wait(timeout)
        return self.printed(), None

    def printed(self) -> str:
        """Its output so far, standard error included."""
        return Path(self._output.name).read_text(encoding="utf-8", errors="replace")


def _run_module(
    module: str, argv: list[str], environment: dict[str, str], output: str, cwd: str, num_threads: int | None
) -> None:
    with open(output, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = [module, *argv]
    # Ray read its settings when it was imported, before this environment.
    importlib.import_module("ray._raylet").Config.initialize("")
    if num_threads:
        importlib.import_module("torch").set_num_threads(num_threads)
    code = 0
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # A forked process ends without them, and Ray is shut down by one.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
