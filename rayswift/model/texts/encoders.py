"""Which models are encoders, by their `config.json`, and how many tokens a model takes; pure."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayswift.config.model import ModelConfig
from rayswift.model.kind.kinds import ENCODERS

# Their first token has position pad_token_id + 1.
_OFFSET = (
    *("camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
)


def read_config(folder: Path) -> dict[str, Any]:
    """A model's `config.json`; empty if there is none."""
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return config


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether the model's tokens see each other both ways."""
    if config.get("use_bidirectional_attention"):
        return True
    if config.get("model_type") in ENCODERS:
        return not config.get("is_decoder", False)
    # Of code that the folder brings itself.
    return any(name.endswith("ForMaskedLM") for name in config.get("architectures") or ())


def num_positions(config: Mapping[str, Any]) -> int | None:
    """Tokens of the longest text that the model has positions for; None: unknown, or there is no limit."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return None
    if config.get("model_type") not in _OFFSET:
        return positions
    padding = config.get("pad_token_id")
    return positions - (1 if padding is None else int(padding)) - 1


def stretched_positions(model: ModelConfig) -> int | None:
    """Positions of a model in a folder, stretched as its section of the config says; None: not known."""
    config = read_config(Path(model.path))
    positions = num_positions(config.get("text_config", config))
    scaling = model.rope_scaling or {}
    return model.max_position_embeddings or (positions and int(positions * scaling.get("factor", 1)))
