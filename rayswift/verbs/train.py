"""`rayswift pt`, `sft` and `rlhf`: the driver of a training run; the worker is in `train/loop.py`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from rayswift import signals
from rayswift.cluster.connect import connect, join
from rayswift.cluster.layout import Layout, lay_out
from rayswift.config.checks.built import refuse_unbuilt
from rayswift.config.checks.distillation import engines_of, is_sampling
from rayswift.config.derived import compares_partners, rollout_of
from rayswift.config.load import Invocation
from rayswift.config.reading import paths
from rayswift.config.schema import TrainingConfig
from rayswift.config.tasks import TASKS
from rayswift.data import prepare
from rayswift.data.feed.pipeline import needs_ray
from rayswift.data.filesystem import is_url
from rayswift.data.sequence.global_batches import FeedPlan, table
from rayswift.data.sequence.windows import Windows
from rayswift.data.tokenizer.training_copy import model_files, prepare_tokenizer
from rayswift.launch import plan as planning
from rayswift.launch import user_code
from rayswift.launch.supply import DataService, RowService
from rayswift.launch.workers import fit
from rayswift.log import announced, logger, raise_together, refuse
from rayswift.model import adapters, reference_logps
from rayswift.model.kind import abilities
from rayswift.model.texts import sentence_files
from rayswift.model.texts.old_layout import at_first_module_of_hub
from rayswift.model.texts.row_kind import row_kind
from rayswift.report.live import LiveReport
from rayswift.rollout import checks
from rayswift.rollout.episodes import schemas
from rayswift.rollout.ledger import LedgerSnapshot
from rayswift.run import continuation, fingerprint, lock
from rayswift.run import folder as run_folder
from rayswift.run import remote as storage
from rayswift.run.accounting import read_evaluation
from rayswift.run.folder import REPORT
from rayswift.train.clock import Clock
from rayswift.train.loop import supply_start, train_loop
from rayswift.train.spec import RunSpec


@dataclass(frozen=True)
class _Prepared:
    """The state of a run before any process is started."""

    plan: planning.Plan[TrainingConfig]
    layout: Layout
    resume: run_folder.Resume | None
    tokenizer_dir: Path
    windows: Windows
    eval_windows: Windows | None


def run(invocation: Invocation) -> None:
    """Train a model; raise UserError for bad input (exit code 2) or a run that failed (exit code 1)."""
    asked: TrainingConfig = invocation.config
    clock = Clock(psutil.Process().create_time())
    raise_together(
        lambda: refuse_unbuilt(asked),
        lambda: refuse(abilities.training_problems(asked)),
        lambda: refuse(adapters.adapter_problems(asked.model, TASKS[asked.train.task].head)),
        lambda: user_code.check(asked),
        lambda: checks.check(asked),
    )
    asked = schemas.settled(_with_adapter(asked))
    with _run_dir(asked) as run_dir:
        made = _prepare(asked, run_dir)
        config, layout, resume = made.plan.config, made.layout, made.resume
        with LiveReport(run_dir, config, layout.local, resume.saved if resume else None):
            if resume and resume.is_end_of(config.train):
                return _finish(run_dir, config, clock)
            storage.withdraw_result(config.train.output_dir, run_dir)
            clock.lap("data")
            config = paths.absolute(config, Path.cwd())  # because other processes have other working folders
            windows, eval_windows = made.windows, made.eval_windows
            if _needs_ray(config, layout, windows, eval_windows):
                needed = [paths.needed(config, Path.cwd(), names) for names in (paths.FOR_WORKERS, paths.FOR_REWARDS)]
                with announced("preparing Ray"):
                    connect(config.cluster, layout, run_dir, *needed)
            clock.lap("Ray")
            if config.train.trl_extra.get("precompute_ref_log_probs"):
                with announced("computing the reference's log-probabilities"):
                    windows, eval_windows = reference_logps.computed(config, layout, run_dir, windows, eval_windows)
                clock.lap("reference")
            spec = RunSpec(
                config=config,
                layout=layout,
                run_dir=run_dir,
                tokenizer_dir=made.tokenizer_dir,
                feed_plan=_feed_plan(made.plan, windows),
                clock=clock,
                resume_from=resume.saved.path.resolve() if resume else None,
                work_dir=Path.cwd(),
            )
            fit(spec, train_loop, _supply(spec, windows, eval_windows, resume))
            _finish(run_dir, config, clock)


def _with_adapter(asked: TrainingConfig) -> TrainingConfig:
    """The config with the settings of the adapter that training continues, which are checked like its own."""
    found = adapters.settled(asked)
    if found is not asked:
        raise_together(lambda: refuse_unbuilt(found), lambda: checks.check(found))
    return found


@contextmanager
def _run_dir(config: TrainingConfig) -> Iterator[Path]:
    """The locked run folder; for a URL: a working copy, which is uploaded also when the run ends early."""
    train = config.train
    recipe = fingerprint.initial_recipe(config)
    with (
        lock.held(train.output_dir),
        storage.working_copy(train.output_dir, train.resume, config.cluster.scratch_dir, recipe) as run_dir,
    ):
        if not is_url(train.output_dir):
            yield run_dir
            return
        with signals.last_words(lambda: logger.warning("files missing at %s stay in %s", train.output_dir, run_dir)):
            try:
                yield run_dir
            except KeyboardInterrupt:
                signals.take_time()
                logger.info("uploading the remaining files to %s; a second signal stops this at once", train.output_dir)
                raise


def _prepare(config: TrainingConfig, run_dir: Path) -> _Prepared:
    # 1. The layout, the checkpoint of an earlier launch, the plan.
    layout = lay_out(config.cluster, join(config.cluster), engines_of(config), is_sampling(config))
    if layout.local:  # on other nodes the download is not there
        with announced("fetching the model's configuration"):
            config = at_first_module_of_hub(config)
    resume = run_folder.open_run(config, run_dir)
    plan = planning.resolve(config, layout, resume)

    # 2. Rows: tokenizer, sources, the first rows.
    with announced("fetching the tokenizer"):
        source = model_files(plan.config.model)
        plan, tokenizer_dir = _with_tokenizer(plan, source, run_dir / "tokenizer", resume)
        schemas.check_template(plan.config, tokenizer_dir)
        checks.check_tokens(plan.config, tokenizer_dir)
    with announced("looking at the rows"):
        windows, eval_windows = prepare.plan_windows(
            plan.config.data, tokenizer_dir, plan.config.train.seed, run_dir / "data", row_kind(plan.config, source)
        )
    plan = planning.with_labels(planning.with_window_rows(plan, windows.window_rows), windows)
    config = plan.config
    found = fingerprint.fingerprint(config, windows.tokenizer_hash, windows.num_rows, user_code.content_hash(config))
    if resume:
        continuation.check_unchanged(resume, config, found)
        logger.info("continuing %s at step %d", resume.saved.path, resume.saved.step)
        run_folder.say_what_is_left_behind(run_dir, config.train, resume.history)
    run_folder.write_record(run_dir, config, found)
    known = fingerprint.read_sources(resume.saved.path.parent if resume else run_dir)
    fingerprint.record_sources(config.data, run_dir, known)
    remarks = planning.remarks(config, tokenizer_dir)
    logger.info("%s", planning.describe(plan, windows.num_rows, [], remarks, source))
    return _Prepared(plan, layout, resume, tokenizer_dir, windows, eval_windows)


def _with_tokenizer(
    plan: planning.Plan[TrainingConfig], source: Path, folder: Path, resume: run_folder.Resume | None
) -> tuple[planning.Plan[TrainingConfig], Path]:
    """The plan with the settings of the model's folder, and the run's tokenizer folder."""
    plan = planning.with_texts(plan, source)
    prepared = prepare_tokenizer(plan.config.model, folder, row_kind(plan.config, source))
    sentence_files.copy(source, prepared)
    before = resume.config["data"] if resume else None
    plan = planning.with_data(plan, prepare.with_template_date(plan.config.data, prepared, before))
    if resume and plan.config.data.window_rows is None:
        plan = planning.with_window_rows(plan, int(resume.config["data"]["window_rows"]))
    return plan, prepared


def _needs_ray(config: TrainingConfig, layout: Layout, windows: Windows, eval_windows: Windows | None) -> bool:
    """False if this process can encode the rows itself: Ray's idle processes take about 6 % of two cores."""
    if layout.num_workers or not layout.local or rollout_of(config):
        return True
    makes_columns = bool(config.train.trl_extra.get("precompute_ref_log_probs"))
    return makes_columns or any(needs_ray(each) for each in (windows, eval_windows) if each)


def _finish(run_dir: Path, config: TrainingConfig, clock: Clock) -> None:
    """Write and log the results."""
    model, counts = run_folder.write_result(run_dir, config)
    logger.info("rows\n%s", table(counts))
    evaluation = read_evaluation(run_dir)
    if evaluation:
        logger.info("evaluation rows\n%s", table(evaluation))
    home = config.train.output_dir if is_url(config.train.output_dir) else run_dir
    logger.info("done in %.0f s; model: %s/%s; report: %s/%s", clock.total(), home, model.name, home, REPORT)


def _supply(
    spec: RunSpec, windows: Windows, eval_windows: Windows | None, resume: run_folder.Resume | None
) -> DataService:
    """The service that supplies batches: rows or rollouts."""
    start = supply_start(spec.config, resume)
    if isinstance(start, LedgerSnapshot):
        from rayswift.launch.rollout_supply import RolloutService

        return RolloutService(spec, windows, eval_windows, start)
    return RowService(spec, windows, eval_windows, start)


def _feed_plan(plan: planning.Plan[TrainingConfig], windows: Windows) -> FeedPlan:
    train, data = plan.config.train, plan.config.data
    return FeedPlan(
        global_batch=plan.global_batch,
        num_rows=windows.num_rows,
        window_rows=windows.window_rows,
        num_epochs=train.num_train_epochs,
        max_steps=train.max_steps,
        max_bad_fraction=data.max_bad_fraction,
        drops_remainder=TASKS[plan.config.train.task].mean_over_rows,
        mismatched_length=data.max_length if compares_partners(plan.config) else None,
    )
