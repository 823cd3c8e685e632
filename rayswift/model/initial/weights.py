"""Initial weights that differ from those of `model.path`, written once into the run folder.

Random weights, an embedding with rows for new tokens, a longer context, merged adapters, or an adapter whose
initialisation changes the base weights. Rank 0 writes them before the training, so that every rank, ZeRO stage, resumed
run and later user loads the same files.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from rayswift.config.fields.tuners import is_initialised_before
from rayswift.config.model import ModelConfig
from rayswift.config.tasks import Head
from rayswift.data.sequence.windows import PackedRow
from rayswift.log import UserError, logger
from rayswift.model import generation_config, heads, tuners, whole
from rayswift.model.adapters import adapter_folder
from rayswift.model.initial import adapter as initial_adapter
from rayswift.model.initial import blocks
from rayswift.run import checkpoint
from rayswift.run.folder import RECIPE

_ORIGINAL = "original_max_position_embeddings"


def write(
    model: ModelConfig,
    tokenizer_dir: Path,
    folder: Path,
    seed: int,
    head: Head = "causal_lm",
    rows: Sequence[PackedRow] = (),
    recipe: str | None = None,
) -> None:
    """Write the weights to `folder`, atomically.

    rows: for an adapter that is initialised from rows; recipe: a hash by which a later launch knows that it would
    write the same weights.
    """
    torch.manual_seed(seed)
    architecture = AutoConfig.from_pretrained(
        model.path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        **heads.settings(model, head),
    )
    _stretch(architecture.get_text_config(), model)
    network: PreTrainedModel
    if model.random_init:
        network = heads.CLASSES[head].from_config(architecture, dtype=torch.float32)
    else:
        options: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        network, _ = whole.load(heads.CLASSES[head], model.path, config=architecture, dtype="auto", **options)
    generation_config.mend(network)
    if model.new_special_tokens:
        _add_rows(network, tokenizer_dir)
        if model.tuner != "full" and not model.modules_to_save:
            logger.info("the rows of new tokens are frozen; model.modules_to_save trains the embedding too")
    for name in model.adapters[:-1]:
        adapter = adapter_folder(name)
        logger.info("merging the adapter %s into the weights", adapter)
        network = whole.merged(whole.put_on(network, adapter))
    if model.new_blocks:
        network = blocks.expand(network, model.new_blocks)
    partial = folder.with_name(f"{folder.name}.partial")
    checkpoint.set_aside(partial, "a process that was killed left it half-written")
    if is_initialised_before(model):
        network = initial_adapter.write(network, model, head, partial / tuners.INITIAL, folder, rows)
    network.save_pretrained(partial)
    if recipe:
        (partial / RECIPE).write_text(recipe, encoding="utf-8")
    partial.replace(folder)


def _stretch(text: Any, model: ModelConfig) -> None:
    """Set rotary scaling and positions; if only one is given, derive the other."""
    if not model.rope_scaling and not model.max_position_embeddings:
        return
    positions, scaling = text.max_position_embeddings, dict(model.rope_scaling or {})
    if scaling:
        if "rope_type" not in (text.to_dict().get("rope_parameters") or {}):
            raise UserError(
                f"model.rope_scaling: {model.path} has no rotary parameters that all its layers share; change its "
                "config.json instead",
                exit_code=1,
            )
        wanted = model.max_position_embeddings or positions
        factor = scaling.setdefault("factor", float(max(1, math.ceil(wanted / positions))))
        if scaling["rope_type"] in ("yarn", "longrope", "llama3"):
            scaling.setdefault(_ORIGINAL, positions)
        text.rope_parameters = {**text.rope_parameters, **scaling}
        positions = int(positions * factor)
    text.max_position_embeddings = model.max_position_embeddings or positions


def _add_rows(network: PreTrainedModel, tokenizer_dir: Path) -> None:
    """Add embedding rows for the new tokens, drawn around the mean of the others, if there are too few rows."""
    num_tokens = len(AutoTokenizer.from_pretrained(tokenizer_dir))
    num_rows = network.get_input_embeddings().num_embeddings
    if num_tokens > num_rows:
        network.resize_token_embeddings(num_tokens)
        logger.info("the embedding grows from %d to %d rows", num_rows, num_tokens)
