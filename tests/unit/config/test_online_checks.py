"""Settings of tasks that sample completions: what is refused before anything starts, and the messages."""

import json
from pathlib import Path
from typing import Any

import pytest

from rayswift.config.checks.distillation import has_engines, has_teacher_outside
from rayswift.config.checks.task import task_problems
from rayswift.config.derived import max_prompt_length, max_sequence_length, round_size
from rayswift.config.schema import RlhfConfig
from rayswift.data.tokenizer.vocabulary import difference as vocabulary_difference
from rayswift.engines.vllm import setup as engine_setup
from rayswift.log import UserError
from rayswift.rollout import checks
from rayswift.run import checkpoint


def config(**fields: Any) -> RlhfConfig:
    """A run of grpo, with `section__field` values."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"path": "m"},
        "data": {"dataset": ["d"]},
        "train": {"task": "grpo"},
        "rollout": {"reward_funcs": ["accuracy"]},
        "cluster": {},
    }
    for path, value in fields.items():
        section, _, name = path.partition("__")
        tree[section][name] = value
    return RlhfConfig.model_validate(tree)


def test_a_teacher_is_a_signal_of_its_own() -> None:
    """No reward, and one completion of each prompt."""
    alone = {"rollout__reward_funcs": [], "rollout__num_generations": 1, "train__global_batch_size": 3}
    assert task_problems(config(model__teacher="t", **alone)) == []
    assert task_problems(config(rollout__teacher_server="http://a:8000", **alone)) == []
    assert task_problems(config(train__task="gkd", model__teacher="self", **alone)) == []
    written = config(train__task="gkd", model__teacher="t", train__seq_kd=True, rollout__teacher_engines=1, **alone)
    assert task_problems(written) == []
    assert not has_teacher_outside(written)  # the whole vocabulary is compared in the workers


def test_a_teacher_outside_tells_no_more_tokens_than_there_are() -> None:
    """vLLM would refuse the first request; in the workers more than all are all."""
    given = {"train__task": "gkd", "model__teacher": "t", "rollout__reward_funcs": []}
    tiny = Path("examples/tiny")
    checks.check_tokens(config(**given, train__logits_topk=512, rollout__teacher_engines=1), tiny)
    checks.check_tokens(config(**given, train__logits_topk=513), tiny)
    with pytest.raises(UserError, match=r"train\.logits_topk = 513: the tokenizer has 512 tokens"):
        checks.check_tokens(config(**given, train__logits_topk=513, rollout__teacher_engines=1), tiny)


@pytest.mark.parametrize("lmbda", [0, 0.5, 1])
def test_engines_start_where_something_is_sampled(lmbda: float) -> None:
    given = {"train__task": "gkd", "model__teacher": "t", "rollout__reward_funcs": [], "train__lmbda": lmbda}
    assert has_engines(config(**given)) == (lmbda > 0)
    assert has_engines(config(**given, data__eval=["e"]))
    assert has_engines(config())


def test_a_teacher_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """By its tokens; where it has no tokenizer, by the size of its head. An id that one of them lacks is fine."""
    tiny = Path("examples/tiny").absolute()
    known = json.loads((tiny / "tokenizer.json").read_text())
    vocabulary = known["model"]["vocab"]
    (first, one), (second, two) = list(vocabulary.items())[100:102]
    other, larger, bare = (tmp_path / name for name in ("other", "larger", "bare"))
    for folder in (other, larger, bare):
        folder.mkdir()
        (folder / "config.json").write_text((tiny / "config.json").read_text())
    vocabulary |= {first: two, second: one}
    (other / "tokenizer.json").write_text(json.dumps(known))
    assert "2 of 512 tokens" in vocabulary_difference(tiny, other)
    vocabulary |= {first: one, second: two}
    known["added_tokens"].append({**known["added_tokens"][0], "id": 512, "content": "<|more|>"})
    (larger / "tokenizer.json").write_text(json.dumps(known))
    assert vocabulary_difference(tiny, larger) == ""
    assert vocabulary_difference(tiny, bare) == ""
    (bare / "config.json").write_text(json.dumps({"vocab_size": 600}))
    assert vocabulary_difference(tiny, bare) == "600 entries, not 512"


def test_a_plain_run_has_no_problem() -> None:
    assert task_problems(config()) == []
    assert task_problems(config(train__global_batch_size=16)) == []


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"rollout__reward_funcs": []}, "train.task = grpo has no reward; set rollout.reward_funcs or"),
        ({"train__task": "gkd"}, "train.task = gkd has no teacher; set model.teacher: a model, or self, where"),
        (
            {"model__teacher_adapters": ["a"]},
            "model.teacher_adapters: adapters go onto a model; name it in model.teacher",
        ),
        (
            {"model__teacher": "t", "model__teacher_adapters": ["a"], "cluster__zero_stage": 3},
            "model.teacher_adapters cannot be merged into a model that ZeRO-3 spreads; merge them",
        ),
        (
            {"rollout__teacher_engines": 1},
            "rollout.teacher_engines: name the model that they hold in model.teacher",
        ),
        (
            {"model__teacher": "t", "rollout__teacher_server": "http://a"},
            "model.teacher and rollout.teacher_server both name a teacher; keep one",
        ),
        (
            {"rollout__teacher_server": [{"url": "http://a", "tags": ["x"]}, {"url": "http://b", "tags": ["x"]}]},
            "rollout.teacher_server: a tag belongs to two servers",
        ),
        ({"rollout__teacher_server": ["http://a", "http://b"]}, "rollout.teacher_server: two servers have no tags"),
        (
            {"rollout__teacher_server": "http://a", "rollout__temperature": 0.9},
            "rollout.temperature = 0.9: a server gives log-probabilities at temperature 1",
        ),
        (
            {"train__task": "gkd", "model__teacher": "t", "rollout__teacher_engines": 1},
            "train.logits_topk is not set: engines and servers give only a teacher's likeliest tokens",
        ),
        (
            {"model__teacher": "t", "rollout__reward_funcs": [], "rollout__dynamic_sampling": True},
            "rollout.dynamic_sampling has no rewards to compare",
        ),
        (
            {"train__advantage_estimator": "reinforce_plus_plus", "rollout__num_generations": 1}
            | {"rollout__dynamic_sampling": True},
            "rollout.dynamic_sampling has no rewards to compare",
        ),
        (
            {"model__teacher": "t", "rollout__reward_funcs": [], "train__teacher_kl_coef": 0.0},
            "train.task = grpo has no reward; set rollout.reward_funcs or",
        ),
        (
            {"train__task": "gkd", "model__teacher": "t", "train__seq_kd": True},
            "train.seq_kd has the teacher write answers, which its engines do; set rollout.teacher_engines",
        ),
        ({"train__task": "gkd", "model__teacher": "t", "train__lmbda": 1.5}, "train.lmbda = 1.5 is no share; set"),
        (
            {"train__task": "gkd", "model__teacher": "t", "train__lmbda": 1, "train__sft_alpha": 0.1},
            "train.sft_alpha = 0.1 weighs the answers of rows, but train.lmbda = 1 trains none of them",
        ),
        (
            {"train__task": "gkd", "model__teacher": "t", "train__lmbda": 0},
            "rollout.reward_funcs, rollout.reward_models: with train.lmbda = 0 and no rows to evaluate on, nothing",
        ),
        (
            {"train__task": "gkd", "model__teacher": "t", "train__loss_type": "dft"},
            "train.loss_type = dft: the loss of task gkd is set by train.beta; unset it",
        ),
        ({"train__task": "gkd", "model__teacher": "t", "rollout__temperature": 0}, "rollout.temperature = 0 divides"),
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


@pytest.mark.parametrize("field", ["model__teacher", "model__critic_path", "rollout__reward_models"])
def test_of_a_run_folder_the_checkpoint_is_named(tmp_path: Path, field: str) -> None:
    saved = tmp_path / "checkpoint-5"
    saved.mkdir()
    checkpoint.write_manifest(saved, step=5, world_size=1, zero_stage=0)
    given: Any = [str(tmp_path)] if field.endswith("models") else str(tmp_path)
    with pytest.raises(UserError, match=rf"holds no model \(config.json.*\); name its checkpoint {saved}$"):
        checks.check(config(**{field: given}))


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
    for path, why in ((model, "holds no model (config.json)"), (tmp_path / "gone", "is no folder here, and no hub id")):
        for field in ("critic_path", "teacher"):
            with pytest.raises(UserError) as caught:
                checks.check(config(**{f"model__{field}": str(path)}))
            assert f"model.{field} = '{path}' {why}" in str(caught.value)
    with pytest.raises(UserError) as caught:
        checks.check(config(**fields, rollout__engine_kwargs={"seed": 1, "model": "x"}))
    lines = str(caught.value).splitlines()
    assert "rollout.engine_kwargs.model is set by RaySwift; leave it out" in lines
    assert lines[-1].startswith("train.task = grpo needs vLLM, which is not installed; ")
    assert "pip install" in lines[-1]
    assert caught.value.exit_code == 2
