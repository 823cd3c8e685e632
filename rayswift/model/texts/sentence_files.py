"""The settings of a folder of sentence-transformers, from its JSON files; pure.

`modules.json` lists the modules of the pipeline: first the model (`Transformer`), then those that turn its states into
a vector or score. `sentence_bert_config.json` has the settings of the model, `config_sentence_transformers.json` those
of the pipeline: its class, prompts, similarity.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rayswift.log import UserError

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
# Current and old file names of the model's settings.
_TRANSFORMER_FILES = (
    TRANSFORMER,
    *(f"sentence_{name}_config.json" for name in ("roberta", "distilbert", "camembert", "albert")),
    *(f"sentence_{name}_config.json" for name in ("xlm-roberta", "xlnet")),
)
_TRAINABLE = {"SentenceTransformer": ("Pooling", "Dense", "LayerNorm", "Normalize", "Dropout"), "CrossEncoder": ()}
_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")

Kind = Literal["SentenceTransformer", "CrossEncoder"]


@dataclass(frozen=True)
class ModuleFiles:
    """A module after the model: its class, its folder within the model's, and its `config.json`."""

    kind: str
    path: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SentenceFiles:
    """A folder's modules after the model, in order; the settings of the model, and of the pipeline."""

    modules: tuple[ModuleFiles, ...]
    transformer: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.settings.get("model_type", "SentenceTransformer"))

    @property
    def takes_messages(self) -> bool:
        """Whether texts are rendered with the chat template."""
        return "message" in self.transformer.get("modality_config", {})

    @property
    def max_seq_length(self) -> int | None:
        """The length to which texts are cut; None: that of the tokenizer."""
        length = self.transformer.get("max_seq_length")
        return int(length) if length else None

    @property
    def lowers(self) -> bool:
        """Whether texts are lower-cased before the tokenizer."""
        return bool(self.transformer.get("do_lower_case", False))

    @property
    def prompts(self) -> tuple[str, str]:
        """The prompts of `encode_query` and `encode_document`."""
        named, default = self.settings.get("prompts") or {}, self.default_prompt
        query = named.get("query", default)
        document = next((named[name] for name in _DOCUMENT_PROMPTS if name in named), default)
        return query or "", document or ""

    @property
    def default_prompt(self) -> str:
        """The prompt before every text, for classes without kinds of texts."""
        return (self.settings.get("prompts") or {}).get(self.settings.get("default_prompt_name") or "") or ""

    @property
    def pooling(self) -> ModuleFiles | None:
        return next((module for module in self.modules if module.kind == "Pooling"), None)

    @property
    def normalizes(self) -> bool:
        return any(module.kind == "Normalize" for module in self.modules)

    def width(self, hidden_size: int) -> int:
        """The size of an embedding."""
        width = hidden_size
        for module in self.modules:
            if module.kind == "Pooling":
                width = hidden_size * len(pooling_modes(module.settings))
            elif module.kind == "Dense":
                width = int(module.settings["out_features"])
        return width


def pooling_modes(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The modes of a pooling module, under sentence-transformers' names; several are concatenated."""
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY_MODES.items() if settings.get(key)] or ["mean"]
    return (modes,) if isinstance(modes, str) else tuple(modes)


def _root(folder: Path) -> Path:
    """The folder with the modules of the model in `folder`: the same, or in the old layout the one above it."""
    above = folder.absolute().parent
    listed = [] if (folder / MODULES).exists() else _json(above / MODULES)
    return above if listed and listed[0].get("path") == folder.absolute().name else folder


def read(folder: Path) -> SentenceFiles | None:
    """The settings of the model in `folder`; None if there are none of sentence-transformers; raise UserError if they
    are invalid."""
    root = _root(folder)
    if not (root / MODULES).exists():
        return None
    listed: Sequence[Mapping[str, Any]] = _json(root / MODULES) or []
    first = listed[0] if listed else {"type": "nothing", "path": ""}
    if _class_of(first) != "Transformer" or (first["path"] and root == folder):
        where = f" in {first['path']}" if first["path"] else ""
        raise UserError(
            f"model.path = {str(folder)!r}: its {MODULES} begins with {_class_of(first)}{where}, and only a "
            "Transformer in the folder itself is trained, or in a local folder below it"
        )
    modules = tuple(
        ModuleFiles(_class_of(each), each["path"], _json(root / each["path"] / "config.json") or {})
        for each in listed[1:]
    )
    transformer = next((_json(folder / name) for name in _TRANSFORMER_FILES if (folder / name).exists()), None)
    return SentenceFiles(modules, transformer or {}, _json(root / SETTINGS) or {})


def read_for(folder: Path, kind: Kind) -> SentenceFiles | None:
    """The settings in a folder of this class, else None; raise UserError as `read`, or for a module of another kind."""
    files = read(folder)
    if files is None or files.kind != kind:
        return None
    for module in files.modules:
        if module.kind not in _TRAINABLE[kind]:
            raise UserError(
                f"model.path = {str(folder)!r}: its module {module.path} is a {module.kind}, which is not trained; "
                f"after the model, a {kind} may have these modules: {', '.join(_TRAINABLE[kind]) or 'none'}"
            )
    return files


def copy(source: Path, folder: Path) -> None:
    """Copy the files of sentence-transformers, if `source` has them, with the model in the folder itself."""
    root = _root(source)
    if not (root / MODULES).exists():
        return
    for place, name in ((root, SETTINGS), *((source, name) for name in _TRANSFORMER_FILES)):
        if (place / name).exists():
            shutil.copyfile(place / name, folder / name)
    first, *others = json.loads((root / MODULES).read_text(encoding="utf-8"))
    (folder / MODULES).write_text(json.dumps([first | {"path": ""}, *others], indent=2), encoding="utf-8")
    for module in others:
        if module["path"] and (root / module["path"]).is_dir():
            shutil.copytree(root / module["path"], folder / module["path"], dirs_exist_ok=True)


def activation_of(config: Mapping[str, Any]) -> str | None:
    """The activation of a reranker's score that its `config.json` names, if any."""
    named = (config.get("sentence_transformers") or {}).get("activation_fn")
    found = named or config.get("sbert_ce_default_activation_function")
    return str(found) if found else None


def _class_of(module: Mapping[str, Any]) -> str:
    return str(module["type"]).rpartition(".")[2]


def _json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
