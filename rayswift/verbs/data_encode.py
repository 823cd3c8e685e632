"""`rayswift data encode`: rows -> packed windows on disk, once, for any number of runs with `data.cache`.

    rayswift data encode --config run.yaml --to caches/mine
    rayswift sft --config run.yaml --data.cache caches/mine

A word after `encode` is the verb that trains: pt, sft (the default, unless the config names a task of rlhf) or rlhf.
The windows and their order are those of a training, from the same Ray Data tasks. After an interruption it continues
after the complete parts.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rayswift.cluster.connect import connect, join
from rayswift.cluster.layout import lay_out
from rayswift.cluster.machine import count_cores
from rayswift.config.load import Invocation, to_yaml
from rayswift.config.row_verbs import PtEncodeConfig, RlhfEncodeConfig
from rayswift.config.schema import DataEncodeConfig
from rayswift.config.tasks import TASKS
from rayswift.data import prepare
from rayswift.data.cache import fingerprint
from rayswift.data.cache import folder as cache_folder
from rayswift.data.cache.parts import PartSummary, PartWriter
from rayswift.data.sequence.global_batches import table
from rayswift.data.tokenizer.training_copy import model_files, prepare_tokenizer
from rayswift.log import logger
from rayswift.model.texts import sentence_files
from rayswift.model.texts import settings as text_settings
from rayswift.model.texts.old_layout import at_first_module_of_hub
from rayswift.model.texts.row_kind import row_kind
from rayswift.rollout.episodes import schemas
from rayswift.run import lock

_SAY_EVERY_S = 10


def run(invocation: Invocation) -> None:
    """Encode all rows; raise UserError for bad input, a folder of other rows, or too many bad rows (exit code 1)."""
    config: DataEncodeConfig | PtEncodeConfig | RlhfEncodeConfig = invocation.config
    if invocation.dry_run:
        print(to_yaml(config))  # noqa: T201
        return
    with lock.held(config.encode.to, "encode.to"):
        _encode(config, Path(config.encode.to).resolve())


def _encode(config: DataEncodeConfig | PtEncodeConfig | RlhfEncodeConfig, folder: Path) -> None:
    began = time.monotonic()
    config = at_first_module_of_hub(config)
    source = model_files(config.model)
    config = schemas.settled(text_settings.settled(config, source))
    kind, seed = row_kind(config, source), config.train.seed
    packed = {} if TASKS[config.train.task].packs else {"packing": False}
    data = config.data.model_copy(update={"cache": None, **packed})

    # 1. What to encode, and which parts the folder has.
    with tempfile.TemporaryDirectory() as temporary:
        found = prepare_tokenizer(config.model, Path(temporary), kind)
        sentence_files.copy(source, found)
        known = cache_folder.known(folder)
        day = known.settings.get("data.template_date") if known else None
        data = prepare.with_template_date(data, found, {"template_date": day})
        made_from = fingerprint.take(data, found, seed, known, kind)
        if not cache_folder.start(folder, made_from, config.encode.epochs):
            logger.info("%s is complete already", folder)
            return
        tokenizer_dir = shutil.copytree(found, folder / "work" / "tokenizer", dirs_exist_ok=True)
    train, evaluation = prepare.plan_encoding(data, tokenizer_dir, seed, folder / "work", kind)
    plans = {"train": train} | ({"eval": evaluation} if evaluation else {})

    # 2. Ray, and the parts, on all cores.
    num_cpus = max(config.cluster.num_data_cpus, count_cores())
    cluster = config.cluster.model_copy(update={"num_workers": 0, "device": "cpu", "num_data_cpus": num_cpus})
    connect(cluster, lay_out(cluster, join(cluster)), folder)
    encoded = cache_folder.write(folder, plans, made_from, config.encode.epochs, data.max_bad_fraction, _write_parts)
    logger.info("rows\n%s", table(encoded.counts))
    seconds = time.monotonic() - began
    logger.info(
        "%d packed rows of %d tokens (%.1f %% trained) in %.1f MB and %.0f s; train with --data.cache %s",
        encoded.num_packed_rows,
        encoded.num_tokens,
        100 * encoded.num_trained_tokens / max(1, encoded.num_tokens),
        encoded.num_bytes / 1e6,
        seconds,
        config.encode.to,
    )


def _write_parts(writer: PartWriter, parts: range) -> Iterator[PartSummary]:
    """Write the parts with Ray Data, and log the progress."""
    from rayswift.data.feed.pipeline import make_in_order

    said = time.monotonic()
    for done, summary in enumerate(make_in_order(writer, parts), 1):
        yield summary
        if time.monotonic() - said > _SAY_EVERY_S and done < len(parts):
            said = time.monotonic()
            logger.info("%s: %d of %d parts", Path(writer.folder).name, done, len(parts))
