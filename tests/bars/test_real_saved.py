"""The saved model of a run of SmolLM2 in other libraries: no warning about weights, the same numbers.

Minutes, so not part of the suite: pytest tests/bars/test_real_saved.py
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tests.ray.conftest import curve, start
from tests.ray.real_runs import TUNERS, run
from tests.support.real_models import smollm2

STEPS = 3
SAVED = ("--save_strategy", "steps", "--save_steps", str(STEPS), "--eval_steps", str(STEPS))
PROMPTS = ("What is 4 plus 18?", "Why is the sky blue?")


@contextmanager
def nothing_said(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No warning of a library: of weights that are missing, new or of no use it says so in one."""
    transformers_logging.enable_propagation()
    caplog.clear()
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert [record.getMessage() for record in caplog.records] == []


def rows(ours: Path) -> list[dict[str, Any]]:
    """The evaluation rows of the run."""
    return [json.loads(line) for line in ours.with_name("eval.jsonl").read_text().splitlines()]


def ids_of(folder: Path, *texts: str) -> tuple[list[int], int]:
    """Tokens of question and answer up to the end token, and how many of them are the prompt's."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(turns)["input_ids"]
    end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)  # a line break may follow
    return whole[:end], len(prompt)


@torch.inference_mode()
def loss(model: Any, folder: Path, ours: Path) -> float:
    """Mean negative log-likelihood of the trained tokens of the evaluation rows."""
    losses = []
    for row in rows(ours):
        ids, untrained = ids_of(folder, row["question"], row["answer"])
        logits = model.eval()(torch.tensor([ids])).logits[0, untrained - 1 : -1]
        losses += torch.nn.functional.cross_entropy(logits, torch.tensor(ids[untrained:]), reduction="none").tolist()
    return sum(losses) / len(losses)


@torch.inference_mode()
def preference_loss(model: Any, folder: Path, ours: Path) -> float:
    """Mean -log sigmoid(score of the better - score of the worse), of conversations as the template writes them.

    The score is at the last token: a line break that may follow the end token counts, as in TRL.
    """
    tokenizer, differences = AutoTokenizer.from_pretrained(folder), []
    for row in rows(ours):
        asked = {"role": "user", "content": row["question"]}
        texts = ([asked, {"role": "assistant", "content": row[which]}] for which in ("chosen", "rejected"))
        inputs = [tokenizer.apply_chat_template(text, return_tensors="pt")["input_ids"] for text in texts]
        better, worse = (model.eval()(ids).logits[0, 0] for ids in inputs)
        differences.append(better - worse)
    return float(-torch.nn.functional.logsigmoid(torch.stack(differences)).mean())


def measured(ours: Path) -> float:
    """The run's own evaluation of the saved model."""
    return curve(ours, "eval_loss")[STEPS]


def command(verb: str, *flags: str) -> str:
    """Run a verb that does not train."""
    code, out = start(verb, "", *flags).wait()
    assert code == 0, out
    return out


def answers(model: Path, backend: str) -> str:
    """The likeliest answers."""
    asked = ("--prompt", *PROMPTS, "--max_new_tokens", "12", "--backend", backend)
    out = command("infer", "--model", str(model), *asked)
    return out[out.index(f"> {PROMPTS[0]}") :]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 stored in float32, so that a merge rounds nothing."""
    folder = tmp_path_factory.mktemp("float32")
    AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The run of a task and tuner, made once."""
    made: dict[tuple[str, str], Path] = {}

    def get(task: str, tuner: str) -> Path:
        if (task, tuner) not in made:
            folder = tmp_path_factory.mktemp(f"{task}-{tuner}") / "run"
            made[task, tuner] = run(folder, task, *SAVED, *TUNERS[tuner], "--model", str(base), steps=STEPS)
        return made[task, tuner]

    return get


def test_a_whole_model(trained: Callable[[str, str], Path], caplog: pytest.LogCaptureFixture) -> None:
    ours = trained("sft", "full")
    folder = ours / f"checkpoint-{STEPS}"
    with nothing_said(caplog):
        model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(found.values()), found
    assert loss(model, folder, ours) == pytest.approx(measured(ours), rel=1e-5)
    assert answers(folder, "vllm") == answers(folder, "transformers")


def test_an_adapter_alone_and_merged(
    base: Path, trained: Callable[[str, str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    ours = trained("sft", "lora")
    folder = ours / f"checkpoint-{STEPS}"
    with nothing_said(caplog):
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    assert loss(adapted, folder, ours) == pytest.approx(measured(ours), rel=1e-5)
    command("export", "--model", str(folder), "--merge_lora")
    merged = ours / f"merged-checkpoint-{STEPS}"
    with nothing_said(caplog):
        model, found = AutoModelForCausalLM.from_pretrained(merged, dtype="auto", output_loading_info=True)
    assert not any(found.values()), found
    assert loss(model, merged, ours) == pytest.approx(measured(ours), rel=1e-5)
    assert answers(folder, "vllm") == answers(merged, "vllm") == answers(merged, "transformers")


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_reward_model(
    tuner: str, base: Path, trained: Callable[[str, str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    ours = trained("rm", tuner)
    folder = ours / f"checkpoint-{STEPS}"
    if tuner == "lora":
        command("export", "--model", str(folder), "--merge_lora")
        folder = ours / f"merged-checkpoint-{STEPS}"
    with nothing_said(caplog):
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    assert not any(found.values()), found
    assert preference_loss(model, folder, ours) == pytest.approx(measured(ours), rel=1e-5)
