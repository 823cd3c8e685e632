"""The encoder of each row family; pure."""

import json
from functools import cache

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import Encoder
from rayswift.data.encode.families.preferences import KtoEncoder, PreferenceEncoder
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
    """A new encoder for the config's row family."""
    return _ENCODERS[config.family](config)


@cache
def cached_encoder(config_json: str) -> Encoder:
    """The encoder for a config given as JSON, made once in a process: a data task encodes many windows."""
    return encoder_of(EncodeConfig(**json.loads(config_json)))
