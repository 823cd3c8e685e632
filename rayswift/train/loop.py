"""The training run of a worker: from a `RunSpec` to trained steps."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rayswift import imports
from rayswift.config.derived import keeps_reference, rollout_of
from rayswift.config.schema import RlhfConfig, TrainingConfig
from rayswift.config.tasks import TASKS, load
from rayswift.config.user_code import import_plugins
from rayswift.data.sequence.global_batches import Position
from rayswift.data.tokenizer.loaded import load_with_padding
from rayswift.log import logger
from rayswift.rollout.ledger import LedgerSnapshot
from rayswift.run.folder import Resume
from rayswift.train.parallel import compile_locks
from rayswift.train.parallel.process_group import join_process_group
from rayswift.train.spec import RunSpec, Worker


def train_loop(spec: RunSpec, worker: Worker) -> None:
    """Train on this rank until the data ends."""
    config, task, clock = spec.config, TASKS[spec.config.train.task], spec.clock
    clock.lap("worker process")
    with imports.of_libraries():
        join_process_group(spec, worker)
        worker.at("loads its libraries")
        from transformers import set_seed

        from rayswift.model import load as models
        from rayswift.model import parameters, tuners
        from rayswift.train.arguments import trainer_arguments
        from rayswift.train.startup import agree_on_checkpoint, finish_ended, prepare_checkpoint, weights_to_load
        from rayswift.train.trainers.base import callbacks_of

        if config.cluster.uses_deepspeed:
            compile_locks.remove_stale(compile_locks.folder(), not spec.layout.local, worker.at)
        trainer_class = load(task.trainer)
    clock.lap("imports")
    import_plugins(config.train)
    weights = weights_to_load(spec, worker)  # before the arguments: ZeRO-3 shards every model that is built after them
    dtype = models.resolve_dtype(config.model.dtype, spec.layout.device)
    worker.at("looks for the checkpoint to begin at, or waits for rank 0 to find it")
    resume, attempt = agree_on_checkpoint(spec, worker)
    if resume and resume.is_end_of(config.train):
        return finish_ended(spec, resume, worker)
    universal = prepare_checkpoint(spec, resume, worker)
    args = trainer_arguments(spec, load(task.arguments), dtype, worker.rank == 0, universal)
    worker.at("waits for the data service to begin")
    worker.supply.begin(attempt, supply_start(config, resume))
    weights_dtype = models.weights_dtype(config.model, config.cluster.uses_deepspeed, dtype)
    worker.at("loads the model")
    set_seed(config.train.seed)  # a head that is missing in the weights is the same on every rank
    model, drawn = models.load_with_drawn(config.model, weights, weights_dtype, task.head)
    tokenizer = load_with_padding(str(spec.tokenizer_dir), config.model.trust_remote_code)
    stream = load(task.stream)(spec, worker.supply, resume, tokenizer, model)
    beside = _models_beside(config, model, args, weights, weights_dtype)
    with tuners.named_refusals(config.model), _without_progress_bars():
        trainer = trainer_class(
            spec=spec,
            rank=worker.rank,
            stream=stream,
            model=model,
            args=args,
            train_dataset=trainer_class.placeholder(),
            eval_dataset=trainer_class.placeholder() if config.train.eval_strategy != "no" else None,
            processing_class=tokenizer,
            peft_config=tuners.peft_config(config.model, task.head, config.train.max_steps, model, drawn),
            callbacks=callbacks_of(spec, worker, stream, clock, resume),
            **beside,
        )
    _make_ready(trainer.model, beside.values(), args, config, dtype)
    if task.is_online:
        from rayswift.train.policy import online

        online.attach(trainer, spec, worker)
    if worker.rank == 0:
        logger.info("%s", "\n".join(parameters.table(trainer.model)))
    clock.lap("model")
    trainer.train(resume_from_checkpoint=str(resume.saved.path) if resume else None)


def _models_beside(config: TrainingConfig, model: Any, args: Any, weights: str, dtype: str) -> dict[str, Any]:
    """Return the trainer's models beside the trained one: a reference, a teacher, a critic."""
    from rayswift.model import load as models

    beside = models.reference(config, keeps_reference(config), weights, dtype)
    if rollout_of(config):
        beside |= models.teacher(config, dtype)
    if isinstance(config, RlhfConfig) and config.train.task == "ppo":
        from rayswift.train.policy.ppo.critic import make_critic

        beside["critic"] = make_critic(config, model, args.critic, weights)
    return beside


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Hide the progress bars of TRL's constructors, which tokenise the placeholder ("Tokenizing train dataset")."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()


def _make_ready(model: Any, others: Iterable[Any], args: Any, config: TrainingConfig, dtype: str) -> None:
    """Switch off dropout if the task asks for it, hold float32 weights without DeepSpeed, and limit DeepSpeed's bucket
    to the number of gradients."""
    from rayswift.model.load import hold_masters, switch_off_dropout
    from rayswift.model.tuners import num_elements
    from rayswift.train.parallel.deepspeed import fit_reduce_bucket

    if "disable_dropout" in args.__dataclass_fields__ and args.disable_dropout:
        switch_off_dropout(model, *others)
    if not config.cluster.uses_deepspeed and not config.model.quantization:
        hold_masters(model, dtype)
    if config.cluster.uses_deepspeed and not config.cluster.deepspeed:
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        fit_reduce_bucket(args.hf_deepspeed_config.config, sum(num_elements(parameter) for parameter in trained))


def supply_start(config: TrainingConfig, resume: Resume | None) -> Position | LedgerSnapshot:
    """Return where the data service begins."""
    if rollout_of(config):
        return LedgerSnapshot.from_json(resume.ledger if resume else None)
    return resume.position if resume else Position()
