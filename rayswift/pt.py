"""`rayswift pt`: continued pre-training on text. Resolves its config; the training is not built yet."""

from rayswift.config.built import refuse_unbuilt
from rayswift.config.load import Invocation
from rayswift.config.schema import PtConfig
from rayswift.train.dry_run import dry_run


def run(invocation: Invocation) -> None:
    """Print what `--dry_run` asks for.

    Raises:
        UserError: fields that do not go together, or a run without `--dry_run`.
    """
    config: PtConfig = invocation.config
    if not invocation.dry_run:
        refuse_unbuilt(config)
    dry_run(config)
