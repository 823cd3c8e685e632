"""What a model ends in: the class that loads it, what its config says of it, and what PEFT calls it."""

from typing import Any

from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from rayswift.config.model import ModelConfig
from rayswift.train.tasks import Head, problem_type

CLASSES: dict[Head, Any] = {
    "causal_lm": AutoModelForCausalLM,
    "reward": AutoModelForSequenceClassification,
    "classes": AutoModelForSequenceClassification,
    "none": AutoModel,
}
PEFT_TASK_TYPES: dict[Head, str] = {
    "causal_lm": "CAUSAL_LM",
    "reward": "SEQ_CLS",
    "classes": "SEQ_CLS",
    "none": "FEATURE_EXTRACTION",
}


def settings(model: ModelConfig, head: Head) -> dict[str, Any]:
    """Fields of the model's `config.json` that its head needs."""
    if head == "classes":
        return {"num_labels": model.num_labels, "problem_type": problem_type(model)}
    return {"num_labels": 1} if head == "reward" else {}
