"""Distillation: losses compared with TRL's and with plain references; then the real command line."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayswift.run import checkpoint
from rayswift.run.accounting import read_accounting
from tests.ray.conftest import IN_PROCESS, assert_same_curve, curve, make_model, start, train

VOCABULARY = 64


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    """Torch on one thread, and the environment as it was: importing TRL's trainers sets variables."""
    environment = dict(os.environ)
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.parametrize("k", [None, 8])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_divergence_is_that_of_trl(torch: Any, beta: float, temperature: float, k: int | None) -> None:
    """Among the k likeliest tokens of the teacher it is TRL's of their logits alone."""
    from trl.experimental.gkd import GKDTrainer

    from rayswift.train.policy.distillation.divergence import divergence, top_k

    generator = torch.Generator().manual_seed(3)
    logits = [3 * torch.randn(7, 1000, generator=generator) for _ in range(2)]
    ours, theirs = logits[0].clone().requires_grad_(), logits[0].clone().requires_grad_()
    best = top_k(logits[1], k or 1000)
    wanted = GKDTrainer.generalized_jsd_loss(
        (theirs.gather(-1, best.ids) if k else theirs)[None],
        (best.logits if k else logits[1])[None],
        beta=beta,
        temperature=temperature,
        reduction="sum",
    )
    found = divergence(ours, best if k else logits[1], beta, temperature).sum()
    wanted.backward()
    found.backward()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def _by_trl(
    groups: Sequence[Any], student: Any, teacher: Any, options: Any, answers: bool
) -> tuple[Any, dict[str, Any]]:
    """TRL's loss of all completions padded into one batch, and its gradients."""
    import torch
    from trl.experimental.gkd import GKDTrainer

    lines = [(group.prompt, each.completion.token_ids) for group in groups for each in group.scored]
    longest = max(len(prompt.input_ids) + len(tokens) for prompt, tokens in lines)
    labels = torch.full((len(lines), longest), -100)
    logits = []
    for model in (student, teacher):
        rows = torch.zeros(len(lines), longest, VOCABULARY)
        for row, (prompt, tokens) in enumerate(lines):
            seen = prompt.input_ids if model is student or prompt.teacher_ids is None else prompt.teacher_ids
            ids = torch.from_numpy(np.concatenate([seen, tokens]).astype(np.int64))
            places = slice(len(seen) - 1, len(ids) - 1)
            rows[row, : len(tokens)] = model(ids[None]).logits[0, places]
            labels[row, : len(tokens)] = ids[len(seen) :]
        logits.append(rows)
    k = options.get("logits_topk")
    num_tokens = (labels != -100).sum()
    ours, theirs = logits[0], logits[1].detach()
    if k:
        best = theirs.topk(k, dim=-1)
        ours, theirs = ours.gather(-1, best.indices), best.values
    loss = GKDTrainer.generalized_jsd_loss(
        ours, theirs, labels, options["beta"], options["temperature"], num_items_in_batch=num_tokens
    )
    if answers:
        likelihood = torch.nn.functional.cross_entropy(logits[0].flatten(0, 1), labels.flatten(), reduction="sum")
        loss = loss + options["sft_alpha"] * likelihood / num_tokens
    loss.backward()
    return loss, {name: each.grad for name, each in student.named_parameters()}


CASES = [
    {"beta": 0.5, "temperature": 0.9},
    {"beta": 0.0, "temperature": 1.0, "sft_alpha": 0.3},
    {"beta": 1.0, "temperature": 1.0, "logits_topk": 8},
    {"beta": 0.3, "temperature": 2.0, "logits_topk": 16, "sft_alpha": 0.1},
]


@pytest.mark.parametrize("privileged", [False, True])
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("options", CASES)
def test_loss_and_gradients_of_a_step_are_those_of_trl(
    torch: Any, tmp_path: Path, options: Any, sampled: bool, privileged: bool
) -> None:
    """In micro-batches of 40 tokens, prompts shared; the teacher may see other prompts."""
    import copy

    from tests.policy_runs import Rounds, make_groups, make_spec, make_trainer, tiny_model

    groups = make_groups(4, 1, num_rewards=0)
    if privileged:
        rng = np.random.default_rng(5)
        teacher_ids = [rng.integers(2, VOCABULARY, 1 + n % 3 * 4).astype(np.int32) for n in range(len(groups))]
        with_ids = zip(groups, teacher_ids, strict=True)
        groups = [replace(group, prompt=replace(group.prompt, teacher_ids=ids)) for group, ids in with_ids]
    student, teacher = tiny_model(0), tiny_model(1, hidden_size=48)
    given = {**options, "lmbda": 1 if sampled else 0, "micro_batch_tokens": 40, "model.teacher": "t"}
    given = {
        name if "." in name else _long(name): value
        for name, value in given.items()
        if not (sampled and name == "sft_alpha")
    }
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    spec = make_spec(tmp_path, "--train.task", "gkd", "--rollout.reward_funcs", "[]", *flags)
    own = copy.deepcopy(student)
    trainer = make_trainer(spec, Rounds([groups], num_rewards=0), own, teacher=copy.deepcopy(teacher))
    found = trainer.training_step(trainer.model, next(iter(trainer.stream)))
    wanted, gradients = _by_trl(groups, student, teacher, options, not sampled and "sft_alpha" in options)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-6)
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=1e-5, atol=1e-5 * float(gradients[name].abs().max())
        )


@pytest.mark.parametrize("where", ["engines", "server"])
@pytest.mark.parametrize("options", [options for options in CASES if "logits_topk" in options])
def test_scores_of_a_teacher_outside_give_the_same_loss(torch: Any, tmp_path: Path, options: Any, where: str) -> None:
    """Engines tell of the temperature of the sampling, a server of temperature 1."""
    import copy

    from rayswift.engines.samples import TopTokens
    from tests.policy_runs import Rounds, make_groups, make_spec, make_trainer, tiny_model

    k, student, teacher = options["logits_topk"], tiny_model(0), tiny_model(1, hidden_size=48)
    groups = []
    for group in make_groups(4, 1, num_rewards=0):
        (one,) = group.scored
        tokens = one.completion.token_ids
        ids = torch.from_numpy(np.concatenate([group.prompt.input_ids, tokens]).astype(np.int64))
        with torch.no_grad():
            logits = teacher(ids[None]).logits[0, -len(tokens) - 1 : -1]
            logprobs_of = (logits / (options["temperature"] if where == "engines" else 1)).log_softmax(-1)
        best = logprobs_of.topk(k, dim=-1)
        top = TopTokens(best.indices.int().numpy(), best.values.numpy())
        logprobs = logprobs_of.gather(-1, ids[-len(tokens) :, None])[:, 0].numpy()
        scored = replace(one.completion, logprobs=logprobs, top=top)
        groups.append(replace(group, scored=(replace(one, completion=replace(one.completion, teacher=scored)),)))
    given = {_long(name): value for name, value in options.items() if name != "sft_alpha"}
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    engines = ("--model.teacher", "t", "--teacher_engines", "1")
    spec = make_spec(
        tmp_path, "--train.task", "gkd", "--rollout.reward_funcs", "[]", "--train.lmbda", "1",
        "--micro_batch_tokens", "40", *(engines if where == "engines" else ("--teacher_server", "http://a")), *flags,
    )  # fmt: skip
    own = copy.deepcopy(student)
    trainer = make_trainer(spec, Rounds([groups], num_rewards=0), own)
    found = trainer.training_step(trainer.model, next(iter(trainer.stream)))
    wanted, gradients = _by_trl(groups, student, teacher, options, False)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-6)
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=1e-5, atol=1e-5 * float(gradients[name].abs().max())
        )


def _long(name: str) -> str:
    return f"rollout.{name}" if name == "temperature" else f"train.{name}"


@pytest.mark.parametrize("teacher", ["model", "self"])
def test_the_advantage_of_a_token_is_how_much_likelier_the_teacher_finds_it(
    torch: Any, tmp_path: Path, teacher: str
) -> None:
    """Without a reward, with one completion of each prompt; the model itself, with a longer prompt, is the teacher."""
    import copy

    from tests.policy_runs import Rounds, make_groups, make_spec, make_trainer, tiny_model

    groups = make_groups(3, 1, num_rewards=0)
    teacher_ids = [np.arange(2, 4 + n, dtype=np.int32) for n in range(3)]
    groups = [replace(g, prompt=replace(g.prompt, teacher_ids=ids)) for g, ids in zip(groups, teacher_ids, strict=True)]
    student, other = tiny_model(0), tiny_model(1)
    flags = ("--model.teacher", "t" if teacher == "model" else "self", "--teacher_kl_coef", "0.7")
    spec = make_spec(
        tmp_path, "--rollout.reward_funcs", "[]", "--num_generations", "1", "--temperature", "0.8", *flags,
        "--importance_sampling", "none", "--loss_type", "bnpo", "--micro_batch_tokens", "40",
    )  # fmt: skip
    own, asked = copy.deepcopy(student), {} if teacher == "self" else {"teacher": copy.deepcopy(other)}
    trainer = make_trainer(spec, Rounds([groups], num_rewards=0), own, **asked)
    found = trainer.training_step(trainer.model, next(iter(trainer.stream)))
    logprobs: list[list[Any]] = [[], []]
    for group in groups:
        tokens = group.scored[0].completion.token_ids
        for which, (model, seen) in enumerate(
            ((student, group.prompt.input_ids), (student if teacher == "self" else other, group.prompt.teacher_ids))
        ):
            ids = torch.from_numpy(np.concatenate([seen, tokens]).astype(np.int64))
            logits = model(ids[None]).logits[0, len(seen) - 1 : -1] / 0.8
            logprobs[which].append(logits.log_softmax(-1).gather(-1, ids[len(seen) :, None])[:, 0])
    ours, theirs = (torch.cat(each) for each in logprobs)
    advantages = 0.7 * (theirs - ours).detach()
    wanted = -(torch.exp(ours - ours.detach()) * advantages).mean()
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-6)
    wanted.backward()
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(parameter.grad, dict(student.named_parameters())[name].grad, rtol=1e-4, atol=1e-5)
    difference = (theirs - ours).detach()
    kl = float((difference.exp() - difference - 1).mean())
    total, count = trainer._sums["teacher_kl"]
    assert total / count == pytest.approx(kl, rel=1e-4)


STEPS, SAVED_AT = 6, 2


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A few rounds of a tiny model and a teacher of half its width; half of them of the rows' own answers."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    make_model(folder, 64)
    return (
        "--model", "examples/tiny", "--random_init", "--model.teacher", str(folder),
        "--data.dataset", "examples/sums/train.jsonl#500", "--max_prompt_length", "32", "--max_completion_length", "12",
        "--temperature", "0.9", "--global_batch_size", "32", "--max_steps", str(STEPS), "--save_steps", str(SAVED_AT),
        "--learning_rate", "1e-3", "--logging_steps", "1", "--gradient_checkpointing", "false", "--report_to", "none",
        "--timeout_s", "120", "--threads_per_worker", "1", "--canary_steps", "2", "--num_workers", "1",
        "--engine_kwargs", '{"enforce_eager": true, "kv_cache_memory_bytes": 67108864}',
    )  # fmt: skip


GKD = ("--rlhf_type", "gkd", "--logits_topk", "16")
KEYS = ("loss", "grad_norm", "teacher_kl", "on_policy")


@pytest.fixture(scope="module")
def undisturbed(flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the teacher beside the student, in one process."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    train("rlhf", run_dir, *GKD, *flags, *IN_PROCESS)
    return run_dir


def test_a_killed_run_of_gkd_continues_as_if_undisturbed(
    flags: tuple[str, ...], run_dir: Path, undisturbed: Path
) -> None:
    """Sampled rounds and those of answers are the same ones, with the same losses."""
    assert set(curve(undisturbed, "on_policy").values()) == {0.0, 1.0}
    assert read_accounting(undisturbed) == {"trained": 32 * STEPS}
    run = start("rlhf", run_dir, *GKD, *flags)
    run.wait_for(lambda: checkpoint.newest(run_dir) is not None, "a checkpoint", timeout_s=200)
    run.kill_driver()
    train("rlhf", run_dir, *GKD, *flags, "--resume", "auto")
    assert_same_curve(run_dir, undisturbed, 1e-3, keys=KEYS)
    assert read_accounting(run_dir) == {"trained": 32 * STEPS}


def test_answers_of_rows_alone_need_no_engine(flags: tuple[str, ...], run_dir: Path) -> None:
    out = train("rlhf", run_dir, "--rlhf_type", "gkd", *flags, *IN_PROCESS, "--lmbda", "0", "--sft_alpha", "0.1")
    losses = curve(run_dir, "loss")
    assert set(losses) == set(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1]
    assert set(curve(run_dir, "sft_loss")) == set(losses)
    assert "rollouts      none: rounds of 32 rows with their answers" in out


def test_a_teacher_writes_the_answers(flags: tuple[str, ...], run_dir: Path) -> None:
    """Of rounds that the student does not sample; the trainer holds it too, for all of its vocabulary."""
    train("rlhf", run_dir, "--rlhf_type", "gkd", *flags, *IN_PROCESS, "--lmbda", "0", "--seq_kd", "true")
    losses = curve(run_dir, "loss")
    assert set(losses) == set(range(1, STEPS + 1))
    assert set(curve(run_dir, "on_policy").values()) == {0.0}
    # A teacher of random weights ends no answer of twelve tokens at once, as those of the rows do.
    assert min(curve(run_dir, "completions/mean_length").values()) > 4


def test_a_pool_of_engines_teaches_as_a_teacher_beside_the_student(
    flags: tuple[str, ...], run_dir: Path, undisturbed: Path
) -> None:
    """The same losses of its likeliest tokens, at each step; rounds of both kinds."""
    train("rlhf", run_dir, *GKD, *flags, *IN_PROCESS, "--teacher_engines", "1")
    keys = ("loss", "grad_norm", "on_policy", "distillation/teacher_mass", "distillation/student_mass")
    assert_same_curve(run_dir, undisturbed, 1e-3, keys=keys)


def test_grpo_learns_from_engines_of_a_teacher_alone(flags: tuple[str, ...], run_dir: Path) -> None:
    """No reward, one completion of each prompt. The teacher in the workers: tests/bars/test_distillation_matrix.py."""
    own = ("--teacher_engines", "1", "--num_generations", "1")
    train("rlhf", run_dir, "--rlhf_type", "grpo", *flags, *IN_PROCESS, *own)
    kl = curve(run_dir, "teacher_kl")
    assert set(kl) == set(range(1, STEPS + 1))
    assert kl[STEPS] < kl[1]
    assert max(curve(run_dir, "sampling_logp_difference").values()) < 1e-4
