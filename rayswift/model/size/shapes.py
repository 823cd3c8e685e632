"""Names and shapes of a model's parameters, without its weights and without torch in the driver.

For families in `BY_NAME` they come from the headers of safetensors files, local or on the hub, or (`PLAIN`) from
`config.json`. For all other families another process builds the model on torch's meta device, which takes 7.6 s on two
cores, nearly all of it imports.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayswift.config.model import ModelConfig
from rayswift.config.tasks import Head
from rayswift.log import UserError, logger
from rayswift.model.adapters import target_problem
from rayswift.model.size.parameters import BY_NAME, PLAIN, SIZES, read_header

Shapes = dict[str, tuple[int, ...]]
"""Name of each parameter -> its shape."""

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_BUILD_S = 600
_USERS = "rayswift.log.UserError: "
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception|Exit|Interrupt): ")


@dataclass(frozen=True)
class Found:
    """A model's `config.json` and shapes. num_trainable (of its adapter), num_quantizable: None if shapes show them."""

    config: dict[str, Any]
    shapes: Shapes
    num_trainable: int | None = None
    num_quantizable: int | None = None


def find(model: ModelConfig, head: Head) -> Found:
    """Config and shapes of a model in a folder or on the hub, with the head of the task.

    Raise OSError with the reason if the model is missing or cannot be built, and UserError if it is of a type that
    `transformers` does not know, or an adapter's modules are not in it.
    """
    folder, fetch = Path(model.path), None
    if not folder.is_dir():
        from rayswift.model.size import shapes_on_hub

        folder, fetch = shapes_on_hub.folder_and_headers(model.path, model.revision)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shapes = None
    if config.get("model_type") in BY_NAME and all(name in config for name in SIZES):
        # Tensors in files are sorted by name, but `freeze_ratio` needs the model's order.
        if not model.random_init and "quantization_config" not in config and not model.freeze_ratio:
            shapes = stored(folder) or (fetch() if fetch else None)
        shapes = shapes or written_out(config)
    if shapes is None:
        return built(folder, head, model)
    if head in ("reward", "classes"):
        shapes["score.weight"] = (model.num_labels or 1 if head == "classes" else 1, config["hidden_size"])
    if config.get("tie_word_embeddings") or head != "causal_lm":
        shapes.pop("lm_head.weight", None)
    if head == "none":  # the model without a head, whose files may be those of one with a head
        shapes = {name.removeprefix("model."): shape for name, shape in shapes.items()}
    output = ["lm_head"] if head == "causal_lm" else []  # tied, it has no weight of its own
    parts = [name.split(".")[:-1] for name in shapes]
    modules = {".".join(each[:end]) for each in parts for end in range(1, len(each) + 1)}
    matrices = {name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) > 1}
    _refuse_targets(model, [*modules, *output], [*matrices, *output])
    return Found(config, shapes)


def _refuse_targets(model: ModelConfig, modules: Sequence[str], matrices: Sequence[str]) -> None:
    """Raise UserError if a new adapter is for modules that the model does not have."""
    problem = "" if model.tuner == "full" or model.adapters else target_problem(model, modules, matrices)
    if problem:
        raise UserError(problem)


def stored(folder: Path) -> Shapes | None:
    """Shapes from the headers of safetensors files; None if there are none; raise UserError if one is not complete."""
    if (folder / _WHOLE).exists():
        files: Iterable[str] = [_WHOLE]
    elif (folder / _INDEX).exists():
        files = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        return None
    found: Shapes = {}
    for name in files:
        if not (folder / name).exists():
            raise UserError(f"{folder / _INDEX} names {name}, which is not there; copy or download it again")
        found |= {tensor: tuple(header["shape"]) for tensor, header in read_header(folder / name).items()}
    return found


def written_out(config: dict[str, Any]) -> Shapes | None:
    """Shapes from the `config.json` of a plain decoder, in the model's order; None for another family."""
    if config.get("model_type") not in PLAIN:
        return None
    try:
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        layers, heads, vocab = config["num_hidden_layers"], config["num_attention_heads"], config["vocab_size"]
    except KeyError:
        return None  # only `transformers` knows the defaults
    family = config["model_type"]
    has_biases = bool(config.get("attention_bias")) and family in ("llama", "qwen3")
    head_dim = config.get("head_dim") or (128 if family == "qwen3" else hidden // heads)
    kv_heads = config.get("num_key_value_heads") or heads
    queries, keys = heads * head_dim, kv_heads * head_dim
    layer: Shapes = {}
    for name, out in (("q", queries), ("k", keys), ("v", keys)):
        layer[f"self_attn.{name}_proj.weight"] = (out, hidden)
        if has_biases or family == "qwen2":
            layer[f"self_attn.{name}_proj.bias"] = (out,)
    layer["self_attn.o_proj.weight"] = (hidden, queries)
    if has_biases:
        layer["self_attn.o_proj.bias"] = (hidden,)
    if family == "qwen3":
        layer |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        layer[f"mlp.{name}_proj.weight"] = shape
        if config.get("mlp_bias") and family == "llama":
            layer[f"mlp.{name}_proj.bias"] = (shape[0],)
    layer |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    found: Shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    found |= {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    found["model.norm.weight"] = (hidden,)
    return found if config.get("tie_word_embeddings") else found | {"lm_head.weight": (vocab, hidden)}


def built(folder: Path, head: Head, model: ModelConfig) -> Found:
    """Shapes of any family, from another process; raise OSError if the model cannot be built within ten minutes."""
    given = model.model_dump_json(include=set(ModelConfig.model_fields))
    command = [sys.executable, "-m", "rayswift.model.size.built_on_meta", str(folder), head, given]
    logger.info("counting the parameters of %s in another process, without weights", model.path)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_S, check=True)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"building the model of {folder}/config.json took longer than {_BUILD_S} s") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if _EXCEPTION.match(line)]
        if lines and lines[-1].startswith(_USERS):
            raise UserError(lines[-1].removeprefix(_USERS)) from error
        reason = lines[-1] if lines else f"exit code {error.returncode}"
        raise OSError(f"no model can be built from {folder}/config.json ({reason})") from error
    result = json.loads(done.stdout.splitlines()[-1])
    shapes = {name: tuple(shape) for name, shape in result["shapes"].items()}
    _refuse_targets(model, result["modules"], result["matrices"])
    if result["adapter_problem"]:
        raise OSError(f"PEFT makes no adapter of {folder}/config.json ({result['adapter_problem']})")
    return Found(result["config"], shapes, result["num_trainable"], result["num_quantizable"])
