"""`rayswift sample --adapters`: which adapters engines serve, and the setup of those engines."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rayswift.config.model import ModelConfig
from rayswift.engines.engine import SamplingSettings
from rayswift.engines.vllm.setup import EngineSetup, require_model
from rayswift.log import UserError
from rayswift.rollout.sampling.adapter import problems, with_own_weights


def adapter(folder: Path, name: str = "q_proj.lora_A.weight", **config: Any) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4} | config))
    save_file({f"base_model.model.{name}": torch.zeros(4, 8)}, folder / "adapter_model.safetensors")
    return str(folder)


def test_a_lora_is_served_over_the_weights_of_the_model(tmp_path: Path) -> None:
    model = ModelConfig(path="m", adapters=[adapter(tmp_path / "a")])
    assert problems(model) == []
    setup = with_own_weights(EngineSetup("m", SamplingSettings(1.0), 64), model)
    assert (setup.load_format, setup.lora_rank, setup.adapter) == ("auto", 4, str(tmp_path / "a"))
    plain = with_own_weights(EngineSetup("m", SamplingSettings(1.0), 64, lora_rank=8), ModelConfig(path="m"))
    assert (plain.load_format, plain.lora_rank, plain.adapter) == ("auto", None, None)


@pytest.mark.parametrize(
    ("name", "config", "why"),
    [
        ("q_proj.lora_A.weight", {"use_dora": True}, "use_dora"),
        ("q_proj.ia3_l", {"peft_type": "IA3"}, "peft_type IA3"),
        ("embed_tokens.weight", {}, "modules_to_save"),
    ],
)
def test_what_vllm_cannot_serve_is_to_be_merged(name: str, config: dict[str, Any], why: str, tmp_path: Path) -> None:
    (line,) = problems(ModelConfig(path="m", adapters=[adapter(tmp_path / "a", name, **config)]))
    assert line.startswith(f"model.adapters: vLLM cannot serve {tmp_path / 'a'} with {why}; merge with rayswift export")


def test_several_adapters_and_folders_without_one(tmp_path: Path) -> None:
    one, other = adapter(tmp_path / "a"), adapter(tmp_path / "b")
    (line,) = problems(ModelConfig(path="m", adapters=[one, other]))
    assert line.startswith("model.adapters: engines serve one adapter, not 2; merge")
    (line,) = problems(ModelConfig(path="m", adapters=["gone"]))
    assert "'gone' is not a folder here" in line


def test_an_engine_names_the_adapter_that_its_node_lacks(tmp_path: Path) -> None:
    setup = EngineSetup(str(tmp_path), SamplingSettings(1.0), 64, adapter=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"model\.adapters = .*gone is no folder on"):
        require_model(setup)
