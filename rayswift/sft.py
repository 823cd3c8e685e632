"""`rayswift sft`: supervised fine-tuning. The story is in `train/training.py`."""

from rayswift.config.load import Invocation
from rayswift.train import training


def run(invocation: Invocation) -> None:
    """Train a model on rows with answers, classes or scores.

    Raises:
        UserError: bad input (exit code 2) or a run that failed (exit code 1).
    """
    training.run(invocation.config)
