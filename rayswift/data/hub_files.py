"""Download a model's files from the hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from rayswift.log import UserError, first_line

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py", "*.tiktoken")
FILES_WITH_BINS = (*MODEL_FILES, "pytorch_model*.bin", "adapter_model.bin")


def is_hub_id(name: str) -> bool:
    """Whether a name is no path here, and may be one of the hub."""
    return not Path(name).exists() and _HUB_ID.fullmatch(name) is not None


def download(name: str, patterns: Sequence[str], what: str, revision: str | None = None) -> Path:
    """Download the files of a hub model that match `patterns`; returns their folder.

    what: the setting and its value, for the error; revision: branch, tag or commit, None: the newest.
    """
    from huggingface_hub import snapshot_download

    if not _HUB_ID.fullmatch(name):
        raise UserError(f"{what} is no folder here, and no hub id (org/name)")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # whatever the hub's client raises, the user asked for this id
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{what} is no folder here, and cannot be downloaded from the hub: {reason}") from error
