"""The adapter that `rayswift sample` samples with: engines serve it over the model's own weights."""

from dataclasses import replace
from pathlib import Path

from rayswift.config.model import ModelConfig
from rayswift.engines.vllm.setup import EngineSetup, adapter_obstacles
from rayswift.model.adapters import adapter_folder, folder_problems, served_config

_MERGE = "merge with rayswift export --merge_lora, and name the result in model.path"


def problems(model: ModelConfig) -> list[str]:
    """Return why engines cannot serve the model's adapters, a line each; empty: they can, or there are none."""
    found = folder_problems("model.adapters", model.adapters, Path(model.path))
    if found or not model.adapters:
        return found
    if len(model.adapters) > 1:
        return [f"model.adapters: engines serve one adapter, not {len(model.adapters)}; {_MERGE}"]
    folder = adapter_folder(model.adapters[0])
    obstacles = adapter_obstacles(served_config(folder))
    return [f"model.adapters: vLLM cannot serve {folder} with {', '.join(obstacles)}; {_MERGE}"] if obstacles else []


def with_own_weights(setup: EngineSetup, model: ModelConfig) -> EngineSetup:
    """Return the setup of engines that serve the weights at `model.path`, with the adapter if there is one."""
    if not model.adapters:
        return replace(setup, load_format="auto", lora_rank=None)
    folder = adapter_folder(model.adapters[0])
    return replace(setup, load_format="auto", adapter=str(folder.absolute()), lora_rank=served_config(folder)["r"])
