"""What sampled rows are made from: a file is continued only with the same prompts, model and settings."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rayswift.config.load import SECRETS
from rayswift.config.schema import SampleConfig
from rayswift.data.cache import fingerprint
from rayswift.data.encode.config import RowKind
from rayswift.log import UserError
from rayswift.run.continuation import FREE
from rayswift.run.fingerprint import weights_hashes

MadeFrom = dict[str, Any]
"""Field or file -> value; plain JSON."""
_SECTIONS = ("model", "rollout", "sample")


def made_from(config: SampleConfig, tokenizer_dir: Path, kind: RowKind, own_code: str) -> MadeFrom:
    """Return what the rows of a config are made from; own_code: hash of the user's files."""
    found = fingerprint.take(config.data, tokenizer_dir, config.train.seed, kind=kind)
    made: MadeFrom = {"tokenizer": found.tokenizer, "chat template": found.template, **found.settings}
    made["data.dataset"] = [_described(source) for source in found.train]
    tree = config.model_dump(mode="json")
    for section in _SECTIONS:
        for name, value in tree[section].items():
            field = f"{section}.{name}"
            if field not in FREE and field != "sample.output_file" and name not in SECRETS:
                made[field] = value
    made |= {"rewards and plugins": own_code, **weights_hashes(config)}
    return dict(json.loads(json.dumps(made)))


def _described(source: fingerprint.SourceContent) -> str:
    """A source by its contents; its place does not count."""
    files = [f"{Path(file.name).name} {(file.sha256 or str(file.modified_ns))[:12]}" for file in source.files]
    rows = "" if source.num_rows is None else f"#{source.num_rows}"
    own = json.dumps(asdict(source)["settings"], sort_keys=True) if source.settings else ""
    return " ".join(filter(None, (", ".join(files) or source.name, rows, own)))


def progress_of(output: Path) -> Path:
    """Return the file beside an output file that holds its progress."""
    return output.with_name(f"{output.name}.progress")


def saved(output: Path) -> MadeFrom | None:
    """Return what the rows of a file were made from; None if nothing says it."""
    progress = progress_of(output)
    return json.loads(progress.read_text(encoding="utf-8")).get("made_from") if progress.exists() else None


def refuse_other(output: Path, now: MadeFrom) -> None:
    """Raise UserError with a line for each difference if a file holds rows that were made from something else."""
    was = saved(output)
    lines = fingerprint.changes(was, now) if was is not None else []
    if lines:
        raise UserError(
            f"sample.output_file = {str(output)!r} cannot be continued, because its rows were made from something "
            "else:\n  " + "\n  ".join(lines) + "\n  set it back, or name another file"
        )
