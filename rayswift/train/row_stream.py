"""The stream of a rank whose task trains on rows."""

from functools import partial
from typing import Any, cast

from rayswift.data.global_batches import Position
from rayswift.train import model as models
from rayswift.train.feed_client import FeedClient
from rayswift.train.launch import RunSpec
from rayswift.train.run_folder import Resume
from rayswift.train.stream import Stream
from rayswift.train.supply import SupplyClient
from rayswift.train.tasks import TASKS, load


def row_stream(spec: RunSpec, client: SupplyClient, resume: Resume | None, tokenizer: Any, model: Any) -> Stream:
    """Micro-batches of rows from the feed, from the checkpoint's position on."""
    config = spec.config
    collate = load(TASKS[config.train.task].collate)
    return Stream(
        cast(FeedClient, client),
        resume.position if resume else Position(),
        resume.epochs if resume else 0.0,
        micro_batch=config.train.per_device_train_batch_size,
        accumulation=config.train.gradient_accumulation_steps,
        max_length=config.data.max_length,
        packs=config.data.packing,
        collate=partial(collate, pad_token_id=tokenizer.pad_token_id, layout=models.layout_of(model)),
    )
