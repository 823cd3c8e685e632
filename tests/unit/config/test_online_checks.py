"""Settings of tasks that sample completions: what is refused before anything starts, and with which words."""

from pathlib import Path
from typing import Any

import pytest

from rayswift.config.checks.task import task_problems
from rayswift.config.derived import max_prompt_length, max_sequence_length, round_size
from rayswift.config.schema import RlhfConfig
from rayswift.engines.vllm import setup as engine_setup
from rayswift.log import UserError
from rayswift.rollout import checks


def config(**fields: Any) -> RlhfConfig:
    """A run of grpo, with `section__field` values."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"path": "m"},
        "data": {"dataset": ["d"]},
        "train": {"task": "grpo"},
        "rollout": {"reward_funcs": ["accuracy"]},
    }
    for path, value in fields.items():
        section, _, name = path.partition("__")
        tree[section][name] = value
    return RlhfConfig.model_validate(tree)


def test_a_plain_run_has_no_problem() -> None:
    assert task_problems(config()) == []
    assert task_problems(config(train__global_batch_size=16)) == []


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"rollout__reward_funcs": []}, "train.task = grpo has no reward; set rollout.reward_funcs or"),
        ({"rollout__reward_weights": [1.0, 2.0]}, "rollout.reward_weights has 2 weights for 1 rewards; give one each"),
        ({"rollout__num_generations": 1}, "rollout.num_generations = 1 leaves nothing to compare in a group; set 2"),
        (
            {"train__global_batch_size": 12},
            "train.global_batch_size x train.steps_per_generation = 12 completions are no whole number of groups of "
            "rollout.num_generations = 8; make it a multiple",
        ),
        (
            {"data__max_length": 512},
            "data.max_length = 512 leaves a prompt no room beside rollout.max_completion_length = 512; raise the",
        ),
        (
            {"rollout__max_prompt_length": 100, "rollout__max_model_len": 100},
            "a prompt of 100 tokens (rollout.max_prompt_length, or what data.max_length leaves) fills an engine's "
            "window of rollout.max_model_len = 100 and leaves its completion none; raise it, or lower",
        ),
        (
            {"data__loss_scale": ["react"]},
            "data.loss_scale = react has no meaning: task grpo has no loss over the tokens",
        ),
        ({"data__truncation": "split"}, "data.truncation = split has no meaning for prompts; set drop or left"),
        ({"data__truncation": "right"}, "data.truncation = right cuts the end of the question off a prompt, and the"),
        ({"rollout__reward_model_gpus": 1.5}, "rollout.reward_model_gpus = 1.5: Ray gives a process a part of one GPU"),
        ({"train__metrics": ["a:b"]}, "train.metrics = ['a:b'] is for losses over rows, but task grpo trains"),
    ],
)
def test_what_cannot_work_is_named_with_the_way_out(fields: dict[str, Any], wanted: str) -> None:
    (problem,) = task_problems(config(**fields))
    assert problem.startswith(wanted)


def test_lengths_and_rounds() -> None:
    assert (max_prompt_length(config()), max_sequence_length(config())) == (1536, 2048)
    given = config(rollout__max_prompt_length=10)
    assert (max_prompt_length(given), max_sequence_length(given)) == (10, 522)
    windowed = config(rollout__max_prompt_length=100, rollout__max_model_len=300)
    assert max_sequence_length(windowed) == 300  # where a completion ends, whatever max_completion_length says
    assert max_sequence_length(config(rollout__max_model_len=4096)) == 2048
    assert round_size(config()) is None
    assert round_size(config(train__global_batch_size=16, train__steps_per_generation=4)) == 64


def test_what_sampling_needs_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks.check(config())
    model = tmp_path / "judge"
    model.mkdir()
    fields = {"rollout__reward_models": [str(model), str(tmp_path / "gone"), "hub/id"]}
    monkeypatch.setattr(engine_setup, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        checks.check(config(**fields, rollout__engine_kwargs={"seed": 1, "model": "x"}))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"rollout.reward_models = '{model}' holds no model (config.json or adapter_config.json)")
    assert lines[1] == f"rollout.reward_models = '{tmp_path}/gone' is no folder here, and no hub id"
    assert "rollout.engine_kwargs.model is set by RaySwift; leave it out" in lines
    assert lines[-1].startswith("train.task = grpo needs vLLM, which is not installed; ")
    assert "pip install" in lines[-1]
    assert caught.value.exit_code == 2
