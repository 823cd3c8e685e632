"""The pool over engines in real Ray actors."""

import json
import subprocess
import sys

from tests.ray.conftest import ROOT, TIMEOUT_S


def test_killed_and_stopped_engines_lose_nothing_and_dead_ones_are_quoted() -> None:
    command = [sys.executable, "-m", "tests.ray.pool_on_ray"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    killed = results["killed"]
    assert killed["hash"] == results["undisturbed"]["hash"]
    assert killed["lost"] >= 2  # a machine that is slow enough may have one more given up
    assert killed["serving"] == 1
    assert killed["resumed"] > 0
    assert "1 engines in a row could not start; engine-0: its process" in results["talking"]["error"]
    assert "its last lines:\n  segmentation fault in a kernel" in results["talking"]["error"]
    assert "RuntimeError: no device" in results["refusing"]["error"]
