"""The encoder of each family of rows; pure."""

import json
from functools import cache

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import Encoder
from rayswift.data.encode.families.members import KtoEncoder, PreferenceEncoder
from rayswift.data.encode.families.prompts import PromptEncoder
from rayswift.data.encode.families.rerankers import RerankerEncoder
from rayswift.data.encode.families.texts import ClassificationEncoder, EmbeddingEncoder

_ENCODERS: dict[str, type[Encoder]] = {
    "causal": Encoder,
    "preference": PreferenceEncoder,
    "kto": KtoEncoder,
    "classification": ClassificationEncoder,
    "prompt": PromptEncoder,
    "embedding": EmbeddingEncoder,
    "reranker": RerankerEncoder,
}


def encoder_of(config: EncodeConfig) -> Encoder:
    """The encoder of a family of rows."""
    return _ENCODERS[config.family](config)


@cache
def cached_encoder(config_json: str) -> Encoder:
    """The process's encoder for a config given as JSON: a data task encodes many windows with one."""
    return encoder_of(EncodeConfig(**json.loads(config_json)))
