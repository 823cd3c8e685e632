"""Whether a model is an encoder, and its number of positions, from its `config.json`; pure."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayswift.config.model import ModelConfig
from rayswift.model.kind.kinds import ENCODERS

# Families whose first token has position pad_token_id + 1.
_OFFSET = (
    *("camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
)


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return config


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether attention is bidirectional."""
    if config.get("use_bidirectional_attention"):
        return True
    if config.get("model_type") in ENCODERS:
        return not config.get("is_decoder", False)
    # For a model with code in its own folder.
    return any(name.endswith("ForMaskedLM") for name in config.get("architectures") or ())


def num_positions(config: Mapping[str, Any]) -> int | None:
    """Length of the longest text; None: unknown or unlimited."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return None
    if config.get("model_type") not in _OFFSET:
        return positions
    padding = config.get("pad_token_id")
    return positions - (1 if padding is None else int(padding)) - 1


def stretched_positions(model: ModelConfig) -> int | None:
    """Positions of a model in a folder, with the config's rotary scaling; None: unknown."""
    config = read_config(Path(model.path))
    positions = num_positions(config.get("text_config", config))
    scaling = model.rope_scaling or {}
    return model.max_position_embeddings or (positions and int(positions * scaling.get("factor", 1)))
