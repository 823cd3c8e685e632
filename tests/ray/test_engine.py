"""The real vLLM engine in actors: every token's log-probability is that of the weights that sampled it.

Whatever `rollout` leaves out when it samples: the trainer computes the whole distribution at the temperature.
"""

import json
import subprocess
import sys
from pathlib import Path

from tests.ray.conftest import ROOT, TIMEOUT_S


def test_tokens_are_of_the_weights_they_say_while_weights_change(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.ray.engine_actors", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout.splitlines()[-1]):  # tied embeddings, then untied
        assert found["unloaded"] == "NoWeights"
        assert found["switched"] > 0
        assert found["flight"] < 1e-5
        assert found["finish"] == ["length"]
        assert found["stale"] == "StaleAttempt"
        assert found["aborted"] == [8, True]
        assert found["left"] == 0
        assert found["continued"] < 1e-5
        assert found["left_out"] == 0
        assert found["whole"]
        assert found["scored"] < 1e-5
        assert found["late"] == "TimeoutError"
        assert found["meanwhile"] == 8  # no sample has ended, and none took a place of the text's
        assert "cannot start" in found["cannot_start"]
        troubled = found["troubled"]
        assert troubled["seconds"]["slow"] >= 5  # of which it may be silent for 2
        assert max(troubled["errors"]) < 1e-5
        assert (troubled["lost"], troubled["failed"], troubled["requests"]) == (0, 0, 4 * 8)
        assert troubled["resumed"] > 0 == troubled["regenerated"]


def test_a_teacher_scores_tokens_as_transformers_does(tmp_path: Path) -> None:
    """At the temperature asked for, beside the likeliest tokens; also behind prefixes that the engine knows already."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ROOT / "examples/tiny")).save_pretrained(tmp_path)
    command = [sys.executable, "-m", "tests.ray.teacher_engine", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    # float32 of a vocabulary of 512
    assert max(json.loads(done.stdout.splitlines()[-1]).values()) < 1e-5
