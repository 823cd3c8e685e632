"""`rayswift data inspect`: statistics of the rows of a run, before it is started.

    rayswift data inspect --dataset rows.jsonl --model Qwen/Qwen3-0.6B --html rows.html
    rayswift data inspect rlhf --config dpo.yaml

The last word is the verb that would train: pt, sft (the default, unless the config names a task of rlhf) or rlhf. A
sample is encoded in this process, without Ray or a GPU.
"""

import sys
import tempfile
from pathlib import Path

from rayswift.config.load import Invocation, to_yaml
from rayswift.config.row_verbs import PtInspectConfig, RlhfInspectConfig
from rayswift.config.schema import DataInspectConfig
from rayswift.config.tasks import TASKS
from rayswift.data import prepare
from rayswift.data.inspect.inspection import inspect
from rayswift.data.inspect.page import to_html, to_text
from rayswift.data.tokenizer.training_copy import model_files, prepare_tokenizer
from rayswift.log import UserError, logger
from rayswift.model.texts import settings as text_settings
from rayswift.model.texts.old_layout import at_first_module_of_hub
from rayswift.model.texts.row_kind import row_kind


def run(invocation: Invocation) -> None:
    """Print the statistics to stdout, and write the HTML page if one is named; raise UserError for bad input."""
    config: DataInspectConfig | PtInspectConfig | RlhfInspectConfig = invocation.config
    if invocation.dry_run:
        print(to_yaml(config))  # noqa: T201
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        config = at_first_module_of_hub(config)
        source = model_files(config.model)
        config = text_settings.settled(config, source)
        kind, packs = row_kind(config, source), TASKS[config.train.task].packs
        data = config.data if packs else config.data.model_copy(update={"packing": False})
        tokenizer_dir = prepare_tokenizer(config.model, work / "tokenizer", kind)
        data = prepare.with_template_date(data, tokenizer_dir)
        windows, _ = prepare.plan_encoding(data, tokenizer_dir, config.train.seed, work / "data", kind)
        found = inspect(windows, config.inspect.rows, config.inspect.show)
    print(to_text(found, colours=sys.stdout.isatty()))  # noqa: T201
    if config.inspect.html:
        try:
            Path(config.inspect.html).write_text(to_html(found), encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(f"inspect.html = {config.inspect.html!r}: {error.strerror}") from error
        logger.info("page: %s", config.inspect.html)
