"""The critic of a policy: its inputs, its training, and how it is saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers import logging as transformers_logging

from rayswift.log import UserError
from rayswift.model.load import load_model
from rayswift.train.policy.ppo import clipping
from rayswift.train.policy.ppo.critic import make_critic
from rayswift.train.policy.sync import gather
from tests.policy_runs import Rounds, make_groups, make_spec, make_trainer, tiny_adapter, tiny_critic, tiny_model

FLAGS = ("--train.task", "ppo", "--num_generations", "2", "--micro_batch_tokens", "40", "--learning_rate", "1e-2")
KINDS = ("shared", "separate")


def trainer_of(tmp_path: Path, kind: str, *flags: str, rounds: int = 1, model: Any = None, **kwargs: Any) -> Any:
    own = ("--model.critic_path", str(tiny_critic(tmp_path / "rm"))) if kind == "separate" else ()
    spec = make_spec(tmp_path / "run", *FLAGS, "--critic", kind, *own, *flags)
    client = Rounds([make_groups(3, 2, seed=seed) for seed in range(rounds)])
    return make_trainer(spec, client, model or tiny_model(), tiny_model(1) if not kwargs else None, **kwargs)


def first_step(trainer: Any) -> Any:
    return next(iter(trainer.stream))["step"]


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in module.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_values_are_those_of_the_states_before_the_tokens(tmp_path: Path, kind: str, kernel: str) -> None:
    """However prompts are laid out, they equal those of each text by itself."""
    model = tiny_model()
    model.set_attn_implementation(kernel)
    trainer = trainer_of(tmp_path, kind, model=model)
    critic = trainer._critic
    head = critic.score if kind == "shared" else critic.network.score
    torch.nn.init.normal_(head.weight)
    backbone = trainer.model.base_model if kind == "shared" else critic.network.base_model
    for batch in first_step(trainer).batches:
        with torch.no_grad():
            *_, values = trainer._forward(trainer.model, batch)
            wanted = []
            for text, length in zip(batch.texts, batch.lengths.tolist(), strict=True):
                states = backbone(torch.tensor([text]), use_cache=False).last_hidden_state[0]
                wanted.append(head(states)[-length - 1 : -1, 0])
        torch.testing.assert_close(values, torch.cat(wanted), rtol=1e-4, atol=1e-4)  # other kernels, float32


@pytest.mark.parametrize("kind", KINDS)
def test_one_engine_trains_both_at_rates_of_their_own(tmp_path: Path, kind: str) -> None:
    trainer = trainer_of(tmp_path, kind, "--critic_learning_rate", "0.5", "--max_steps", "4", "--weight_decay", "0.1")
    before = weights(trainer.model)
    trainer.train()
    rates = {group["lr"] for group in trainer.optimizer.param_groups[trainer._num_policy_groups :]}
    assert rates == {0.5}
    moved = [name for name, each in weights(trainer.model).items() if not torch.equal(each, before[name])]
    assert any(name.startswith("critic.") for name in moved)
    assert any(not name.startswith("critic.") for name in moved)
    assert {"critic/grad_norm", "critic/vf_explained_var", "objective/kl", "val/ratio"} <= set(
        trainer.state.log_history[0]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_stays_as_it_is_while_the_critic_warms_up(tmp_path: Path, kind: str) -> None:
    flags = ("--critic_warmup_rounds", "1", "--weight_decay", "0.1", "--num_ppo_epochs", "2")
    trainer = trainer_of(tmp_path, kind, *flags, "--max_steps", "2", rounds=2)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    for name, each in after.items():
        if not name.startswith("critic."):
            assert torch.equal(each, before[name]), name
    assert not all(torch.equal(each, before[name]) for name, each in after.items())
    longer = trainer_of(tmp_path, kind, *flags, "--max_steps", "4", rounds=2)
    longer.train()
    assert not torch.equal(weights(longer.model)["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_policy_and_critic_are_clipped_each_by_its_norm() -> None:
    policy, critic = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    policy.grad, critic.grad = torch.tensor([0.3, 0.4]), torch.tensor([30.0, 40.0])
    norms = clipping.clip([[policy], [critic]], 1.0)
    assert (norms.policy, norms.critic) == (pytest.approx(0.5), pytest.approx(50.0))
    torch.testing.assert_close(policy.grad, torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(critic.grad, torch.tensor([0.6, 0.8]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_a_checkpoint_holds_a_policy_and_a_critic(
    tmp_path: Path, kind: str, tuner: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Both load in `transformers` without a warning, and a run that continues has them as they were."""
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    given = {"peft_config": adapter} if tuner == "lora" else {}
    flags = ("--tuner", tuner, "--kl_control", "adaptive")
    trainer = trainer_of(tmp_path, kind, *flags, "--max_steps", "4", **given)
    trainer.train()
    folder = tmp_path / "saved"
    trainer.save_model(str(folder))
    transformers_logging.enable_propagation()
    caplog.clear()
    if tuner == "full":
        policy, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(found.values())
        torch.testing.assert_close(policy.model.norm.weight, trainer.model.model.norm.weight)
    else:
        assert not any("critic" in name for name in json.loads((folder / "adapter_config.json").read_text()))
    if kind == "separate":
        _, found = AutoModelForSequenceClassification.from_pretrained(folder / "critic", output_loading_info=True)
        assert not any(found.values())
    else:
        assert [each.name for each in sorted((folder / "critic").iterdir())] == ["state.json", "value_head.safetensors"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    again = trainer_of(tmp_path, kind, *flags, **given)
    again._load_from_checkpoint(str(folder))
    for (name, ours), theirs in zip(weights(again.model).items(), weights(trainer.model).values(), strict=True):
        assert torch.equal(ours, theirs) or (tuner == "lora" and "lora" not in name and "critic" not in name), name


@pytest.mark.parametrize("kind", KINDS)
def test_engines_get_the_policy_alone(tmp_path: Path, kind: str) -> None:
    trainer = trainer_of(tmp_path, kind)
    named = [name for bucket in gather.whole_model(trainer.model, None, True, 1 << 30) for name, _ in bucket]
    assert set(named) == {name for name, _ in tiny_model().named_parameters()}


def test_a_critic_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = tiny_critic(tmp_path / "other", vocab_size=99)
    spec = make_spec(tmp_path, *FLAGS, "--critic", "separate", "--model.critic_path", str(other))
    with pytest.raises(UserError, match=r"model.critic_path = .*has 99 tokens, the policy 64.*set train.critic shared"):
        make_trainer(spec, Rounds([make_groups(1, 2)]), tiny_model())


def test_a_critic_that_begins_as_a_policy_with_an_adapter_has_it_merged(tmp_path: Path) -> None:
    """Its states are the policy's, and its head returns 0 everywhere."""
    tiny_model().save_pretrained(tmp_path / "base")
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    begun = tiny_adapter(tmp_path / "adapter", adapter)
    flags = (*FLAGS, "--critic", "separate", "--tuner", "lora", "--adapters", str(begun))
    config = make_spec(tmp_path / "run", *flags).config
    policy = load_model(config.model, str(tmp_path / "base"), "float32")
    critic = make_critic(config, policy, "separate", str(tmp_path / "base")).network
    tokens = torch.randint(64, (1, 9))
    with torch.no_grad():
        states, wanted = (model.base_model(tokens).last_hidden_state for model in (critic, policy.get_base_model()))
    torch.testing.assert_close(states, wanted, rtol=1e-4, atol=1e-4)  # the sum of products in another order, float32
    with torch.no_grad(), policy.disable_adapter():
        assert not torch.allclose(states, policy.get_base_model().base_model(tokens).last_hidden_state, atol=1e-2)
    assert not critic.score.weight.any()
    assert all(parameter.requires_grad for parameter in critic.parameters())
