"""Every loss of the preference tasks that TRL has, from the command line's settings, against TRL's own trainer: the
same rows, of which each reads, renders and tokenises its own, float32, one batch.

Minutes, so not part of the suite: pytest tests/bars/test_trl_losses.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from rayswift.cluster.layout import Layout
from rayswift.config.derived import compares_partners
from rayswift.config.load import load as load_config
from rayswift.config.tasks import TASKS, load
from rayswift.data.feed.client import FeedClient
from rayswift.data.feed.feed import Feed
from rayswift.data.prepare import plan_windows
from rayswift.data.sequence.global_batches import FeedPlan, Position
from rayswift.data.tokenizer.training_copy import prepare_tokenizer
from rayswift.launch import plan as planning
from rayswift.model.texts.row_kind import row_kind
from rayswift.model.tuners import peft_config
from rayswift.train.arguments import trainer_arguments
from rayswift.train.clock import Clock
from rayswift.train.spec import RunSpec

QUESTIONS = ("one and two?", "the sum of 3 and 4?", "seven", "what is 5 less 1?")
ANSWERS = ("three it is", "7", "a prime number, I think", "4, which is even")
SETTINGS: dict[str, dict[str, Any]] = {
    **{loss: {"loss_type": [loss]} for loss in TASKS["dpo"].losses},
    "exo_pair": {"loss_type": ["exo_pair"], "label_smoothing": 0.01},
    "robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
    "several": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0], "beta": 0.5},
    "forward_kl": {"f_divergence_type": "forward_kl"},
    "js_divergence": {"f_divergence_type": "js_divergence"},
    "alpha_divergence": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    "length desensitised": {"ld_alpha": 0.5},
    "weighted": {"use_weighting": True},
}
KTO_SETTINGS: dict[str, dict[str, Any]] = {
    "kto": {"desirable_weight": 1.3, "undesirable_weight": 0.7, "beta": 0.5},
    "apo_zero_unpaired": {"loss_type": "apo_zero_unpaired"},
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A model that has moved away from its reference, so that no loss stands at its beginning."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("policy")
    model.save_pretrained(folder)
    return folder


def weights(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def in_process(windows: Any, epoch: int, first: int) -> Any:
    """The stream that Ray Data would make."""
    return (windows.make(epoch, number) for number in range(first, windows.num_windows))


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def moved(trainer: Any) -> Any:
    """The trainer; an adapter in it, which begins as nothing, moved away from its base."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return trainer


def ours(
    task: str,
    settings: dict[str, Any],
    rows: list[dict[str, Any]],
    policy: Path,
    base: Path,
    work: Path,
    adapter: tuple[str, ...] = (),
) -> Any:
    """The loss, its gradient and its metrics from RaySwift's trainer, built from a command line, on its first batch."""
    path = work / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = ["--model", str(base), "--data.dataset", str(path), "--train.task", task, "--max_length", "64"]
    flags += ["--data.shuffle", "false", "--max_steps", "1", "--num_workers", "0", "--global_batch_size", "4"]
    flags += ["--device", "cpu", "--train.output_dir", str(work), "--per_device_train_batch_size", "4"]
    flags += ["--gradient_checkpointing", "false", "--report_to", "none", *adapter]
    for name, value in settings.items():
        flags += [f"--train.{name}", *_words(value)]
    plan = planning.resolve(load_config("rlhf", flags).config, Layout(0, "cpu", 1, local=True), None)
    config = plan.config
    folder = prepare_tokenizer(config.model, work / "tokenizer")
    windows, _ = plan_windows(config.data, folder, 42, work / "data", row_kind(config, Path(config.model.path)))
    mismatched_length = config.data.max_length if compares_partners(config) else None
    cut = FeedPlan(4, len(rows), windows.window_rows, 1, 1, 0.0, True, mismatched_length)
    spec = RunSpec(config, plan.layout, work, folder, cut, Clock(0), None, work)
    feed = FeedClient(Feed(windows, None, cut, str(work), in_process), 20)
    feed.begin(feed.new_attempt(), Position())
    tokenizer, model, row_task = AutoTokenizer.from_pretrained(base), weights(policy), TASKS[task]
    stream = load(row_task.stream)(spec, feed, None, tokenizer, model)
    trainer_class = load(row_task.trainer)
    own = {"peft_config": peft_config(config.model)} if adapter else {"ref_model": weights(base)}
    trainer = trainer_class(
        spec=spec,
        rank=0,
        stream=stream,
        model=model,
        args=trainer_arguments(spec, load(row_task.arguments), "float32", False, False),
        train_dataset=trainer_class.placeholder(),
        processing_class=tokenizer,
        **own,
    )
    (inputs,), _ = trainer.get_batch_samples(iter(stream), 1, torch.device("cpu"))
    rows_of_batch = stream.handed_out[0]
    loss = moved(trainer).compute_loss(trainer.model, inputs)
    assert len(rows_of_batch) == 4
    sums = trainer._named(trainer._sums)
    return _with_gradient(trainer, loss), {name: value / count for name, (value, count) in sums.items()}


def _words(value: Any) -> list[str]:
    """A setting as the command line takes it."""
    if isinstance(value, list) and isinstance(value[0], str):
        return value
    return [value if isinstance(value, str) else json.dumps(value)]


def _with_gradient(trainer: Any, loss: torch.Tensor) -> tuple[float, float]:
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in trainer.model.parameters() if parameter.grad is not None]
    return float(loss.detach()), float(torch.cat(gradients).norm())


def theirs(trainer: Any) -> Any:
    """The same from TRL's."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    trainer.model.train()
    found = _with_gradient(trainer, trainer.compute_loss(trainer.model, batch))
    return found, {name: values[-1] for name, values in trainer._metrics["train"].items() if name != "num_tokens"}


PAIRS = [
    {"prompt": turn("user", q), "chosen": turn("assistant", a), "rejected": turn("assistant", b)}
    for q, a, b in zip(QUESTIONS, ANSWERS, ANSWERS[1:] + ANSWERS[:1], strict=True)
]
JUDGED = [
    {"prompt": turn("user", q), "completion": turn("assistant", a), "label": i != 1}
    for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
]


def common(work: Path, settings: dict[str, Any]) -> dict[str, Any]:
    own = {"bf16": False, "use_cpu": True, "report_to": "none", "gradient_checkpointing": False}
    return own | {"output_dir": str(work), "max_length": 64, "per_device_train_batch_size": 4} | settings


def assert_same(found: Any, expected: Any) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
    assert found[1] == pytest.approx(expected[1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_loss_of_dpo_is_that_of_trl(name: str, policy: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    found = ours("dpo", SETTINGS[name], PAIRS, policy, tiny_model_dir, tmp_path)
    trainer = DPOTrainer(
        model=weights(policy),
        ref_model=weights(tiny_model_dir),
        args=DPOConfig(**common(tmp_path, SETTINGS[name])),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
    )
    assert_same(found, theirs(trainer))


@pytest.mark.parametrize("name", KTO_SETTINGS)
def test_a_loss_of_kto_is_that_of_trl(name: str, policy: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    found = ours("kto", KTO_SETTINGS[name], JUDGED, policy, tiny_model_dir, tmp_path)
    trainer = KTOTrainer(
        model=weights(policy),
        ref_model=weights(tiny_model_dir),
        args=KTOConfig(**common(tmp_path, KTO_SETTINGS[name])),
        train_dataset=Dataset.from_list(JUDGED),
        processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
    )
    assert_same(found, theirs(trainer))


@pytest.mark.parametrize("task", ["dpo", "kto"])
def test_an_adapter_is_held_against_its_base(task: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    rows, trainer_class, config_class = {
        "dpo": (PAIRS, DPOTrainer, DPOConfig),
        "kto": (JUDGED, KTOTrainer, KTOConfig),
    }[task]
    adapter = ("--model.tuner", "lora", "--model.lora_dropout", "0")
    found = ours(task, {}, rows, tiny_model_dir, tiny_model_dir, tmp_path, adapter)
    flags = ["--model", str(tiny_model_dir), "--data.dataset", "rows.jsonl", *adapter]
    trainer = trainer_class(
        model=weights(tiny_model_dir),
        args=config_class(**common(tmp_path, {})),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
        peft_config=peft_config(load_config("rlhf", flags).config.model),
    )
    assert_same(found, theirs(moved(trainer)))
