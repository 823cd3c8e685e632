"""`rayswift sample`: prompts -> completions -> rewards -> rows; the model is not trained.

    rayswift sample --model runs/demo --dataset prompts.jsonl --reward_funcs accuracy --output_file best.jsonl

The rows train `sft` (the best completions) and `dpo` (with the worst as the rejected one). It is the rollout service of
task grpo without a trainer: the same prompts, engines and rewards.
"""

import time
from pathlib import Path

from rayswift.cluster.connect import connect, join
from rayswift.cluster.layout import Layout, lay_out
from rayswift.config.checks.built import refuse_unbuilt
from rayswift.config.derived import max_sequence_length
from rayswift.config.load import Invocation, to_yaml
from rayswift.config.reading import paths
from rayswift.config.schema import SampleConfig
from rayswift.data import prepare
from rayswift.data.sequence.global_batches import table
from rayswift.data.tokenizer.training_copy import model_files, prepare_tokenizer
from rayswift.launch import models, user_code
from rayswift.launch.rollout_supply import rollout_plan
from rayswift.launch.supply import beside_the_driver
from rayswift.log import UserError, announced, first_line, logger, raise_together, refuse
from rayswift.model.kind import abilities
from rayswift.model.texts import settings as text_settings
from rayswift.model.texts.row_kind import row_kind
from rayswift.rollout import checks
from rayswift.rollout.actors import RolloutSpec
from rayswift.rollout.episodes import schemas
from rayswift.rollout.ledger import LedgerSnapshot
from rayswift.rollout.sampling import adapter, made_from
from rayswift.run import lock
from rayswift.run.folder import FINGERPRINT

_SAY_EVERY_S = 30.0


def run(invocation: Invocation) -> None:
    """Sample all prompts of a config.

    Raises:
        UserError: bad input, or the output file exists (exit code 2); too many prompts failed (exit code 1).
    """
    config = _settled(invocation.config)
    output = Path(config.sample.output_file)
    if invocation.dry_run:
        layout = lay_out(config.cluster, rollout=config.rollout, trains=False)
        print("\n".join([to_yaml(config), "plan", *_plan(config, layout)]))  # noqa: T201
        return
    raise_together(
        lambda: refuse_unbuilt(config),
        lambda: refuse(abilities.training_problems(config)),
        lambda: refuse(adapter.problems(config.model)),
        lambda: user_code.check(config),
        lambda: checks.check(config),
    )
    if output.exists() and config.train.resume == "never":
        raise UserError(f"sample.output_file = {str(output)!r} is there already; continue it with --resume auto")
    config = schemas.settled(config)
    began, run_dir = time.monotonic(), Path(config.train.output_dir).absolute()
    with lock.held(config.train.output_dir):
        if (run_dir / FINGERPRINT).exists():
            raise UserError(f"train.output_dir = {str(run_dir)!r} holds a training run; choose another --output_dir")
        outcomes = _sampled(_rollout_spec(config, run_dir))
    logger.info("prompts\n%s", table(outcomes))
    logger.info("done in %.0f s; rows: %s", time.monotonic() - began, output)


def _plan(config: SampleConfig, layout: Layout) -> list[str]:
    """The lines of `--dry_run`."""
    rollout = config.rollout
    return [
        f"  rollouts      {layout.min_engines} vLLM engine(s) on {layout.device}, {rollout.num_generations} "
        f"completions of each prompt, of up to {max_sequence_length(config)} tokens with it",
        f"  rewards       {layout.reward_workers} process(es) for functions, {len(rollout.reward_models)} for models",
        *models.describe(config, layout),
        f"  rows          {config.sample.output_file}",
    ]


def _rollout_spec(config: SampleConfig, run_dir: Path) -> RolloutSpec:
    """The setup of the sampling; starts or joins Ray."""
    layout = lay_out(config.cluster, join(config.cluster), config.rollout, trains=False)
    with announced("looking at the rows"):
        source = model_files(config.model)
        config = text_settings.settled(config, source)
        kind = row_kind(config, source)
        tokenizer_dir = prepare_tokenizer(config.model, run_dir / "tokenizer", kind)
        schemas.check_template(config, tokenizer_dir)
        output = Path(config.sample.output_file)
        before = made_from.saved(output) if config.train.resume == "auto" else None
        day = {"template_date": (before or {}).get("data.template_date")}
        data = prepare.with_template_date(config.data, tokenizer_dir, day)
        origin = made_from.made_from(
            config.model_copy(update={"data": data}), tokenizer_dir, kind, user_code.content_hash(config)
        )
        if before is not None:
            made_from.refuse_other(output, origin)
        windows, _ = prepare.plan_windows(data, tokenizer_dir, config.train.seed, run_dir / "data", kind)
    config = paths.absolute(config.model_copy(update={"data": data}), Path.cwd())
    needed = [paths.needed(config, Path.cwd(), names) for names in (paths.FOR_WORKERS, paths.FOR_REWARDS)]
    with announced("preparing Ray"):
        connect(config.cluster, layout, run_dir, *needed)
    return RolloutSpec(
        config=config,
        plan=rollout_plan(config),
        layout=layout,
        run_dir=run_dir,
        tokenizer_dir=tokenizer_dir,
        work_dir=Path.cwd(),
        windows=windows,
        eval_windows=None,
        start=LedgerSnapshot(),
        made_from=origin,
    )


def _settled(config: SampleConfig) -> SampleConfig:
    """The config for one pass over the rows without a trainer; a batch has the completions of one prompt."""
    output = str(Path(config.sample.output_file).absolute())
    train = {"num_train_epochs": 1.0, "max_steps": -1, "global_batch_size": config.rollout.num_generations}
    return config.model_copy(
        update={
            "sample": config.sample.model_copy(update={"output_file": output}),
            "train": config.train.model_copy(update=train),
            "cluster": config.cluster.model_copy(update={"num_workers": 0, "zero_stage": 0}),
            "data": config.data.model_copy(update={"packing": False, "eval": [], "eval_fraction": 0.0}),
        }
    )


def _sampled(spec: RolloutSpec) -> dict[str, int]:
    """Sample in an actor, and return the number of prompts by outcome.

    Raises:
        UserError: the sampling failed.
    """
    import ray

    from rayswift.data.feed.pipeline import user_error_in
    from rayswift.rollout.sampling.actor import SampleActor

    options = {"num_cpus": 0, "max_restarts": 0, "max_concurrency": 4, "scheduling_strategy": beside_the_driver()}
    actor = ray.remote(SampleActor).options(**options).remote(spec)
    sampling = actor.sample.remote()
    while True:
        try:
            outcomes: dict[str, int] = ray.get(sampling, timeout=_SAY_EVERY_S)
            return outcomes
        except ray.exceptions.GetTimeoutError:
            num_prompts, num_rows = ray.get(actor.standing.remote())
            logger.info("%d prompts sampled, %d rows", num_prompts, num_rows)
        except ray.exceptions.RayTaskError as error:
            raise (user_error_in(error) or error) from error
        except ray.exceptions.RayActorError as error:
            raise UserError(f"the process that samples died ({first_line(error)})", exit_code=1) from error
