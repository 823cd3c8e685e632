"""Settings of texts (embedding, seq_cls, reranker) that the config leaves to the model's folder; pure.

A folder of sentence-transformers has pooling, prompts, length and the use of a chat template. An encoder without such
files has the defaults of sentence-transformers. Values that the user sets win, and the plan shows the difference.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rayswift.config.schema import SftConfig, TrainingConfig
from rayswift.data.encode.config import RowKind
from rayswift.data.tokenizer.folder import read_chat_template
from rayswift.data.tokenizer.folder import read_config as read_tokenizer_config
from rayswift.model.kind.kinds import is_encoder, num_positions, read_config
from rayswift.model.texts.sentence_files import Kind, SentenceFiles, pooling_modes, read, read_for

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)

KINDS: dict[str, Kind] = {"embedding": "SentenceTransformer", "seq_cls": "CrossEncoder", "reranker": "CrossEncoder"}
"""Task -> class of sentence-transformers."""
MODES = {"last_token": "lasttoken"}
"""Values of `model.pooling` with another name in sentence-transformers."""
_HAS_NO_LIMIT = 1 << 24


def files_of(config: TrainingConfig, source: Path) -> SentenceFiles | None:
    """The settings of a folder of sentence-transformers for the task; None: there are none. Raises as `read_for`."""
    kind = KINDS.get(config.train.task)
    return read_for(source, kind) if kind else None


def settled(config: ConfigT, source: Path) -> ConfigT:
    """The config with open text settings filled in. source: folder of the model's small files."""
    if config.train.task not in KINDS:
        return config
    files, given = files_of(config, source), config.data.model_fields_set
    data: dict[str, Any] = {}
    if "truncation" not in given:
        data["truncation"] = "right"
    if "max_length" not in given:
        data["max_length"] = default_length(config, source)
    if "use_chat_template" not in given:
        has_template = bool(config.model.chat_template or read_chat_template(source)[0])
        data["use_chat_template"] = has_template and (files is None or files.takes_messages)
    model: dict[str, Any] = {}
    if config.train.task == "embedding" and files is None:
        if config.model.pooling == "auto":
            model["pooling"] = "mean" if is_encoder(read_config(source)) else "last_token"
        if config.model.normalize is None:
            model["normalize"] = True
    sections = {"data": config.data.model_copy(update=data), "model": config.model.model_copy(update=model)}
    return config.model_copy(update=sections)


def default_length(config: TrainingConfig, source: Path) -> int:
    """`data.max_length` if it is not given: its default, or the limit of the folder or encoder."""
    files = files_of(config, source)
    default = int(type(config.data).model_fields["max_length"].default)
    if files is None and not is_encoder(read_config(source)):
        return default
    return min(default, own_length(files, source) or default)


def own_length(files: SentenceFiles | None, source: Path) -> int | None:
    """The length to which sentence-transformers cuts texts: of the folder, the tokenizer or the positions."""
    if files is not None and files.max_seq_length:
        return files.max_seq_length
    own = read_tokenizer_config(source).get("model_max_length")
    limits = [int(own)] if isinstance(own, int | float) and 1 < own < _HAS_NO_LIMIT else []
    positions = num_positions(read_config(source))
    return min([*limits, *([positions] if positions else [])], default=None)


def row_texts(kind: RowKind, config: TrainingConfig, source: Path) -> RowKind:
    """The row kind with the folder's prompts and the use of the chat template."""
    kind = replace(kind, renders=config.data.use_chat_template)
    files = files_of(config, source)
    if files is None:
        return kind
    prompts = files.prompts if config.train.task == "embedding" else (files.default_prompt, "")
    pools_prompt = files.pooling is None or bool(files.pooling.settings.get("include_prompt", True))
    return replace(kind, prompts=prompts, pools_prompt=pools_prompt, lowers=files.lowers)


def problems(config: TrainingConfig, source: Path) -> list[str]:
    """One line for each setting that contradicts the folder's modules."""
    if not isinstance(config, SftConfig) or config.train.task != "embedding":
        return []
    files, hidden = files_of(config, source), read_config(source).get("hidden_size")
    found = []
    if files and files.pooling and config.model.pooling != "auto":
        modes = pooling_modes(files.pooling.settings)
        if len(modes) > 1 and any(module.kind == "Dense" for module in files.modules):
            found.append(
                f"model.pooling = {config.model.pooling} gives a vector that the folder's Dense does not take: its own "
                f"is {' + '.join(modes)}; leave it at auto"
            )
    width = files.width(hidden) if files and hidden else hidden
    if width and any(not 0 < dim <= width for dim in config.train.matryoshka_dims):
        found.append(
            f"train.matryoshka_dims = {config.train.matryoshka_dims}: the model's embeddings have {width} numbers; "
            f"name 1 to {width}"
        )
    return found


def remarks(config: TrainingConfig, source: Path) -> list[str]:
    """Lines of the plan about texts, and differences from the folder's settings."""
    if config.train.task not in KINDS:
        return []
    data, files = config.data, files_of(config, source)
    cut = {"drop": "left out", "left": "cut on the left", "right": "cut on the right"}.get(data.truncation, "split")
    rendered = "rendered by the chat template" if data.use_chat_template else "as the tokenizer makes them"
    lines = [f"  texts         {rendered}, of up to {data.max_length} tokens, longer ones {cut}"]
    if files is None:
        if config.train.task == "embedding":
            whole = "scaled to length 1" if config.model.normalize else "not scaled"
            lines.append(f"  embedding     {config.model.pooling} pooling, {whole}")
        other = read(source)
        if other:
            lines.append(f"  not used      what {source.name} has as a {other.kind}: the task has a head of its own")
        return lines
    if config.train.task == "embedding":
        modules = ", ".join(_shown(module) for module in files.modules) or "none"
        lines.append(f"  embedding     modules of the folder: {modules}")
    prompts = [repr(prompt) for prompt in dict.fromkeys(files.prompts) if prompt]
    if prompts:
        lines.append(f"  prompts       of the folder: {', '.join(prompts)}")
    return lines + [f"  set against   the folder: {what}" for what in against(config, files, source)]


def against(config: TrainingConfig, files: SentenceFiles, source: Path) -> list[str]:
    """User settings that differ from the folder's."""
    model, data, found = config.model, config.data, []
    if files.pooling and model.pooling != "auto":
        modes = pooling_modes(files.pooling.settings)
        if modes != (MODES.get(model.pooling, model.pooling),):
            found.append(f"model.pooling = {model.pooling}, it has {' + '.join(modes)}")
    if config.train.task == "embedding" and model.normalize not in (None, files.normalizes):
        found.append(f"model.normalize = {model.normalize}, it has {files.normalizes}")
    prompt = files.prompts[0] if config.train.task == "embedding" else files.default_prompt
    if data.system is not None and data.system != prompt:
        found.append(f"data.system = {data.system!r}, its prompt is {prompt!r}")
    if data.max_length != default_length(config, source):
        found.append(f"data.max_length = {data.max_length}, its max_seq_length is {own_length(files, source)}")
    if data.use_chat_template and not files.takes_messages:
        found.append("data.use_chat_template = True, it takes texts")
    return found


def _shown(module: Any) -> str:
    if module.kind == "Pooling":
        prompt = "" if module.settings.get("include_prompt", True) else " without the prompt"
        return f"{' + '.join(pooling_modes(module.settings))} pooling{prompt}"
    if module.kind == "Dense":
        return f"Dense {module.settings['in_features']} to {module.settings['out_features']}"
    return str(module.kind)
