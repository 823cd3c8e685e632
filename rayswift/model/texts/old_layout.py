"""Models on the hub in sentence-transformers' old layout, where the model itself is in a subfolder."""

from typing import Any

from rayswift.config.reading.paths import first_module
from rayswift.data.hub_files import FILES_WITH_BINS, download, is_hub_id
from rayswift.data.tokenizer.training_copy import model_files

_MODULES = ("*.json", "*_*/model.safetensors", "*_*/pytorch_model.bin")


def at_first_module_of_hub(config: Any) -> Any:
    """The config with a hub model of sentence-transformers as a local folder, downloaded, if it has the old layout.

    Only there is the model in a subfolder, which `transformers` finds by no id; see `paths.first_module`.
    """
    model = config.model
    if not is_hub_id(model.path) or (within := first_module(folder := model_files(model))) == folder:
        return config
    within = within.relative_to(folder)
    patterns = [*_MODULES, *(f"{within}/{pattern}" for pattern in FILES_WITH_BINS)]
    path = download(model.path, patterns, f"model.path = {model.path!r}", model.revision) / within
    return config.model_copy(update={"model": model.model_copy(update={"path": str(path), "revision": None})})
