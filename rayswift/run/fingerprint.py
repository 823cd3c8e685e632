"""What a run is made from beside its config: the content of model, tokenizer, rows and the user's own code."""

import hashlib
import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rayswift.config.fields.tuners import looks_at_rows
from rayswift.config.schema import DataConfig, RlhfConfig, TrainingConfig
from rayswift.data.cache.fingerprint import FileContent, SourceContent, by_stamp, contents
from rayswift.log import UserError, logger


def fingerprint(config: TrainingConfig, tokenizer_hash: str, num_rows: int, own_code: str) -> dict[str, Any]:
    """What a continued run must find unchanged beside its config: model, tokenizer, data, the user's own code."""
    found = {"model": _model_hash(config), "tokenizer": tokenizer_hash, "rows": num_rows}
    if sample := _weights_sample(config):
        found["weights"] = sample
    return found | ({"loss, plugins and rewards": own_code} if own_code else {})


def _model_hash(config: TrainingConfig) -> str:
    folder = Path(config.model.path)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    described = "".join(f"{path.name} {path.stat().st_size}\n" for path in files)
    model_config = folder / "config.json"
    if model_config.exists():
        described += model_config.read_text(encoding="utf-8")
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def initial_recipe(config: TrainingConfig) -> str | None:
    """What the initial weights are made from, where that is known before the rows are; None: they depend on rows."""
    if looks_at_rows(config.model):
        return None
    parts = [config.model.model_dump(mode="json"), _model_hash(config), config.train.seed, config.train.task]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


def _weights_sample(config: TrainingConfig) -> str:
    """A hash over samples of all weights in local folders: whole, they would take as long to read as to load."""
    model = config.model
    reference = [config.model.reference] if isinstance(config, RlhfConfig) and config.model.reference else []
    digest = hashlib.sha256()
    files = [file for name in (model.path, *model.adapters, *reference) for file in _weights_of(Path(name))]
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with open(file, "rb") as stream:
            for number in range(_SAMPLES):
                stream.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16] if files else ""


def _weights_of(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]) if folder.is_dir() else []


# ---- the rows ----

SOURCES = "sources.json"


def record_sources(data: DataConfig, run_dir: Path, known: tuple[SourceContent, ...]) -> threading.Thread | None:
    """Note what the sources hold, in a thread: reading terabytes must not keep a run from starting.

    Args:
        data: Which sources; with `data.cache` the cache says what it was made from.
        run_dir: Where `sources.json` is written once all is read.
        known: What was read before.
    """
    if data.cache:
        return None

    def record() -> None:
        try:
            found = contents(data.dataset, by_stamp(known))
            partial = run_dir / f"{SOURCES}.partial"
            partial.write_text(json.dumps([asdict(source) for source in found], indent=1), encoding="utf-8")
            partial.replace(run_dir / SOURCES)
        except (OSError, UserError) as error:
            logger.warning("the hashes of the rows were not written, so a resume cannot compare the rows: %s", error)

    thread = threading.Thread(target=record, daemon=True)
    thread.start()
    return thread


def read_sources(run_dir: Path) -> tuple[SourceContent, ...]:
    """What `record_sources` noted; empty: nothing yet, or by a version that did not."""
    try:
        noted = json.loads((run_dir / SOURCES).read_text(encoding="utf-8"))
        return tuple(
            SourceContent(**{**each, "files": tuple(FileContent(**file) for file in each["files"])}) for each in noted
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ()
