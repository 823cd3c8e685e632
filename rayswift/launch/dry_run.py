"""`--dry_run`: print the resolved config and the plan, without Ray and without writing to the run folder."""

from pathlib import Path

from rayswift.cluster.layout import lay_out
from rayswift.config.checks.built import not_built
from rayswift.config.checks.distillation import engines_of, is_sampling
from rayswift.config.load import to_yaml
from rayswift.config.schema import TrainingConfig
from rayswift.data.sources import parse_source
from rayswift.launch import user_code
from rayswift.launch.plan import describe, remarks, resolve
from rayswift.model import adapters
from rayswift.rollout.episodes import schemas


def dry_run(config: TrainingConfig) -> None:
    """Print the resolved config and the plan.

    Raises:
        UserError: fields contradict each other, or code of the user's own cannot be used.
    """
    user_code.check(config)
    config = adapters.settled(schemas.settled(config))
    plan = resolve(config, lay_out(config.cluster, rollout=engines_of(config), samples=is_sampling(config)), None)
    unchecked = []
    if not plan.layout.local:
        unchecked.append("the cluster: its resources are checked when the run starts")
    for source in [*config.data.dataset, *config.data.eval]:
        named = parse_source(source)
        if not Path(named.path).expanduser().exists():
            unchecked.append(f"the rows of {named.written}: not a file here")
    if config.data.cache:
        unchecked.append(f"whether the cache in {config.data.cache} was made from this config")
    print(to_yaml(plan.config))  # noqa: T201
    print(describe(plan, None, unchecked, remarks(config, Path(config.model.path))))  # noqa: T201
    for what in not_built(config):
        print(f"  not built     {what}")  # noqa: T201
