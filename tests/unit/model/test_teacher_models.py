"""Models that can be the teacher or the reference of a run; all others are refused before it starts."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rayswift.config.load import load
from rayswift.model import load as models
from rayswift.model.adapters import adapter_problems
from rayswift.model.kind import abilities
from tests.support.model_folders import adapter, built, packed
from tests.unit.model.test_whole import CLOSE, logits, written


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("decoder", tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("decoder", None),
        ("encoder", "and a teacher writes; its attention looks both ways"),
        ("one output", "and a teacher writes; it has no language-model head"),
        ("adapter", "and model.teacher_adapters to this folder"),
    ],
)
def test_a_teacher_writes(kind: str, wanted: str | None, policy: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    found = teacher_problems(policy, adapter(teacher, "org/base") if kind == "adapter" else built(kind, teacher))
    assert len(found) == (wanted is not None)
    assert not wanted or wanted in found[0]


def teacher_problems(policy: Path, teacher: Path, *flags: str) -> list[str]:
    own = ("--rlhf_type", "gkd", "--model.teacher", str(teacher))
    return abilities.training_problems(
        load("rlhf", ["--model", str(policy), "--data.dataset", "r.jsonl", *own, *flags]).config
    )


def test_a_quantised_teacher_is_held_by_engines(policy: Path, tmp_path: Path) -> None:
    teacher = packed(tmp_path / "packed", "awq")
    (found,) = teacher_problems(policy, teacher)
    assert "quantised by awq, which workers do not load; let engines hold it (rollout.teacher_engines)" in found
    engines = ("--teacher_engines", "1", "--logits_topk", "8")
    assert not teacher_problems(policy, teacher, *engines)


def test_a_teacher_reads_the_policys_tokens(policy: Path, tmp_path: Path) -> None:
    teacher = built("decoder", tmp_path / "teacher")
    tokens = json.loads((teacher / "tokenizer.json").read_text())
    tokens["model"]["vocab"]["another"] = tokens["model"]["vocab"].pop(next(iter(tokens["model"]["vocab"])))
    (teacher / "tokenizer.json").write_text(json.dumps(tokens))
    (found,) = teacher_problems(policy, teacher)
    assert "whose tokenizer has other tokens than that of model.path" in found


def test_the_teachers_adapters_are_merged(policy: Path, tmp_path: Path) -> None:
    """Two, one after the other; the second on a tied matrix alone."""
    base = built("decoder", tmp_path / "base", tie_word_embeddings=True)
    written(tmp_path / "first", base)
    own = ["--rlhf_type", "gkd", "--model.teacher", str(base), "--model.teacher_adapters"]
    command = ["--model", str(policy), "--data.dataset", "r.jsonl", *own]
    config = load("rlhf", [*command, str(tmp_path / "first")]).config
    network = models.teacher(config, "float32")["teacher"]
    second = written(tmp_path / "second", base, network, target_modules=["lm_head"])
    wanted = logits(second)
    config = load("rlhf", [*command, str(tmp_path / "first"), str(tmp_path / "second")]).config
    assert adapter_problems(config.model) == []
    found = models.teacher(config, "float32")["teacher"]
    assert torch.allclose(logits(found), wanted, atol=CLOSE)
    assert not torch.allclose(logits(found), logits(AutoModelForCausalLM.from_pretrained(base)), atol=0.1)
    config = load("rlhf", [*command, str(tmp_path / "gone")]).config
    assert (
        f"model.teacher_adapters: {str(tmp_path / 'gone')!r} is not a folder here" in adapter_problems(config.model)[0]
    )


@pytest.mark.parametrize("is_named", [False, True])
def test_adapters_of_its_own_are_merged_into_the_reference(is_named: bool, policy: Path, tmp_path: Path) -> None:
    """Into the model that is named, or into that at `model.path`, without the adapter that training continues."""
    below = built("decoder", tmp_path / "below") if is_named else policy
    wanted = logits(written(tmp_path / "own", below))
    written(tmp_path / "start", policy, r=2)
    flags = ("--tuner", "lora", "--adapters", str(tmp_path / "start"), "--ref_adapters", str(tmp_path / "own"))
    flags += ("--model.reference", str(below)) if is_named else ()
    config = load("rlhf", ["--model", str(policy), "--rlhf_type", "dpo", "--data.dataset", "r.jsonl", *flags]).config
    assert not adapter_problems(config.model)
    found = models.reference(config, True, str(policy), "float32")["ref_model"]
    assert torch.allclose(logits(found), wanted, atol=CLOSE)
    other = built("decoder", tmp_path / "wide", hidden_size=64)
    (line,) = adapter_problems(config.model.model_copy(update={"reference": str(other)}))
    assert line.startswith("model.reference_adapters: ") and "does not fit" in line
