"""The trainer factory: one table, task -> how it is trained.

A new task is a row here, an encoder of its row family in `data/`, and an example. Trainers and configs are named as
`module:Class`, so that the driver imports none of them.
"""

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from rayswift.data.rows import Family

Head = Literal["causal_lm"]


@dataclass(frozen=True)
class Task:
    """How a task is trained.

    verb: as a user asks for it; trainer: a `Streamed` trainer; arguments: the TRL or HF config it takes; family: what
    its rows are; collate: packed rows -> the tensors its loss takes; head: what the model ends in; packs: whether
    documents share a row (`data.packing`); mean_over_rows: whether the loss is a mean over rows, not over tokens, so
    that an incomplete batch is never trained.
    """

    verb: str
    trainer: str
    arguments: str
    family: Family
    collate: str
    head: Head
    packs: bool
    mean_over_rows: bool


TASKS: dict[str, Task] = {
    "causal_lm": Task(
        verb="pt, sft",
        trainer="rayswift.train.token_trainer:StreamedSFTTrainer",
        arguments="trl:SFTConfig",
        family="causal",
        collate="rayswift.data.batches:collate",
        head="causal_lm",
        packs=True,
        mean_over_rows=False,
    ),
}


def load(name: str) -> Any:
    """What `module:Class` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
