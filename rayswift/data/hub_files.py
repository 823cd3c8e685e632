"""Download a model's files from the hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from rayswift.log import UserError, first_line

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def download(name: str, patterns: Sequence[str], what: str, revision: str | None = None) -> Path:
    """Download the files of a hub model that match `patterns`; returns their folder.

    what: the setting and its value, for the error; revision: branch, tag or commit, None: the newest.
    """
    from huggingface_hub import snapshot_download

    if not HUB_ID.fullmatch(name):
        raise UserError(f"{what} is no folder here, and no hub id (org/name)")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # whatever the hub's client raises, the user asked for this id
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{what} is no folder here, and cannot be downloaded from the hub: {reason}") from error
