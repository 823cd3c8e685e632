"""The curve of `tests.policy_rank` on any number of ranks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def curve(out_dir: Path, size: int, *flags: str, passes: int = 2) -> list[dict[str, float]]:
    """The curve that `tests.policy_rank` writes, with this number of ranks."""
    out_dir.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.policy_rank", str(out_dir)]
    task = ("--train.task", "ppo", "--num_ppo_epochs") if "ppo" in flags else ("--num_iterations",)
    iterations = (*task, str(passes)) if passes > 1 else ()
    given = (*iterations, "--micro_batch_tokens", "40", *(flag for flag in flags if flag != "ppo"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(size), port, *given],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    for rank in ranks:
        out, _ = rank.communicate(timeout=300)
        assert rank.returncode == 0, out
    found: list[dict[str, float]] = json.loads((out_dir / "curve.json").read_text())
    return found
