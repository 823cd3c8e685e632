"""Hashes of what a run is made from besides its config: model, tokenizer, rows and the user's own code."""

import hashlib
import json
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rayswift.config.fields.tuners import looks_at_rows
from rayswift.config.schema import DataConfig, RlhfConfig, TrainingConfig
from rayswift.data.cache.fingerprint import FileContent, SourceContent, by_stamp, contents
from rayswift.files import write_whole
from rayswift.log import UserError, logger
from rayswift.run.checkpoint import model_folder


def fingerprint(config: TrainingConfig, tokenizer_hash: str, num_rows: int, own_code: str) -> dict[str, Any]:
    """What must be unchanged when a run is continued, besides its config."""
    found = {"model": _model_hash(config), "tokenizer": tokenizer_hash, "rows": num_rows} | weights_hashes(config)
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
    """A hash of what the initial weights are made from; None if they also depend on rows."""
    if looks_at_rows(config.model):
        return None
    parts = [config.model.model_dump(mode="json"), _model_hash(config), config.train.seed, config.train.task]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


def weights_hashes(config: TrainingConfig) -> dict[str, str]:
    """Hashes over samples of all weights in local folders, of the model and of those beside it.

    Reading all bytes would take as long as loading them. A model from the hub has its revision in the config.
    """
    model = config.model
    own, beside = [model.path, *model.adapters], list[str | None]()
    if isinstance(config, RlhfConfig):
        own += [config.model.reference] if config.model.reference else []
        beside += [*config.model.reference_adapters, config.model.teacher, *config.model.teacher_adapters]
        beside += [config.model.critic_path, *config.rollout.reward_models]
    found = {"weights": _sampled(own), "weights beside the model": _sampled(name for name in beside if name)}
    return {name: sample for name, sample in found.items() if sample}


def _sampled(names: Iterable[str]) -> str:
    """A hash over the weights in these folders, empty if there are none."""
    folders = [_holding_weights(Path(name)) for name in names]
    files = [f for folder in folders for f in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])]
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with open(file, "rb") as stream:
            for number in range(_SAMPLES):
                stream.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16] if files else ""


def _holding_weights(folder: Path) -> Path:
    """The folder itself, or the result of a run folder."""
    return model_folder(folder) if (folder / "config.yaml").exists() else folder


SOURCES = "sources.json"


def record_sources(data: DataConfig, run_dir: Path, known: tuple[SourceContent, ...]) -> threading.Thread | None:
    """Write the hashes of all source files to `sources.json`, in a thread: a run does not wait for terabytes.

    known: hashes of an earlier launch, reused for files that have not changed. With `data.cache` it does nothing.
    """
    if data.cache:
        return None

    def record() -> None:
        try:
            found = contents(data.dataset, by_stamp(known))
            write_whole(run_dir / SOURCES, json.dumps([asdict(source) for source in found], indent=1))
        except (OSError, UserError) as error:
            logger.warning("the hashes of the rows were not written, so a resume cannot compare the rows: %s", error)

    thread = threading.Thread(target=record, daemon=True)
    thread.start()
    return thread


def read_sources(run_dir: Path) -> tuple[SourceContent, ...]:
    """The content of `sources.json`; empty if it is missing or unreadable."""
    try:
        noted = json.loads((run_dir / SOURCES).read_text(encoding="utf-8"))
        return tuple(
            SourceContent(**{**each, "files": tuple(FileContent(**file) for file in each["files"])}) for each in noted
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ()
