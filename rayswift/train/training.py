"""A training run of any task: the driver's half is `run`, each worker's half is `train_loop`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from rayswift import signals
from rayswift.config import paths
from rayswift.config.built import refuse_unbuilt
from rayswift.config.schema import TrainingConfig
from rayswift.config.task_checks import rollout_of
from rayswift.data import prepare
from rayswift.data.filesystem import is_url
from rayswift.data.global_batches import FeedPlan, Position, table
from rayswift.data.stream import needs_ray
from rayswift.data.windows import Windows
from rayswift.log import logger, raise_together
from rayswift.model import abilities, sentence_files
from rayswift.resources import Layout, connect, join, lay_out
from rayswift.rollout import checks
from rayswift.rollout.ledger import LedgerSnapshot
from rayswift.train import (
    adapters,
    compile_locks,
    continuation,
    fingerprint,
    lock,
    model_remarks,
    reference_logps,
    run_folder,
    storage,
    user_code,
)
from rayswift.train import plan as planning
from rayswift.train.accounting import read_evaluation
from rayswift.train.clock import Clock
from rayswift.train.feed_supply import FeedSupply
from rayswift.train.launch import RunSpec, Worker, fit, join_process_group
from rayswift.train.report.live import REPORT, LiveReport
from rayswift.train.supply import Supply
from rayswift.train.tasks import TASKS, compares_partners, keeps_reference, load, row_kind
from rayswift.train.watch import announced


def run(config: TrainingConfig) -> None:
    """Train a model on rows: from a resolved config to a checkpoint.

    Raises:
        UserError: bad input (exit code 2) or a run that failed (exit code 1).
    """
    clock = Clock(psutil.Process().create_time())
    train = config.train
    raise_together(
        lambda: refuse_unbuilt(config),
        lambda: abilities.check(config),
        lambda: adapters.check(config.model),
        lambda: user_code.check(config),
        lambda: checks.check(config),
    )
    recipe = fingerprint.initial_recipe(config)
    with (
        lock.held(train.output_dir),
        storage.working_copy(train.output_dir, train.resume, config.cluster.scratch_dir, recipe) as run_dir,
    ):
        if not is_url(train.output_dir):
            return _train(config, run_dir, clock)
        with signals.last_words(lambda: logger.warning("what is not at %s stays in %s", train.output_dir, run_dir)):
            try:
                _train(config, run_dir, clock)
            except KeyboardInterrupt:
                signals.take_time()
                logger.info("copying what is left to %s; a second signal ends this at once", train.output_dir)
                raise


def _train(config: TrainingConfig, run_dir: Path, clock: Clock) -> None:
    # 1. What runs where, and what an earlier launch of this run left.
    with announced("joining the Ray cluster"):
        joined = join(config.cluster)
    layout = lay_out(config.cluster, joined, rollout_of(config))
    resume = run_folder.open_run(config, run_dir)
    plan = planning.resolve(config, layout, resume)
    config = plan.config

    # 2. Rows: tokenizer, sources, a look at the first of them.
    with announced("fetching the tokenizer"):
        source = prepare.model_files(config.model)
        plan, tokenizer_dir = _with_tokenizer(plan, source, run_dir / "tokenizer", resume)
        config = plan.config
    with announced("looking at the rows"):
        windows, eval_windows = prepare.plan_windows(
            plan.config.data, tokenizer_dir, config.train.seed, run_dir / "data", row_kind(config, source)
        )
    plan = planning.with_labels(planning.with_window_rows(plan, windows.window_rows), windows)
    config = plan.config
    found = fingerprint.fingerprint(config, windows.tokenizer_hash, windows.num_rows)
    if resume:
        continuation.check_unchanged(resume, config, found)
        logger.info("continuing %s at step %d", resume.saved.path, resume.saved.step)
        run_folder.say_what_is_left_behind(run_dir, config.train, resume.history)
    run_folder.write_record(run_dir, config, found)
    known = fingerprint.read_sources(resume.saved.path.parent if resume else run_dir)
    fingerprint.record_sources(config.data, run_dir, known)
    remarks = model_remarks.remarks(config, tokenizer_dir)
    logger.info("%s", planning.describe(plan, windows.num_rows, [], remarks, source))

    with LiveReport(run_dir, config, layout.local, resume.saved if resume else None):
        if resume and resume.is_end_of(plan.config.train):
            return _finish(run_dir, config, clock)

        # 3. Ray, workers, the training itself; from here on other processes read the config, in other folders.
        clock.lap("data")
        config = paths.absolute(config, Path.cwd())
        if _needs_ray(config, layout, windows, eval_windows):
            _prepare_ray(config, layout, run_dir)
        clock.lap("Ray")
        if config.train.trl_extra.get("precompute_ref_log_probs"):
            with announced("computing the reference's log-probabilities"):
                windows, eval_windows = reference_logps.computed(config, layout, run_dir, windows, eval_windows)
            clock.lap("reference")
        spec = RunSpec(
            config=config,
            layout=layout,
            run_dir=run_dir,
            tokenizer_dir=tokenizer_dir,
            feed_plan=_feed_plan(plan, windows),
            clock=clock,
            resume_from=resume.saved.path.resolve() if resume else None,
            work_dir=Path.cwd(),
        )
        fit(spec, train_loop, _supply(spec, windows, eval_windows, resume))

        _finish(run_dir, config, clock)


def _with_tokenizer(
    plan: planning.Plan[TrainingConfig], source: Path, folder: Path, resume: run_folder.Resume | None
) -> tuple[planning.Plan[TrainingConfig], Path]:
    """The plan with what the model's folder decides, and the tokenizer's folder, with how its texts are read."""
    plan = planning.with_texts(plan, source)
    prepared = prepare.prepare_tokenizer(plan.config.model, folder, row_kind(plan.config, source))
    sentence_files.copy(source, prepared)
    before = resume.config["data"] if resume else None
    plan = planning.with_data(plan, prepare.with_template_date(plan.config.data, prepared, before))
    if resume and plan.config.data.window_rows is None:
        plan = planning.with_window_rows(plan, resume.window_rows)
    return plan, prepared


def _prepare_ray(config: TrainingConfig, layout: Layout, run_dir: Path) -> None:
    for_workers, for_all = (find(config, Path.cwd()) for find in (paths.needed, paths.needed_by_rewards))
    with announced("preparing Ray"):
        connect(config.cluster, layout, run_dir, for_workers, for_all)


def _needs_ray(config: TrainingConfig, layout: Layout, windows: Windows, eval_windows: Windows | None) -> bool:
    """Not if this process trains on rows that it can make alone: Ray's idle processes cost two cores some 6 %."""
    if layout.num_workers or not layout.local or rollout_of(config):
        return True
    makes_columns = bool(config.train.trl_extra.get("precompute_ref_log_probs"))
    return makes_columns or any(needs_ray(each) for each in (windows, eval_windows) if each)


def _finish(run_dir: Path, config: TrainingConfig, clock: Clock) -> None:
    """Say what came of the run."""
    model, counts = run_folder.write_result(run_dir, config)
    logger.info("rows\n%s", table(counts))
    evaluation = read_evaluation(run_dir)
    if evaluation:
        logger.info("evaluation rows\n%s", table(evaluation))
    home = config.train.output_dir if is_url(config.train.output_dir) else run_dir
    logger.info("done in %.0f s; model: %s/%s; report: %s/%s", clock.total(), home, model.name, home, REPORT)


def train_loop(spec: RunSpec, worker: Worker) -> None:
    """Train on this rank until the data ends."""
    clock = spec.clock
    clock.lap("worker process")
    join_process_group(spec, worker)
    worker.at("loads its libraries")
    from transformers import set_seed

    from rayswift.train import model as models
    from rayswift.train import parameters, tuners
    from rayswift.train.arguments import trainer_arguments
    from rayswift.train.restart import agree_on_checkpoint, prepare_checkpoint, weights_to_load
    from rayswift.train.trainer import callbacks_of

    clock.lap("imports")
    config, task = spec.config, TASKS[spec.config.train.task]
    if config.cluster.uses_deepspeed:
        compile_locks.settle(compile_locks.folder(), not spec.layout.local, worker.at)
    trainer_class = load(task.trainer)
    user_code.import_plugins(config.train)
    worker.at("makes the weights to begin with, or waits for rank 0 to make them")
    weights = weights_to_load(spec, worker)  # before the arguments: ZeRO-3 cuts whatever is built from then on
    dtype = models.resolve_dtype(config.model.dtype, spec.layout.device)
    worker.at("looks for the checkpoint to begin at, or waits for rank 0 to find it")
    resume, attempt = agree_on_checkpoint(spec, worker)
    worker.at("makes the checkpoint fit this number of ranks, or waits for rank 0 to do so")
    universal = prepare_checkpoint(spec, resume, worker)
    args = trainer_arguments(spec, load(task.arguments), dtype, worker.rank == 0, universal)
    worker.at("waits for what supplies the batches to begin")
    worker.supply.begin(attempt, _start(config, resume))
    weights_dtype = models.weights_dtype(config.model, config.cluster.uses_deepspeed, dtype)
    worker.at("loads the model")
    set_seed(config.train.seed)  # a head that the weights do not hold is the same on every rank
    model, drawn = models.load_with_drawn(config.model, weights, weights_dtype, task.head)
    tokenizer = models.load_tokenizer(str(spec.tokenizer_dir), config.model.trust_remote_code)
    stream = load(task.stream)(spec, worker.supply, resume, tokenizer, model)
    reference = models.reference(config, keeps_reference(config), weights, weights_dtype)
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
            **reference,
        )
    _make_ready(trainer.model, reference.values(), args, config, dtype)
    if task.is_online:
        from rayswift.train.policy import online

        online.attach(trainer, spec, worker)
    if worker.rank == 0:
        logger.info("%s", "\n".join(parameters.table(trainer.model)))
    clock.lap("model")
    trainer.train(resume_from_checkpoint=str(resume.saved.path) if resume else None)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """TRL's constructors tokenise the placeholder under bars of their own ("Tokenizing train dataset")."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()


def _make_ready(model: Any, others: Iterable[Any], args: Any, config: TrainingConfig, dtype: str) -> None:
    """Dropouts and number formats of what is trained, as the config wants them; dropouts of the models beside it; and
    DeepSpeed's bucket for as many gradients as there are."""
    from rayswift.train.model import hold_masters, switch_off_dropout
    from rayswift.train.tuners import num_elements
    from rayswift.train.zero import fit_reduce_bucket

    if "disable_dropout" in args.__dataclass_fields__ and args.disable_dropout:
        switch_off_dropout(model, *others)
    if not config.cluster.uses_deepspeed and not config.model.quantization:
        hold_masters(model, dtype)
    if config.cluster.uses_deepspeed and not config.cluster.deepspeed:
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        fit_reduce_bucket(args.hf_deepspeed_config.config, sum(num_elements(parameter) for parameter in trained))


def _start(config: TrainingConfig, resume: run_folder.Resume | None) -> Position | LedgerSnapshot:
    """Where the supply begins."""
    if rollout_of(config):
        return resume.ledger if resume else LedgerSnapshot()
    return resume.position if resume else Position()


def _supply(spec: RunSpec, windows: Windows, eval_windows: Windows | None, resume: run_folder.Resume | None) -> Supply:
    """The feed of rows, or the rollout plane."""
    start = _start(spec.config, resume)
    if isinstance(start, LedgerSnapshot):
        from rayswift.train.policy.rollout_supply import RolloutSupply

        return RolloutSupply(spec, windows, eval_windows, start)
    return FeedSupply(spec, windows, eval_windows, start)


def _feed_plan(plan: planning.Plan[TrainingConfig], windows: Windows) -> FeedPlan:
    train, data = plan.config.train, plan.config.data
    return FeedPlan(
        global_batch=plan.global_batch,
        num_rows=windows.num_rows,
        window_rows=windows.window_rows,
        num_epochs=train.num_train_epochs,
        max_steps=train.max_steps,
        max_bad_fraction=data.max_bad_fraction,
        drops_tail=TASKS[plan.config.train.task].mean_over_rows,
        partner_length=data.max_length if compares_partners(plan.config) else None,
    )
