"""The parts of a worker for tasks that sample their training data: the stream, publishing, the canary."""

from dataclasses import replace
from typing import Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rayswift.config.checks.distillation import has_engines
from rayswift.config.derived import max_sequence_length, micro_batch_tokens, round_shape
from rayswift.config.schema import RlhfConfig
from rayswift.engines.samples import PolicyVersion
from rayswift.engines.weights import ObjectStore
from rayswift.rollout.actors import RolloutClient, engine_dtype
from rayswift.rollout.ledger import LedgerSnapshot
from rayswift.run.folder import Resume
from rayswift.train.policy.policy_stream import CutSettings, PolicyStream, RoundFlow
from rayswift.train.policy.sync import canary
from rayswift.train.policy.sync.publish import Publisher
from rayswift.train.spec import DataServiceClient, RunSpec, Worker


def round_stream(
    spec: RunSpec, client: DataServiceClient, resume: Resume | None, tokenizer: Any, model: Any
) -> PolicyStream:
    """Return the optimizer steps of rounds from the coordinator, starting from the checkpoint's ledger."""
    config = spec.config
    assert isinstance(config, RlhfConfig)
    ledger = LedgerSnapshot.from_json(resume.ledger if resume else None)
    settings = CutSettings(
        num_iterations=round_shape(config.train)[1],
        budget=micro_batch_tokens(config),
        pad_token_id=tokenizer.pad_token_id,
        leave_truncated=bool(config.train.trl_extra.get("mask_truncated_completions")),
    )
    position = replace(ledger.position, counts=ledger.rows)
    return PolicyStream(cast(RolloutClient, client), position, ledger.epochs, ledger.rounds, ledger.to_json(), settings)


def attach(trainer: Any, spec: RunSpec, worker: Worker) -> None:
    """Have the trainer publish its weights before its first round and after each, if the run samples."""
    trainer.add_callback(RoundFlow(trainer.stream))
    assert isinstance(spec.config, RlhfConfig)
    if has_engines(spec.config):
        trainer.add_callback(Publishing(trainer, spec, worker))


class Publishing(TrainerCallback):
    """Publishes the policy, and compares log-probabilities of engines and trainer; on all ranks."""

    def __init__(self, trainer: Any, spec: RunSpec, worker: Worker):
        config = spec.config
        assert isinstance(config, RlhfConfig)
        self._trainer, self._rollout, self._worker = trainer, config.rollout, worker
        self._client = cast(RolloutClient, worker.supply)
        longest = max_sequence_length(config)
        self._publisher = Publisher(
            trainer.accelerator.unwrap_model(trainer.model),
            dtype=engine_dtype(config, spec.layout),
            sends_adapter=config.rollout.lora_sync == "adapter",
            is_sender=worker.rank == 0,
            transport=ObjectStore(),
        )
        self._probe = canary.probe_tokens(trainer.processing_class, longest)
        self._since_probe: int | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Publish the weights with which training begins or continues."""
        self._publish()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Publish the weights after a round, unless no further round is sampled."""
        if self._trainer.stream.ends_round and (not control.should_training_stop or control.should_evaluate):
            self._publish()

    def _publish(self) -> None:
        number = self._trainer.stream.number
        with self._trainer.stream.pause():
            published = self._publisher.publish(PolicyVersion(self._client.attempt, number))
            if published is not None:
                self._client.publish(published)
            self._look(number)

    def _look(self, number: int) -> None:
        """Run the canary if it is due; the engines answer once they hold the weights.

        Raises:
            UserError: an engine has other weights than the trainer.
        """
        every = self._rollout.canary_steps
        self._since_probe = None if self._since_probe is None else self._since_probe + 1
        if not every or (self._since_probe is not None and self._since_probe < every):
            return
        self._since_probe = 0
        # On every rank: under ZeRO-3 each holds a part of the weights, and no rank waits in a collective.
        ours = self._trainer.text_logprobs(self._probe)
        probed = self._client.probe(number, self._probe)
        drifts = canary.drift(ours, probed.logprobs)
        canary.judge(
            PolicyVersion(self._client.attempt, number), drifts, len(self._probe), self._rollout.max_logprob_drift
        )
        if probed.missing:  # some engines have not started yet: ask again at the next version
            self._since_probe = every
