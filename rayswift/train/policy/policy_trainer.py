"""The policy trainer: `transformers`' Trainer whose training data are rounds of completions.

An item of the stream is one optimizer step, cut into micro-batches; gradients are summed over ranks at the last one.
The loss of a micro-batch is its share of the step's loss, so results do not depend on the cut or on the number of
workers.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from peft import PeftModel
from transformers.trainer_utils import EvalLoopOutput
from trl.models import prepare_deepspeed
from trl.trainer.utils import disable_dropout_in_model, use_adapter

from rayswift.config.derived import keeps_reference
from rayswift.config.schema import RlhfConfig
from rayswift.log import UserError
from rayswift.model import tuners
from rayswift.rollout.rounds import rows_of_step
from rayswift.train import evaluation
from rayswift.train import nan_guard as guard
from rayswift.train.policy import arguments
from rayswift.train.policy.distillation.teacher import Teacher, in_order, outside_logprobs, teach
from rayswift.train.policy.losses import Completions, Loss, StepCounts, policy_loss
from rayswift.train.policy.micro_batches import MicroBatch, Place
from rayswift.train.policy.policy_stream import PolicyStep, PolicyStream, trained_rows
from rayswift.train.policy.round_values import RoundValues, Tokenwise, reward_metrics, token_advantages
from rayswift.train.policy.scoring import Scorer
from rayswift.train.policy.shared_prompts import choose_layout
from rayswift.train.spec import RunSpec
from rayswift.train.trainers.base import Streamed

_TIE = 1e-5


class StreamedPolicyTrainer(Streamed):
    """GRPO and its kind on rounds of completions; see `Streamed`.

    Args:
        spec: The run, of verb rlhf.
        model: The policy, plain or with an adapter that is trained on.
        args: See `arguments`.
        processing_class: The tokenizer.
        stream: The steps, in the layout of the models.
        peft_config: A fresh adapter to train.
        ref_model: Reference of the KL term; None: the policy without its fresh adapter, or with the adapter that is
            trained on as it is now, or no KL term.
        teacher: Teacher of the policy; None: the policy itself, with or without its adapter, or no teacher.
        kwargs: As for `Streamed`.
    """

    stream: PolicyStream

    def __init__(
        self,
        *,
        spec: RunSpec,
        model: Any,
        args: arguments.PolicyArguments,
        processing_class: Any,
        stream: PolicyStream,
        peft_config: Any = None,
        ref_model: Any = None,
        teacher: Any = None,
        **kwargs: Any,
    ):
        config = spec.config
        assert isinstance(config, RlhfConfig)
        temperature = config.rollout.temperature
        if not args.beta:
            ref_model = None
        beside = (model, ref_model, teacher, *self._beside())
        stream.layout = choose_layout(*(each for each in beside if each is not None))
        self._score_policy = Scorer(model, temperature, entropy=True)
        if peft_config is not None:
            model = tuners.with_new_adapter(model, peft_config, args)
        elif isinstance(model, PeftModel):
            tuners.continued(model, args, keeps_start=ref_model is None and keeps_reference(config))
        self._complete(model)
        super().__init__(spec=spec, stream=stream, model=model, args=args, processing_class=processing_class, **kwargs)
        if args.disable_dropout:
            disable_dropout_in_model(self.model)
        self._reference: Any = None
        if ref_model is not None:
            self._score_other = Scorer(ref_model, temperature, entropy=False)
            self._reference = self._prepared(ref_model)
        self._teacher = Teacher.of(config, teacher, self._prepared)
        self._set_losses(config, args)
        self._values: RoundValues
        self._sums: evaluation.Sums = {}
        self._rollout_metrics: dict[str, float] = {}  # of the last round, from the coordinator
        self._ordinals: NDArray[np.int64]  # of the round's completions
        self._num_counted = 0
        # The step's micro-batches and their losses.
        self._step: list[tuple[MicroBatch, float]] = []

    def _set_losses(self, config: RlhfConfig, args: Any) -> None:
        self._advantages = arguments.advantage_settings(config, args)
        self._loss = arguments.policy_settings(config, args)

    def _beside(self) -> Sequence[Any]:
        """Return further models that take the policy's micro-batches."""
        return ()

    def _complete(self, model: Any) -> None:
        """Add a model that is trained beside the policy, by the same DeepSpeed engine."""

    def _prepared(self, model: Any) -> Any:
        model.eval().requires_grad_(False)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator)
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute the gradients of an optimizer step, micro-batch by micro-batch.

        Returns:
            This rank's share of the loss times the number of ranks; the mean over ranks is the loss.

        Raises:
            UserError: a NaN or infinite loss.
        """
        step: PolicyStep = inputs["step"]
        if step.begins_round:
            self._begin_round(model, step)
        counted = self._counted(model, step) if self.args.top_entropy_quantile < 1 else None
        counts = self._counts(step, counted is not None)
        model.train()
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(step.batches):
            is_last = number == len(step.batches) - 1
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            place = step.index, number
            with self._gradients_summed(model, is_last):
                mask = None if counted is None else counted[number]
                loss = self._micro_loss(model, step, batch, place, counts, mask) * self.args.world_size
                self._backward(model, loss, is_last)
            total += loss.detach()
        return total

    def _backward(self, model: Any, loss: torch.Tensor, is_last: bool) -> None:
        """Run the backward pass of a micro-batch; DeepSpeed steps after the last one."""
        scaling = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        self.accelerator.backward(loss, **scaling)

    def _gradients_summed(self, model: Any, now: bool) -> AbstractContextManager[Any]:
        """Sum gradients over ranks at this micro-batch, or at a later one. The accelerator informs DeepSpeed."""
        return nullcontext() if now or self.is_deepspeed_enabled else self.accelerator.no_sync(model)

    def _micro_loss(
        self,
        model: Any,
        step: PolicyStep,
        batch: MicroBatch,
        place: Place,
        counts: StepCounts,
        counted: torch.Tensor | None,
    ) -> torch.Tensor:
        values, device = self._values, self.args.device
        with self.compute_loss_context_manager():
            logprobs, entropies = self._forward(model, batch)
        completions = Completions(
            lengths=batch.lengths.to(device),
            advantages=values.advantages[place].to(device),
            old_logprobs=_on(device, values.old_logprobs.get(place)),
            sampling_logprobs=batch.sampling_logprobs.to(device),
            reference_logprobs=_on(device, values.reference_logprobs.get(place)),
            counted=_on(device, counted),
        )
        if place not in values.old_logprobs and step.num_passes > 1:
            values.old_logprobs[place] = logprobs.detach().cpu()
        loss = policy_loss(logprobs, entropies, completions, counts, self._loss, self.args.entropy_coef)
        self._note(batch, loss)
        return loss.total

    def _forward(self, model: Any, batch: MicroBatch) -> tuple[torch.Tensor, ...]:
        """Return log-probability and entropy of each completion token, [n]; of the reference only the first."""
        device = self.args.device
        with self._inputs(batch) as inputs:
            return self._scorer(model)(model, inputs, batch.followed.to(device), batch.targets.to(device))

    def _scorer(self, model: Any) -> Scorer:
        if self._teacher and self._teacher.scorer and model is self._teacher.model:
            return self._teacher.scorer
        return self._score_policy if model is not self._reference else self._score_other

    @contextmanager
    def _inputs(self, batch: MicroBatch) -> Iterator[dict[str, Any]]:
        """Return the model's inputs of a micro-batch, for one forward pass."""
        inputs = self._prepare_inputs(dict(batch.inputs))
        shared = batch.shared_prompts and batch.shared_prompts.for_one_pass()
        if not shared:
            yield inputs
            return
        with shared.attended():
            yield inputs | {"shared_prompts": shared}

    @contextmanager
    def _scoring(self, model: Any) -> Iterator[None]:
        """Compute without dropout, in the number format of the training, within the block."""
        was_training = model.training
        model.eval()
        with self.compute_loss_context_manager():
            yield
        model.train(was_training)

    @torch.no_grad()
    def _score(self, model: Any, batches: dict[Place, MicroBatch]) -> Sequence[Tokenwise]:
        """Return the same for some micro-batches, without gradient or dropout, on the CPU."""
        with self._scoring(model):
            scored = {place: self._forward(model, batch) for place, batch in batches.items()}
        if not scored:
            return {}, {}, {}
        columns = zip(*scored.values(), strict=True)
        return [dict(zip(scored, (each.float().cpu() for each in column), strict=True)) for column in columns]

    @torch.no_grad()
    def text_logprobs(self, token_ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the log-probabilities [T - 1] of tokens 1 to T - 1 of a text [T], at the temperature of the sampling.

        All ranks of ZeRO-3 call it. It uses the fused head as in training: after a call of the head itself, DeepSpeed
        0.19 has no buffer for the gradient of an untied head.
        """
        model, ids = self.model_wrapped, torch.from_numpy(token_ids.astype(np.int64)).to(self.args.device)
        with self._scoring(model):
            followed = torch.arange(len(ids) - 1, device=ids.device)
            logprobs = self._target_logprobs(model, {"input_ids": ids[None]}, followed, ids[1:])
        found: NDArray[np.float32] = logprobs.float().cpu().numpy()
        return found

    def _target_logprobs(
        self, model: Any, inputs: dict[str, Any], followed: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        return self._score_policy(model, inputs, followed, targets)[0]

    def _score_reference(self, model: Any, batches: dict[Place, MicroBatch]) -> Tokenwise:
        if self._reference is not None:
            return self._score(self._reference, batches)[0]
        tuned = self.accelerator.unwrap_model(model)
        with use_adapter(tuned, tuners.REFERENCE if tuners.REFERENCE in tuned.peft_config else None):
            return self._score(model, batches)[0]

    def _score_teacher(self, model: Any, batches: dict[Place, MicroBatch]) -> Tokenwise:
        assert self._teacher is not None
        if self._teacher.is_outside:
            return {place: outside_logprobs(batch) for place, batch in batches.items()}
        with self._teacher.asked(model, self.accelerator) as asked:
            found = self._score(asked, {place: batch.teacher or batch for place, batch in batches.items()})[0]
        return {place: in_order(found[place], batch) for place, batch in batches.items()}

    def _begin_round(self, model: Any, step: PolicyStep) -> None:
        """Compute advantages, and the old log-probabilities for later steps."""
        batches = step.batches_of_round
        values = self._values = RoundValues()
        # The first step computes its own in its forward pass.
        later = {place: batch for place, batch in batches.items() if place[0] > 0}
        takes_kl = self.args.takes_kl_off_rewards
        values.old_logprobs = self._score(model, batches if takes_kl or self._teacher else later)[0]
        if self.args.beta:
            values.reference_logprobs = self._score_reference(model, batches)
        penalties = None
        if takes_kl:
            old, reference = values.old_logprobs, values.reference_logprobs
            penalties = {place: self.args.beta * (old[place] - reference[place]) for place in batches}
            kl = sum(float((old[place] - reference[place]).sum()) for place in batches)
            num_tokens = sum(int(batch.lengths.sum()) for batch in batches.values())
            evaluation.add(self._sums, {"kl": (kl, num_tokens)})
        table = step.round.table
        self._ordinals, self._rollout_metrics = table.ordinals, dict(step.round.metrics)
        own: dict[str, float] = {}
        values.advantages = token_advantages(table, batches, self._advantages, penalties, self.sum_over_ranks, own)
        evaluation.add(self._sums, {name: (value, 1.0) for name, value in own.items()})
        if self._teacher:
            theirs = self._score_teacher(model, batches)
            evaluation.add(self._sums, teach(values, theirs, self.args.teacher_kl_coef))
        evaluation.add(self._sums, reward_metrics(table, self._advantages, step.round.metrics))

    def _counted(self, model: Any, step: PolicyStep) -> list[torch.Tensor]:
        """Return for each micro-batch the tokens whose entropy is in the step's top quantile (arXiv 2506.01939)."""
        batches = {(step.index, number): batch for number, batch in enumerate(step.batches)}
        entropies = list(self._score(model, batches)[1].values())
        gathered = [torch.cat(entropies).numpy()]
        if self.args.world_size > 1:
            gathered = [np.empty(0)] * self.args.world_size
            dist.all_gather_object(gathered, torch.cat(entropies).numpy())
        everywhere = np.concatenate(gathered)
        quantile = 1 - self.args.top_entropy_quantile
        # First tokens of a prompt's completions have equal entropies: rounding must not decide which of them count.
        threshold = float(np.quantile(everywhere, quantile)) - _TIE if len(everywhere) else 0.0
        self._num_counted = int((everywhere >= threshold).sum())
        return [each >= threshold for each in entropies]

    def _counts(self, step: PolicyStep, is_masked: bool) -> StepCounts:
        """Return the counts of the whole step, from the round's table, which every rank has."""
        table, num_steps = step.round.table, step.round.num_steps
        lengths = np.where(trained_rows(table, self.args.mask_truncated_completions), table.written_lengths, 0)
        rows = rows_of_step(table, num_steps, step.index)
        tokens = int(lengths[rows].sum())
        counted = self._num_counted if is_masked else tokens
        return StepCounts(len(rows), tokens, int(lengths.sum()) / num_steps, counted)

    def _note(self, batch: MicroBatch, loss: Loss) -> None:
        """Add a micro-batch to the metrics, and stop if its loss is NaN or infinite."""
        names = list(loss.sums)
        value, *sums = torch.stack(
            [loss.total.detach(), *(each.to(loss.total) for each in loss.sums.values())]
        ).tolist()
        num_tokens = int(batch.lengths.sum())
        evaluation.add(self._sums, {name: (each, num_tokens) for name, each in zip(names, sums, strict=True)})
        self._step.append((batch, value))
        if not math.isfinite(value):
            raise self._not_a_number(f"the loss is {value}", self._step[-1:])

    def _not_a_number(self, what: str, step: Sequence[tuple[MicroBatch, float]]) -> UserError:
        found = [
            guard.RowLoss(f"prompt {self._ordinals[row]}", loss, num_tokens, self.processing_class.decode(text))
            for batch, loss in step
            for row, num_tokens, text in zip(batch.rows, batch.lengths.tolist(), batch.texts, strict=True)
        ]
        return guard.stop(self._run_dir, self._rank, self.state.global_step + 1, what, found)

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Return mean rewards of new completions, sampled with the newest published weights."""
        found = self.stream.evaluate()  # on every rank: a rank that waited in a collective would exceed its deadline
        prefix = kwargs.get("metric_key_prefix", "eval")
        num_samples = int(found["completions"])
        metrics = {f"{prefix}_{name}": value for name, value in found.items() if name != "completions"}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_samples)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log rewards, lengths and metrics of the loss since the last entry, beside the loss."""
        if "loss" in logs:
            logs.update(self._rollout_metrics | self._metrics())
        super().log(logs, start_time)

    def _metrics(self) -> dict[str, float]:
        """Return means over all ranks since the last call."""
        totals, self._sums = self.sums_over_ranks(self._sums), {}
        return {name: value / count for name, (value, count) in totals.items() if count}


def _on(device: torch.device, values: torch.Tensor | None) -> torch.Tensor | None:
    return None if values is None else values.to(device)
