"""Training that continues an adapter: the reference is the model as it was, and a checkpoint holds one adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, VeraConfig
from transformers import AutoTokenizer
from trl.trainer.utils import use_adapter

from rayswift.config.tasks import TASKS, load
from rayswift.model import tuners, whole
from rayswift.train.arguments import trainer_arguments
from rayswift.train.policy.micro_batches import MicroBatch
from tests.policy_runs import TINY, Rounds, make_groups, make_spec, make_trainer, tiny_adapter, tiny_model, trained

ONLINE = {"grpo": ("--train.beta", "0.1"), "ppo": ("--train.task", "ppo")}
KINDS: dict[str, Any] = {
    "norm": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["norm"]),
    # Their tensors are no modules, and TRL's copy lacks them.
    "embedding": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["embed_tokens"]),
    "ia3": IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"], feedforward_modules=[]),
    "vera": VeraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]),
}


def policy_trainer(run_dir: Path, task: str, adapter: Path) -> Any:
    """The trainer of a run that starts from the adapter; two rounds of a step each."""
    given = ("--tuner", "lora", "--model.adapters", str(adapter), "--learning_rate", "1e-2", "--max_steps", "2")
    spec = make_spec(run_dir, "--num_generations", "4", *ONLINE[task], *given)
    rounds = Rounds([make_groups(3, 4, seed=seed) for seed in range(2)])
    return make_trainer(spec, rounds, whole.put_on(tiny_model(), adapter, trains=True))


def logprobs(model: Any, batch: MicroBatch, temperature: float) -> torch.Tensor:
    """Log-probabilities of the completions' tokens, each text by itself."""
    found = []
    for text, length in zip(batch.texts, batch.lengths.tolist(), strict=True):
        ids = torch.tensor([text])
        with torch.no_grad():
            of_tokens = (model(ids, use_cache=False).logits[0, :-1] / temperature).log_softmax(-1)
        found.append(of_tokens.gather(-1, ids[0, 1:, None])[-length:, 0])
    return torch.cat(found)


@pytest.mark.parametrize("task", ONLINE)
def test_the_reference_of_a_policy_is_the_model_with_the_adapter_it_starts_from(tmp_path: Path, task: str) -> None:
    adapter, saved = tiny_adapter(tmp_path / "adapter", KINDS["norm"]), tmp_path / "saved"
    start = whole.put_on(tiny_model(), adapter).eval()
    trainer = policy_trainer(tmp_path / "run", task, adapter)
    trainer.train()
    first = trainer.state.log_history[0]
    assert abs(first["kl" if task == "grpo" else "objective/kl"]) < 1e-6
    trainer.save_model(str(saved))
    assert not (saved / "ref").exists()
    continued = policy_trainer(tmp_path / "rest", task, adapter)
    continued._load_from_checkpoint(str(saved))
    batches = next(iter(policy_trainer(tmp_path / "again", task, adapter).stream))["step"].batches_of_round
    for each in (trainer, continued):
        reference = each._score_reference(each.model, batches)
        policy = each._score(each.model, batches)[0]
        for place, batch in batches.items():
            wanted = logprobs(start, batch, 1.0)
            # Other kernels add in another order: some 1e-6 of sums of ten.
            torch.testing.assert_close(reference[place], wanted, rtol=0, atol=2e-5)
            with start.disable_adapter():
                assert (reference[place] - logprobs(start, batch, 1.0)).abs().max() > 1e-2
            assert (policy[place] - wanted).abs().max() > 1e-3
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(continued.model.get_parameter(name), parameter, rtol=0, atol=0)
        assert not (parameter.requires_grad and ".ref" in name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["dpo", "kto"])
def test_the_reference_of_preferences_is_too(tmp_path: Path, task: str, kind: str) -> None:
    spec = make_spec(tmp_path, "--train.task", task, "--tuner", "lora")
    trainer_class = load(TASKS[task].trainer)
    trainer = trainer_class(
        spec=spec,
        rank=0,
        stream=None,
        model=trained(tiny_model(), KINDS[kind]),
        args=trainer_arguments(spec, load(TASKS[task].arguments), "float32", False, False),
        processing_class=AutoTokenizer.from_pretrained(TINY),
        train_dataset=trainer_class.placeholder(),
    )
    model, text = trainer.model.eval(), torch.arange(3, 20)[None]
    with torch.no_grad():
        policy = model(text).logits
        with use_adapter(model, tuners.REFERENCE):
            assert torch.equal(model(text).logits, policy)
        with model.disable_adapter():
            assert (model(text).logits - policy).abs().max() > 1e-2
    assert all(name.count(".ref") == 0 for name, each in model.named_parameters() if each.requires_grad)
