"""Commands that start at once: processes forked from one that has done the imports (`preloaded`).

A run on two cores spends up to nine seconds in imports; the suite starts some sixty runs. What a command does from
`rayswift.cli.main` on is what it does when a user starts it.
"""

import atexit
import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.ray.preloaded"])


class Forked:
    """A running `rayswift` command; the few members of `subprocess.Popen` that tests use.

    Args:
        argv: Words behind `rayswift`.
        environment: All of the command's environment variables.
        cwd: Its working directory.
    """

    def __init__(self, argv: list[str], environment: dict[str, str], cwd: Path):
        self.args = ["rayswift", *argv]
        self._output = tempfile.NamedTemporaryFile(prefix="rayswift-", suffix=".out")  # noqa: SIM115
        self._process = _CONTEXT.Process(target=_command, args=(argv, environment, self._output.name, str(cwd)))
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

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0, self.printed().encode())
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it printed, once it has ended; as for `wait`."""
        self.wait(timeout)
        return self.printed(), None

    def printed(self) -> str:
        """What it has printed so far, standard error too."""
        return Path(self._output.name).read_text(encoding="utf-8", errors="replace")


def _command(argv: list[str], environment: dict[str, str], output: str, cwd: str) -> None:
    with open(output, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["rayswift", *argv]
    # Ray read its settings when it was imported, before this environment.
    importlib.import_module("ray._raylet").Config.initialize("")
    code = 1
    try:
        importlib.import_module("rayswift.cli").main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    # A forked process ends without them, and Ray is shut down by one.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
