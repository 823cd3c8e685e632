"""Two trainers on one machine by turns: a few steps of one while the other is stopped, then the other way round.

A machine's speed drifts by a tenth within a minute, as much as what is measured. What a trainer keeps running beside
itself, Ray's processes above all, is stopped with it, so each has the machine to itself.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from transformers import TrainerCallback

STEPS_OF_A_TURN = 2
TIMES = "turns.json"
CALLBACK = "tests.bench.turns:Turns"
DEADLINE_S = 900


class Turns(TrainerCallback):
    """Stops its process behind every turn; at the end writes the seconds of each step into the output folder."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._began = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Let the clock begin."""
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """A step lasts from here to the next one's end, its log entry and its rows included."""
        self._seconds.append(time.monotonic() - self._began)
        if state.global_step % STEPS_OF_A_TURN == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        self._began = time.monotonic()

    def on_train_end(self, args: Any, *_: Any, **__: Any) -> None:
        """Write them."""
        Path(args.output_dir, TIMES).write_text(json.dumps(self._seconds))


class Player:
    """A trainer with `Turns`, and what it started."""

    def __init__(self, command: list[str], root: Path, environment: dict[str, str]):
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._command = command
        self._process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )

    def play(self) -> bool:
        """Let it run for a turn; whether it goes on behind it.

        Raises:
            SystemExit: it failed, or did not stop in time.
        """
        tree = psutil.Process(self._process.pid)
        for process in [*tree.children(recursive=True), tree]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        signal.signal(signal.SIGALRM, self._give_up)
        signal.alarm(DEADLINE_S)
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        signal.alarm(0)
        if os.WIFSTOPPED(status):
            for process in tree.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGSTOP)
            return True
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode:
            raise SystemExit(f"{' '.join(self._command)}\n{self._read_log()}")
        return False

    def _read_log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def _give_up(self, *_: Any) -> None:
        raise SystemExit(f"{' '.join(self._command)}: no turn ended within {DEADLINE_S} s\n{self._read_log()}")


def step_seconds(commands: list[tuple[list[str], Path]], root: Path) -> list[list[float]]:
    """Seconds of each step of each trainer.

    Args:
        commands: Each trainer's, with its output folder; each begins when those before it have had a turn.
        root: Where they run.
    """
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count()), "PYTHONPATH": paths}
    playing = []
    for command, _ in commands:
        playing.append(Player(command, root, environment))
        playing[-1].play()
    while playing:
        playing = [player for player in playing if player.play()]
    return [json.loads((folder / TIMES).read_text()) for _, folder in commands]
