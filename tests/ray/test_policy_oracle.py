"""The policy trainer's loss and gradients compared with TRL's GRPO and RLOO trainers, on the same completions.

A pairwise choice of what there is; all of it: tests/bars/test_policy_matrix.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# (whether the policy has moved since the round began, options)
CASES: list[tuple[bool, dict[str, Any]]] = [
    (False, {}),
    (True, {"loss_type": "grpo", "epsilon_high": 0.28, "importance_sampling": "token_truncate", "beta": 0.1}),
    (True, {"loss_type": "bnpo", "delta": 1.5, "importance_sampling": "sequence_mask", "scale_rewards": "batch"}),
    (True, {"loss_type": "dr_grpo", "scale_rewards": "none", "mask_truncated_completions": True, "entropy_coef": 0.1}),
    (True, {"loss_type": "dapo", "top_entropy_quantile": 0.37, "entropy_coef": 0.05, "beta": 0.2}),
    (True, {"loss_type": "cispo", "epsilon_high": 0.5, "importance_sampling": "token_mask", "beta": 0.1}),
    (True, {"loss_type": "dapo", "importance_sampling": "token_truncate", "importance_sampling_min": 0.9}),
    (True, {"loss_type": "dapo", "importance_sampling": "sequence_mask", "importance_sampling_min": 0.5}),
    (True, {"loss_type": "sapo", "off_policy_mask_threshold": 0.01, "importance_sampling": "sequence_truncate"}),
    (True, {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-2, "beta": 0.1}),
    (True, {"loss_type": "luspo", "importance_sampling_level": "sequence", "use_bias_correction_kl": False, "beta": 1}),
    (True, {"loss_type": "vespo", "importance_sampling": "token_truncate"}),
    (True, {"loss_type": "dapo", "multi_objective_aggregation": "normalize_then_sum"}),
    (True, {"loss_type": "rloo", "advantage_estimator": "rloo", "beta": 0.1}),
]


@pytest.fixture(scope="module")
def oracle() -> Iterator[Any]:
    """Imported for these tests alone: it takes seconds, and sets environment variables that runs would inherit."""
    environment = dict(os.environ)
    import torch

    from tests import policy_oracle

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield policy_oracle
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_loss_and_gradients_are_those_of_trl(oracle: Any, tmp_path: Path, case: int) -> None:
    later, options = CASES[case]
    groups = oracle.make_groups(3, oracle.NUM_GENERATIONS, num_rewards=2)
    oracle.assert_equal(tmp_path, groups, later, options)


@pytest.mark.parametrize("case", [n for n, (_, options) in enumerate(CASES) if options.get("loss_type") != "rloo"])
def test_what_tools_answer_is_attended_to_and_not_trained(oracle: Any, tmp_path: Path, case: int) -> None:
    """As in TRL, whose mask of tool tokens it is given; its RLOOTrainer has none."""
    later, options = CASES[case]
    groups = oracle.with_answers(oracle.make_groups(3, oracle.NUM_GENERATIONS, num_rewards=2, longest=14))
    oracle.assert_equal(tmp_path, groups, later, options)


def test_training_ends_with_what_it_has_where_nothing_more_can_be_learnt(oracle: Any, tmp_path: Path) -> None:
    """HF's loop would otherwise look for batches up to the last of its steps."""
    from rayswift.train.callbacks import StreamFlow
    from rayswift.train.clock import Clock
    from tests.policy_runs import Rounds, make_spec, make_trainer, tiny_model

    spec = make_spec(
        tmp_path,
        "--max_steps",
        "1000000000",
        "--learning_rate",
        "1e-3",
        "--num_generations",
        str(oracle.NUM_GENERATIONS),
    )
    client = Rounds([oracle.make_groups(2, oracle.NUM_GENERATIONS)] * 2, ended="all rewards equal")
    trainer = make_trainer(spec, client, tiny_model())
    trainer.add_callback(StreamFlow(trainer.stream, 0, Clock(0.0), spec))
    trainer.train()
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").exists()
    assert (trainer.state.global_step, client.asked) == (2, [0, 1, 2])
    assert trainer.stream.last
    assert trainer.stream.state()["ledger"] == {"rounds": 3}


@pytest.mark.parametrize("flags", [(), ("--disable_dropout", "false")])
def test_an_adapter_is_trained_without_dropout_unless_asked_for(oracle: Any, tmp_path: Path, flags: Any) -> None:
    """Engines sample without: with it the policy would not be the one that was sampled from."""
    import torch
    from peft import LoraConfig

    from tests.policy_runs import Rounds, make_spec, make_trainer, tiny_model

    spec = make_spec(tmp_path, "--tuner", "lora", *flags)
    adapter = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False)
    rounds = Rounds([oracle.make_groups(1, oracle.NUM_GENERATIONS)])
    trainer = make_trainer(spec, rounds, tiny_model(), peft_config=adapter)
    trainer.model.train()
    text = torch.arange(3, 20)
    with torch.no_grad():
        first, second = (trainer.model(text[None]).logits for _ in range(2))
    assert torch.equal(first, second) is not bool(flags)


def test_a_text_is_scored_at_the_temperature_of_the_sampling(oracle: Any, tmp_path: Path) -> None:
    """The values that the canary compares with those of engines."""
    import torch

    from tests.policy_runs import Rounds, make_spec, make_trainer, tiny_model

    model, ids = tiny_model(), np.arange(3, 20, dtype=np.int32)
    text = torch.from_numpy(ids.astype(np.int64))
    wanted = (model(text[None]).logits[0, :-1] / 0.7).log_softmax(-1).gather(-1, text[1:, None])[:, 0]
    spec = make_spec(tmp_path, "--temperature", "0.7")
    trainer = make_trainer(spec, Rounds([oracle.make_groups(1, oracle.NUM_GENERATIONS)]), model)
    np.testing.assert_allclose(trainer.text_logprobs(ids), wanted.detach().numpy(), atol=1e-5)


def test_online_dpo_is_the_dpo_loss_on_each_pair(oracle: Any, tmp_path: Path) -> None:
    """Gradients of the trainer, cut into micro-batches, beside the loss written out on whole pairs; a tie is none."""
    import copy

    import torch

    from tests.policy_runs import Rounds, make_spec, make_trainer, tiny_model

    beta, groups = 0.3, oracle.make_groups(6, 2, seed=3)
    policy, reference = tiny_model(0), tiny_model(1)
    own = copy.deepcopy(policy)

    def logp(model: Any, group: Any, scored: Any) -> Any:
        ids = torch.from_numpy(np.concatenate([group.prompt.input_ids, scored.completion.token_ids]).astype(np.int64))
        logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])
        return logprobs[len(group.prompt.input_ids) - 1 :].sum()

    losses, num_ties = [], 0
    for group in groups:
        one, other = group.scored
        if one.reward == other.reward:
            num_ties += 1
            continue
        better, worse = (one, other) if one.reward > other.reward else (other, one)
        with torch.no_grad():
            against = logp(reference, group, better) - logp(reference, group, worse)
        margin = beta * (logp(own, group, better) - logp(own, group, worse) - against)
        losses.append(-torch.nn.functional.logsigmoid(margin))
    (torch.stack(losses).sum() / len(groups)).backward()
    assert num_ties and len(losses) > 2

    flags = ("--rlhf_type", "online_dpo", "--beta", str(beta), "--micro_batch_tokens", "20", "--temperature", "1.0")
    ties = [group for group in groups if len({scored.reward for scored in group.scored}) == 1]
    trainer = make_trainer(make_spec(tmp_path, *flags), Rounds([groups, ties]), policy, reference)
    steps = iter(trainer.stream)
    trainer.training_step(trainer.model, next(steps))
    for (name, wanted), found in zip(own.named_parameters(), trainer.model.parameters(), strict=True):
        scale = max(1e-2, float(wanted.grad.abs().max()))
        torch.testing.assert_close(found.grad, wanted.grad, atol=1e-5 * scale, rtol=1e-4, msg=name)
    trainer.training_step(trainer.model, next(steps))  # what is logged is of all rounds since the last entry
    logged = trainer._metrics()
    assert logged["loss/dpo"] == pytest.approx(float(torch.stack(losses).detach().mean()), rel=1e-5)
    assert logged["pairs"] == len(losses) / 2
