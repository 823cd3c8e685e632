"""Hub data sets, and local folders whose README names their splits, opened with `datasets`."""

import itertools
from pathlib import Path

from rayswift.data.sources.arrow import ArrowStore, copy_to_arrow
from rayswift.data.sources.layout import pick
from rayswift.data.sources.named import Source
from rayswift.log import UserError, first_line

_BATCH_ROWS = 4096


def open_hub(source: Source, work: Path, held_out: bool = False) -> ArrowStore:
    """Copy a split of a data set to `work` with the suffix .arrow; `held_out`: if none is named, for evaluation."""
    import datasets

    path, subset, revision = source.path, source.subset, source.revision
    local = Path(path).expanduser()
    path = str(local) if local.is_dir() else path
    try:
        # A named split may be a slice such as train[:10%], which no list contains.
        split = source.split or pick(
            source, datasets.get_dataset_split_names(path, subset, revision=revision), held_out
        )
        dataset = datasets.load_dataset(path, subset, split=split, revision=revision)
    except UserError:
        raise
    except Exception as error:  # whatever the hub's client raises, the user asked for this id
        failed = "cannot be opened" if local.is_dir() else "is no file here, and cannot be downloaded from the hub"
        raise UserError(
            f"data.dataset: {source.name} {failed}: {type(error).__name__}: {first_line(error)}"
            "; write a data set as org/name:subset/split@revision, each part but the id as needed"
        ) from error
    tables = dataset.with_format("arrow").iter(_BATCH_ROWS)
    batches = itertools.chain.from_iterable(table.to_batches() for table in tables)
    return copy_to_arrow(source.name, dataset.features.arrow_schema, batches, work)
