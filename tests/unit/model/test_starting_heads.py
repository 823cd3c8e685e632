"""An adapter that is trained further brings the head of its task, and one without a head is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

from rayswift.config.model import ModelConfig
from rayswift.config.tasks import Head
from rayswift.log import UserError
from rayswift.model import heads, tuners
from rayswift.model.adapters import adapter_problems
from rayswift.model.load import load_with_drawn
from tests.support.model_folders import built

IDS = torch.arange(1, 30)[None]
HEADS: dict[Head, int] = {"reward": 1, "classes": 3, "none": 0}


def outputs(network: Any) -> torch.Tensor:
    """Of the model's head, or its last states."""
    network.eval()
    with torch.no_grad():
        found: torch.Tensor = network(IDS)[0]
    return found


def config_of(base: Path, head: Head, *adapters: Path) -> ModelConfig:
    """The section of a run."""
    named = [str(folder) for folder in adapters]
    return ModelConfig(path=str(base), tuner="lora", adapters=named, num_labels=HEADS[head] or None)


def trained(folder: Path, base: Path, head: Head) -> torch.Tensor:
    """Write an adapter of a task as its trainer does; return the model's outputs with it."""
    network, drawn = load_with_drawn(config_of(base, head), str(base), "float32", head)
    settings = tuners.new_adapter(config_of(base, head), head, network=network, drawn=drawn)
    tuned: Any = get_peft_model(network, settings)
    torch.manual_seed(3)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    tuned.save_pretrained(folder)
    return outputs(tuned)


def trainable(tuned: PeftModel) -> set[str]:
    """Names of the parameters that are trained."""
    return {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("head", HEADS)
def test_training_goes_on_with_the_head(kind: str, head: Head, tmp_path: Path) -> None:
    base = built(kind, tmp_path / "base")
    expected = trained(tmp_path / "adapter", base, head)
    config = config_of(base, head, tmp_path / "adapter")
    assert adapter_problems(config, head) == []
    torch.manual_seed(4)
    further: Any
    further, drawn = load_with_drawn(config, str(base), "float32", head)
    assert drawn == []
    torch.testing.assert_close(outputs(further), expected)
    has_head = any(".modules_to_save." in name for name in trainable(further))
    assert has_head == (heads.CLASSES[head] is AutoModelForSequenceClassification)
    assert any(".lora_A." in name for name in trainable(further))


@pytest.mark.parametrize(
    ("settings", "head", "problem"),
    [
        (
            {"task_type": "CAUSAL_LM"},
            "reward",
            "an adapter of CAUSAL_LM, and this task continues one of SEQ_CLS; merge",
        ),
        ({"task_type": "CAUSAL_LM"}, "none", "continues one of FEATURE_EXTRACTION; merge it with rayswift export"),
        ({"task_type": "SEQ_CLS"}, "causal_lm", "continues one of CAUSAL_LM; name another one"),
        ({}, "classes", "an adapter of no task, and this task continues one of SEQ_CLS"),
        ({"modules_to_save": ["score"]}, "classes", ""),
        ({}, "causal_lm", ""),
    ],
)
def test_an_adapter_of_another_task(settings: dict[str, Any], head: Head, problem: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    LoraConfig(target_modules=["q_proj"], **settings).save_pretrained(folder)
    (folder / "adapter_model.bin").touch()
    found = adapter_problems(ModelConfig(path="hub/model", tuner="lora", adapters=[str(folder)]), head)
    assert len(found) == bool(problem)
    assert all(problem in line for line in found)


def test_a_pooler_that_is_in_no_file(tmp_path: Path) -> None:
    """An adapter of plain PEFT saves the head, and not the pooler below it that `transformers` has drawn."""
    base = built("encoder", tmp_path / "base", add_pooling_layer=False)
    network = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    settings = LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    get_peft_model(network, settings).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"nor the adapter .* has weights for bert\.pooler\.dense"):
        load_with_drawn(config_of(base, "classes", tmp_path / "adapter"), str(base), "float32", "classes")
