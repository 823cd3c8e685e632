"""Hub data sets, and local folders whose README says which files are what, through `datasets`."""

import itertools
from pathlib import Path

from rayswift.data.sources.arrow import ArrowStore, copy_to_arrow
from rayswift.data.sources.layout import pick
from rayswift.data.sources.named import Source
from rayswift.log import UserError

_BATCH_ROWS = 4096


def open_hub(source: Source, work: Path, held_out: bool = False) -> ArrowStore:
    """Copy a split of a data set.

    Args:
        source: Its id or folder, subset, split and revision.
        work: Where the copy goes, less its suffix.
        held_out: Whether rows to evaluate on are wanted, where no split is named.
    """
    import datasets

    path, subset, revision = source.path, source.subset, source.revision
    local = Path(path).expanduser()
    path = str(local) if local.is_dir() else path
    try:
        # Slices such as train[:10%] are named by no list.
        split = source.split or pick(
            source, datasets.get_dataset_split_names(path, subset, revision=revision), held_out
        )
        dataset = datasets.load_dataset(path, subset, split=split, revision=revision)
    except UserError:
        raise
    except Exception as error:  # whatever the hub's client raises, the user asked for this id
        is_here = "could not be opened" if local.is_dir() else "is no file here and could not be had from the hub"
        raise UserError(
            f"data.dataset: {source.name} {is_here}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            "; data sets are written org/name:subset/split@revision, each part but the id as needed"
        ) from error
    tables = dataset.with_format("arrow").iter(_BATCH_ROWS)
    batches = itertools.chain.from_iterable(table.to_batches() for table in tables)
    return copy_to_arrow(source.name, dataset.features.arrow_schema, batches, work)
