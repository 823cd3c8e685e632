"""`rayswift rlhf`: preferences, rewards, reinforcement learning, distillation. The story is in `train/training.py`."""

from rayswift.config.load import Invocation
from rayswift.train import training


def run(invocation: Invocation) -> None:
    """Train a model on preferences, rewards or a teacher.

    Raises:
        UserError: bad input (exit code 2) or a run that failed (exit code 1).
    """
    training.run(invocation.config)
