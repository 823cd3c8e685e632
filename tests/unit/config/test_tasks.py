"""The table of tasks: it agrees with the checks of the config and with the documentation."""

from pathlib import Path
from typing import get_args

import pytest

from rayswift.cluster.layout import Layout
from rayswift.config.checks.built import not_built, refuse_unbuilt, static_problems
from rayswift.config.checks.model import model_problems
from rayswift.config.fields import trl as trl_fields
from rayswift.config.load import load
from rayswift.config.tasks import ONLINE_TASKS, TASKS
from rayswift.config.train import RlhfTask, SftTask
from rayswift.launch.plan import resolve
from rayswift.log import UserError
from rayswift.train.arguments import _NOT_TRL
from rayswift.verbs import tasks as verb

ROOT = Path(__file__).resolve().parents[3]
LAYOUT = Layout(local=True, device="cpu", num_workers=1, threads_per_worker=1)
DPO = ("--model", str(ROOT / "examples" / "tiny"), "--random_init", "--data.dataset", "d.jsonl", "--train.task", "dpo")


def test_the_table_holds_what_can_be_asked_for() -> None:
    assert set(TASKS) == {*get_args(SftTask), *get_args(RlhfTask)}


def test_the_page_on_training_holds_the_table() -> None:
    assert verb.table() in (ROOT / "rayswift" / "train" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("task", TASKS)
def test_fields_that_are_ours_alone_are_kept_from_the_tasks_config(task: str) -> None:
    """One that is not would be refused by the config class of every run of the task."""
    verb, *own = TASKS[task].verb.rpartition(", ")[2].split()
    train = load(verb, ["--model", "m", "--data.dataset", "d.jsonl", *own]).config.train
    assert set(type(train).model_fields) - {*_NOT_TRL, "loss_type"} <= set(trl_fields.read_fields(task))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data.truncation", "split"), "data.truncation = split has no meaning: task dpo judges whole texts"),
        (("--data.loss_on", "all"), "data.loss_on = all has no meaning"),
        (("--data.cache", "c", "--precompute_ref_log_probs", "true"), "data.cache holds rows without what"),
        (
            ("--data.loss_scale", "react"),
            "task dpo counts whole answers; set ignore_empty_think or ignore_think_prefix",
        ),
        (("--train.loss", "mine.py:loss"), "train.loss = mine.py:loss is for losses over tokens"),
        (("--rollout.temperature", "0.5"), "rollout.temperature has no meaning"),
        (("--train.micro_batch_tokens", "512"), "train.micro_batch_tokens has no meaning"),
    ],
)
def test_what_a_preference_task_cannot_use_is_refused(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=r"has no meaning|data\.|losses over tokens") as refused:
        resolve(load("rlhf", [*DPO, *flags]).config, LAYOUT, None)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--train.loss_type", "hings"), "train.loss_type = hings is no loss of task dpo; there are sigmoid, hinge,"),
        (("--train.loss_type", "sigmoid", "sft", "--train.loss_weights", "[1]"), "has 1 weights for 2 losses"),
        (("--train.loss_type", "exo_pair"), "exo_pair needs train.label_smoothing above 0"),
        (("--train.loss_type", "aot", "--train.f_divergence_type", "forward_kl"), "is not defined for loss aot"),
        (("--train.loss_type", "aot", "--train.use_weighting", "true"), "but loss aot sorts them apart"),
        (("--train.precompute_ref_log_probs", "true"), "but this run makes its initial weights first"),
        (("--train.reference_free", "true", "--model.reference", "m"), "leaves nothing for model.reference"),
        (("--train.task", "kto", "--train.precompute_ref_log_probs", "true"), "for pairs that each epoch makes anew"),
        (("--train.task", "kto", "--per_device_train_batch_size", "1"), "global_batch_size = 1: the KL term of kto"),
        (("--train.task", "kto", "--train.loss_type", "sigmoid"), "is no loss of task kto; there are kto,"),
    ],
)
def test_losses_that_cannot_be_are_refused(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve(load("rlhf", [*DPO, *flags]).config, LAYOUT, None)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        (
            "rm",
            ("--model.quantization", "nf4"),
            "of a reward model in bfloat16 then; set model.dtype",
        ),
        ("dpo", ("--model.tuner_kwargs", '{"init_lora_weights": "eva"}'), "of a loss over tokens) with task dpo"),
        ("dpo", ("--model.tuner", "adalora"), "model.tuner = adalora (its penalty is a term of losses over tokens)"),
    ],
)
def test_what_a_tuner_cannot_do_with_a_task_is_refused(task: str, flags: tuple[str, ...], message: str) -> None:
    config = load("rlhf", [*DPO, "--train.task", task, "--model.tuner", "lora", *flags]).config
    assert any(message in line for line in model_problems(config) + not_built(config))


def test_tasks_and_samples_start_from_adapters() -> None:
    flags = ["--model", "m", "--data.dataset", "d.jsonl", "--reward_funcs", "format"]
    adapter = ["--model.tuner", "lora", "--model.adapters", "a"]
    for task in ONLINE_TASKS:
        assert not_built(load("rlhf", [*flags, "--train.task", task, *adapter]).config) == []
    assert not_built(load("rlhf", [*DPO, "--train.task", "rm", *adapter]).config) == []
    assert not_built(load("sft", [*flags[:4], "--train.task", "embedding", *adapter]).config) == []
    assert static_problems(load("sample", [*flags, *adapter[2:]]).config) == []


def test_the_table_says_what_the_checks_let_through() -> None:
    rows = {line.split(" | ")[0].strip("| "): line for line in verb.table().splitlines()}
    assert " | yes | yes | yes | yes | yes | yes | yes | untried |" in rows["causal_lm"]
    assert " | no | no | yes | yes | yes | yes | yes | untried |" in rows["dpo"]
    assert " | no | no | yes | no | no | yes | yes | untried |" in rows["embedding"]


def test_a_task_of_whole_rows_never_packs() -> None:
    assert resolve(load("rlhf", [*DPO]).config, LAYOUT, None).config.data.packing is False


def test_settings_of_dpo_that_are_not_built_are_refused() -> None:
    with pytest.raises(UserError, match="sync_ref_model = True: not built yet"):
        refuse_unbuilt(load("rlhf", [*DPO, "--train.sync_ref_model", "true"]).config)
