"""`rayswift export`: a checkpoint with an adapter -> a model folder that transformers and vLLM can load.

    rayswift export --model runs/lora --merge_lora

It merges on the CPU, in `export.dtype`, by default that of the base model, and needs memory for its weights once. The
folder is written atomically.
"""

import shutil
from pathlib import Path

from transformers.utils import logging as transformers_logging

from rayswift.config.load import Invocation, to_yaml
from rayswift.config.schema import ExportSection
from rayswift.files import disk_is_full
from rayswift.log import UserError, logger
from rayswift.model.find import FoundModel, find_model, load_tokenizer, stop_token_ids
from rayswift.model.kind.kinds import look
from rayswift.model.texts import sentence_files
from rayswift.run.checkpoint import model_folder

_CRITIC = "critic"  # beside the policy of task ppo


def run(invocation: Invocation) -> None:
    """Write the model folder; raise UserError for bad input or a folder that is not empty."""
    section: ExportSection = invocation.config.export
    if not section.merge_lora:
        raise UserError("export.merge_lora = False: nothing to do; give --merge_lora")
    folder = model_folder(section.model).resolve()
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
            f"the base model of {folder}, {str(model.weights)!r}, has weights quantised by {packed.quantization}, and "
            "adapters cannot be merged into those; name the model that they were made from with --base"
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
        merge(model, partial, section.trust_remote_code, section.dtype)
        partial.replace(output)
    except Exception as error:
        if not isinstance(error, OSError) and not disk_is_full(error):
            raise
        raise UserError(f"merging {model} into {output} failed: {error}", exit_code=1) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("merged model: %s", output)


def merge(model: FoundModel, folder: Path, trust_remote_code: bool = False, dtype: str = "auto") -> None:
    """Add an adapter to its base weights, and save a complete model: also tokenizer, generation config, the files of
    sentence-transformers, and a critic."""
    from rayswift.model import generation_config, whole
    from rayswift.model.heads import class_of_adapter

    network, settings = class_of_adapter(model.adapter, model.folder)
    settings |= {"dtype": dtype, "trust_remote_code": trust_remote_code}
    base, _ = whole.load(network, str(model.weights), **settings)
    generation_config.mend(base)
    merged = whole.merged(whole.put_on(base, model.folder))
    tokenizer = load_tokenizer(model, trust_remote_code)
    if merged.can_generate():
        merged.generation_config.eos_token_id = stop_token_ids(model, tokenizer) or None
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sentence_files.copy(model.folder, folder)
    if (model.folder / _CRITIC).is_dir():
        shutil.copytree(model.folder / _CRITIC, folder / _CRITIC)
