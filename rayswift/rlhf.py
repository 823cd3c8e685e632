"""`rayswift rlhf`: preference optimisation, reward models, reinforcement learning, distillation.

`--dry_run` resolves its config; the training is not built yet.
"""

from rayswift.config.built import refuse_unbuilt
from rayswift.config.load import Invocation


def run(invocation: Invocation) -> None:
    """Say what is not built yet.

    Raises:
        UserError: always, in this version.
    """
    refuse_unbuilt(invocation.config)
