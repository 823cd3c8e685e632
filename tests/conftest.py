"""Fixtures of all tests: the example rows, and a tiny model built once a session from examples/tiny."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A shell makes its background jobs ignore SIGINT, and child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # more processes than cores: a thread that waits must not spin
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # set before it is read: otherwise model names are looked up on the hub
REPO = Path(__file__).resolve().parents[1]
TINY = REPO / "examples" / "tiny"

# The same examples in every run: a failure in CI can be repeated here.
settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return REPO


@pytest.fixture(scope="session")
def tokenizer_dir() -> Path:
    """Folder with tokenizer and config, without weights."""
    return TINY


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that loads: examples/tiny and seeded random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY)).save_pretrained(folder)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TINY / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def sums_rows() -> list[dict[str, Any]]:
    """The first rows of examples/sums."""
    lines = (REPO / "examples" / "sums" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:500]]
