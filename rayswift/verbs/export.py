"""`rayswift export`: a checkpoint with an adapter -> a model folder that transformers and vLLM load as it is.

    rayswift export --model runs/lora --merge_lora

Merging is done on the CPU, in the base model's own number format, and needs memory for its weights once.
The folder appears under its name only when it is whole.
"""

import json
import shutil
from pathlib import Path

from transformers.utils import logging as transformers_logging

from rayswift.config.load import Invocation, to_yaml
from rayswift.config.schema import ExportSection
from rayswift.log import UserError, logger
from rayswift.model.find import FoundModel, find_model, load_tokenizer, stop_token_ids
from rayswift.model.kind.kinds import look
from rayswift.run.checkpoint import model_folder

_CRITIC = "critic"  # beside the policy of task ppo


def run(invocation: Invocation) -> None:
    """Write the model folder.

    Raises:
        UserError: nothing to do, no adapter, no base model, or the output folder is taken.
    """
    section: ExportSection = invocation.config.export
    if not section.merge_lora:
        raise UserError("export.merge_lora = False: nothing to do; give --merge_lora")
    folder = model_folder(Path(section.model)).resolve()
    if not (folder / "adapter_config.json").exists():
        raise UserError(f"export.model = {section.model!r}: {folder} has no adapter to merge")
    beside = folder.with_name(f"merged-{folder.name}")
    output = Path(section.output_dir).absolute() if section.output_dir else beside
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"export.output_dir = {str(output)!r} is not empty; choose another with --output_dir")
    model = find_model(str(folder), "export.model", fetch=not invocation.dry_run, base=section.base)
    packed = look(str(model.weights))
    if packed and packed.quantization:
        raise UserError(
            f"the base model of {folder}, {str(model.weights)!r}, has weights quantised by {packed.quantization}, into "
            "which nothing is merged; name the model that they were made from with --base"
        )
    if invocation.dry_run:
        print(to_yaml(invocation.config))  # noqa: T201
        print(f"would merge {model} into {output}")  # noqa: T201
        return
    transformers_logging.disable_progress_bar()
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        merge(model, partial)
        partial.replace(output)
    except OSError as error:
        raise UserError(f"merging {model} into {output} failed: {error}", exit_code=1) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("merged model: %s", output)


def merge(model: FoundModel, folder: Path) -> None:
    """Add an adapter to its base weights; save weights, tokenizer, chat template, generation config, and the files by
    which sentence-transformers loads an embedding or a reranker; and the critic beside it, as it is."""
    from peft import PeftModel

    from rayswift.model import generation_config
    from rayswift.model.heads import class_of_adapter

    network, settings = class_of_adapter(model.adapter, model.folder)
    base = network.from_pretrained(model.weights, dtype="auto", **settings)
    generation_config.mend(base)
    merged = PeftModel.from_pretrained(base, model.folder).merge_and_unload(safe_merge=True)
    tokenizer = load_tokenizer(model)
    if merged.can_generate():
        merged.generation_config.eos_token_id = stop_token_ids(model, tokenizer) or None
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _copy_modules(model.folder, folder)
    if (model.folder / _CRITIC).is_dir():
        shutil.copytree(model.folder / _CRITIC, folder / _CRITIC)


def _copy_modules(source: Path, folder: Path) -> None:
    listed = source / "modules.json"
    if not listed.exists():
        return
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        shutil.copyfile(source / name, folder / name)
    for module in json.loads(listed.read_text(encoding="utf-8")):
        if module["path"]:
            shutil.copytree(source / module["path"], folder / module["path"])
