"""The policy trainer on invented rounds, without Ray; shared by its tests and benches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rayswift.cluster.layout import Layout
from rayswift.config.derived import micro_batch_tokens, round_shape
from rayswift.config.load import load
from rayswift.config.schema import RlhfConfig
from rayswift.config.tasks import TASKS
from rayswift.config.tasks import load as task_class
from rayswift.data.sequence.global_batches import FeedPlan, Position
from rayswift.engines.samples import Completion, Group, PolicyVersion, Prompt, Scored, Span, Trajectory
from rayswift.model.load import resolve_dtype
from rayswift.rollout.episodes.trajectories import checksum
from rayswift.rollout.rounds import Round, lines_of, make_table, make_tokens, rows_of_ranks
from rayswift.train.arguments import trainer_arguments
from rayswift.train.clock import Clock
from rayswift.train.policy.policy_stream import CutSettings, PolicyStream
from rayswift.train.policy.policy_trainer import StreamedPolicyTrainer
from rayswift.train.policy.ppo.critic import make_critic
from rayswift.train.spec import RunSpec

TINY = Path(__file__).parents[1] / "examples" / "tiny"
VOCABULARY, END = 64, 1
VERSION = PolicyVersion(0, 0)


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, **changed: Any) -> PreTrainedModel:
    """A policy of two layers with uneven distributions."""
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "initializer_range": 0.3,
        "use_cache": False,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**{**values, **changed})).to(dtype)


def tiny_critic(folder: Path, **changed: Any) -> Path:
    """A folder with a sequence classifier of one output, as task rm saves it."""
    torch.manual_seed(3)
    config = tiny_model(**changed).config
    config.num_labels, config.pad_token_id = 1, 0
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def tiny_adapter(folder: Path, config: PeftConfig) -> Path:
    """A folder with an adapter of `tiny_model`."""
    trained(tiny_model(), config).save_pretrained(folder)
    return folder


def trained(model: PreTrainedModel, config: PeftConfig) -> Any:
    """The model with an adapter that is no longer as it began."""
    tuned: Any = get_peft_model(model, config)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return tuned


def make_groups(
    num_prompts: int,
    num_generations: int,
    longest: int = 9,
    seed: int = 0,
    num_rewards: int = 1,
    lengths: Sequence[int] | None = None,
    prompt_length: int = 5,
    drift: float = 0.3,
) -> list[Group]:
    """Random completions; every third one is truncated. lengths: of the completions, in order."""
    rng = np.random.default_rng(seed)
    drawn = iter(lengths if lengths is not None else rng.integers(2, longest + 1, num_prompts * num_generations))
    groups = []
    for ordinal in range(num_prompts):
        ids = rng.integers(2, VOCABULARY, int(rng.integers(1, prompt_length + 1))).astype(np.int32)
        scored = []
        for number in range(num_generations):
            tokens = rng.integers(2, VOCABULARY, int(next(drawn))).astype(np.int32)
            is_cut = (ordinal + number) % 3 == 2
            tokens[-1] = 5 if is_cut else END
            logprobs = (-np.log(VOCABULARY) + drift * rng.normal(size=len(tokens))).astype(np.float32)
            done = Completion(
                f"{ordinal}:{number}", tokens, logprobs, (Span(0, VERSION),), "length" if is_cut else "stop"
            )
            rewards = tuple(float(each) for each in rng.integers(0, 3, num_rewards))
            scored.append(Scored(done, rewards, sum(rewards)))
        groups.append(Group(Prompt(ordinal, f"rows:{ordinal}", 0, ids, (), {}), tuple(scored)))
    return groups


def with_answers(groups: Sequence[Group], seed: int = 0) -> list[Group]:
    """The same groups, parts of whose completions are answers of tools; the last token is the model's."""
    rng = np.random.default_rng(seed)
    made = []
    for group in groups:
        scored = []
        for each in group.scored:
            done = each.completion
            written = rng.random(len(done.token_ids)) < 0.6
            written[-1] = True
            ids = group.prompt.input_ids
            played = Trajectory(ids, None, written, (), 1, 3, 1, None, "stop", {}, checksum(ids, done.token_ids))
            logprobs = np.where(written, done.logprobs, np.nan).astype(np.float32)
            scored.append(replace(each, completion=replace(done, logprobs=logprobs, trajectory=played)))
        made.append(replace(group, scored=tuple(scored)))
    return made


@dataclass
class Rounds:
    """A client that hands out the given rounds; ended: the reason why the trainer must stop after the last one."""

    rounds: Sequence[Sequence[Group]]
    num_steps: int = 1
    rank: int = 0
    size: int = 1
    num_rewards: int = 1
    ended: str = ""
    asked: list[int] = field(default_factory=list)

    def next(self, number: int) -> Round:
        """The next round's share."""
        self.asked.append(number)
        groups = self.rounds[number] if number < len(self.rounds) else ()
        table = make_table(groups, tuple(f"f{i}" for i in range(self.num_rewards)), PolicyVersion(0, number))
        tokens = make_tokens(lines_of(groups), rows_of_ranks(table, self.num_steps, self.size)[self.rank])
        return Round(
            number=number,
            rank=self.rank,
            size=self.size,
            num_steps=self.num_steps,
            table=table,
            tokens=tokens,
            epochs=0.0,
            position=Position(number + 1),
            last=number >= len(self.rounds) - (not self.ended),
            save=False,
            ledger={"rounds": number + 1},
            metrics={"engines": 1.0},
            ended="" if number < len(self.rounds) else self.ended,
        )

    def keep(self) -> None:
        """Do nothing: there are no completions to write."""

    def evaluate(self, number: int) -> Mapping[str, float]:
        """Return the number of rounds in place of a reward."""
        return {"reward": float(number)}


def make_spec(run_dir: Path, *flags: str, num_workers: int = 0, device: str = "cpu") -> RunSpec:
    """A run of verb rlhf; `flags` as on the command line."""
    base = ("--model", str(TINY), "--data.dataset", "none", "--train.task", "grpo", "--rollout.reward_funcs", "f0")
    fixed = ("--report_to", "none", "--logging_steps", "1", "--save_strategy", "no", "--lr_scheduler_type", "constant")
    config = load("rlhf", [*base, *fixed, "--eval_strategy", "no", "--gradient_checkpointing", "false", *flags]).config
    assert isinstance(config, RlhfConfig)
    layout = Layout(local=True, device=device, num_workers=num_workers, threads_per_worker=1)
    plan = FeedPlan(1, 1000, 1000, 1.0, 1000, 1.0)
    return RunSpec(config, layout, run_dir, TINY, plan, Clock(0.0), None, run_dir)


def make_trainer(
    spec: RunSpec, client: Rounds, model: Any, ref_model: Any = None, initial: str = "", **kwargs: Any
) -> StreamedPolicyTrainer:
    """The trainer of a rank; `initial`: folder of the policy's initial weights, for a critic that begins with them."""
    config: Any = spec.config
    dtype = resolve_dtype(config.model.dtype, spec.layout.device)
    task = TASKS[config.train.task]
    args = trainer_arguments(spec, task_class(task.arguments), dtype, False, False)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    settings = CutSettings(
        num_iterations=round_shape(config.train)[1],
        budget=micro_batch_tokens(config),
        pad_token_id=0,
        leave_truncated=args.mask_truncated_completions,
    )
    stream = PolicyStream(client, Position(), 0.0, 0, {}, settings)
    if config.train.task == "ppo":
        kwargs["critic"] = make_critic(config, model, args.critic, initial)
    trainer: StreamedPolicyTrainer = task_class(task.trainer)(
        spec=spec,
        rank=client.rank,
        stream=stream,
        model=model,
        args=args,
        processing_class=tokenizer,
        ref_model=ref_model,
        train_dataset=StreamedPolicyTrainer.placeholder(),
        **kwargs,
    )
    return trainer
