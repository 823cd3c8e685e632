"""What a run is made from beside its config: the content of model, tokenizer, rows and the user's own code."""

import hashlib
import json
from pathlib import Path
from typing import Any

from rayswift.config.schema import TrainingConfig
from rayswift.config.tuner_fields import looks_at_rows
from rayswift.train import user_code


def fingerprint(config: TrainingConfig, tokenizer_hash: str, num_rows: int) -> dict[str, Any]:
    """What a continued run must find unchanged beside its config: model, tokenizer, data."""
    found = {"model": _model_hash(config), "tokenizer": tokenizer_hash, "rows": num_rows}
    own_code = user_code.content_hash(config)
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
