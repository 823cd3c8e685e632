"""`--model` (a run, a checkpoint, a model folder or a hub id) -> the files to load.

The checkpoint of an adapter has no base weights; they are in the model that `adapter_config.json` names.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rayswift.data.hub_files import FILES_WITH_BINS, MODEL_FILES, download, is_hub_id
from rayswift.data.tokenizer.loaded import load
from rayswift.log import UserError
from rayswift.model.adapters import misfit
from rayswift.model.size.parameters import read_header
from rayswift.run.checkpoint import model_folder

_ADAPTER = "adapter_config.json"
_GENERATION = "generation_config.json"
_MARK = "rayswift"


@dataclass(frozen=True)
class FoundModel:
    """A local model. weights: folder of the full or base weights; adapter: config of the adapter, or empty."""

    folder: Path
    weights: Path
    adapter: dict[str, Any]

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer that the model was trained with."""
        return self.folder if (self.folder / "tokenizer_config.json").exists() else self.weights

    def __str__(self) -> str:
        if not self.adapter:
            return str(self.folder)
        kind = self.adapter.get("peft_type", "LORA")
        return f"{self.folder} ({'LoRA' if kind == 'LORA' else kind} on {self.weights})"


def find_model(name: str, setting: str, fetch: bool = True, base: str | None = None) -> FoundModel:
    """Find a model, and the base model of an adapter.

    setting: the field with the name; fetch: download hub models, otherwise their id stands for the folder; base: the
    base model, if the adapter's config does not name the right one. Raise UserError if a model or weights are missing.
    """
    what = f"{setting} = {name!r}"
    folder = _of_hub(name, what, fetch) if is_hub_id(name) else model_folder(name)
    if (folder / _ADAPTER).exists():
        adapter = _adapter_config(folder)
        recorded = str(adapter.get("base_model_name_or_path") or "")
        weights = _base_model(folder, recorded, setting, fetch, base)
        if problem := misfit(folder, weights):
            raise UserError(f"{_base_field(setting)} = {base!r}: {problem}" if base else f"{what}: {problem}")
        return FoundModel(folder, weights, adapter)
    if base:
        raise UserError(
            f"{_base_field(setting)} = {base!r}: {what} is not an adapter, so it has no base model; leave it out"
        )
    if folder.exists():
        _check_weights(folder, what)
    return FoundModel(folder, folder, {})


def _adapter_config(folder: Path) -> dict[str, Any]:
    """PEFT's config of an adapter; raise UserError if it is damaged, or the adapter has no weights."""
    if not any(folder.glob("adapter_model.*")):
        raise UserError(f"{folder} holds no weights of an adapter (adapter_model.safetensors)")
    try:
        return dict(json.loads((folder / _ADAPTER).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / _ADAPTER} is no JSON object: {error}; copy or download it again") from error


def _base_model(folder: Path, recorded: str, setting: str, fetch: bool, given: str | None) -> Path:
    # Initial weights are in the run folder, which may have moved since the path was recorded.
    beside = folder.resolve().parent / "init"
    field = _base_field(setting)
    if Path(recorded).name == "init" and (beside / "config.json").exists():
        if given:
            raise UserError(f"{field} = {given!r}: {folder} was trained on {beside}, which its run made; leave it out")
        return beside
    name, what = given or recorded, f"the base model of {folder}, {recorded!r} by its {_ADAPTER},"
    if given:
        what = f"{field} = {given!r}"
    if is_hub_id(name):
        return _of_hub(name, what, fetch)
    if not (Path(name) / "config.json").exists():
        raise UserError(f"{what} is not a model folder here; name the folder or hub id of that model with --base")
    _check_weights(Path(name), what)
    return Path(name)


def _base_field(setting: str) -> str:
    return f"{setting.partition('.')[0]}.base"


def _check_weights(folder: Path, what: str) -> None:
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        read_header(file)
    if not files and not any(folder.glob("pytorch_model*.bin")):
        raise UserError(f"{what} holds no weights (*.safetensors in {folder})")


def _of_hub(name: str, what: str, fetch: bool) -> Path:
    if not fetch:
        return Path(name)
    folder = download(name, MODEL_FILES, what)
    return folder if any(folder.glob("*.safetensors")) else download(name, FILES_WITH_BINS, what)


def load_tokenizer(model: FoundModel, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer; raise UserError if there is none."""
    tokenizer: PreTrainedTokenizerBase = load(model.tokenizer, trust_remote_code, str(model.tokenizer))
    return tokenizer


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, system: str | None) -> list[int]:
    """Token ids of a prompt, rendered by the chat template if there is one; `system` needs a template."""
    if tokenizer.chat_template:
        turns = [{"role": "system", "content": system}] if system else []
        text = _render(tokenizer, [*turns, {"role": "user", "content": prompt}], generate=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if system:
        raise UserError("infer.system: the model has no chat template to put it into; leave it out")
    return list(tokenizer(prompt)["input_ids"])


def stop_token_ids(model: FoundModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: of the tokenizer, of the generation config, and the end of a turn in the template.

    A base model that was trained with a chat template often names the last one nowhere else.
    """
    found: set[int] = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    for folder in {model.folder, model.weights}:
        if (folder / _GENERATION).exists():
            try:
                eos = GenerationConfig.from_pretrained(folder).eos_token_id
            except OSError as error:
                raise UserError(f"{folder / _GENERATION} is no JSON; delete it, or copy it again") from error
            found.update([eos] if isinstance(eos, int) else eos or [])
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "-"}, {"role": "assistant", "content": _MARK}]
        behind = _render(tokenizer, turns, generate=False).rpartition(_MARK)[2]
        first = tokenizer(behind, add_special_tokens=False)["input_ids"][:1]
        added = tokenizer.added_tokens_decoder
        found.update(token for token in first if token in added and added[token].special)
    return sorted(found)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], generate: bool) -> str:
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    except (jinja2.TemplateError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(f"the model's chat template refuses a conversation of {roles}: {error}") from error
    return text
