"""Hub data sets, `org/name` or `org/name:subset`, and local folders laid out as one, through `datasets`."""

import itertools
from pathlib import Path

from rayswift.data.sources.arrow import ArrowStore, copy_to_arrow
from rayswift.log import UserError

_BATCH_ROWS = 4096


def open_hub(source: str, work: Path) -> ArrowStore:
    """Copy the train split of a data set.

    Raises:
        UserError: it cannot be had; says what the hub's client said.
    """
    import datasets

    name, _, subset = source.partition(":")
    try:
        dataset = datasets.load_dataset(name, subset or None, split="train")
    except Exception as error:  # whatever the hub's client raises, the user asked for this id
        raise UserError(
            f"data.dataset: {source} is no file here and could not be had from the hub: "
            f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        ) from error
    tables = dataset.with_format("arrow").iter(_BATCH_ROWS)
    batches = itertools.chain.from_iterable(table.to_batches() for table in tables)
    return copy_to_arrow(source, dataset.features.arrow_schema, batches, work)
