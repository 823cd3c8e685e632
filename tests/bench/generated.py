"""Rows made for the benches, and the data service set up over them as a run would."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayswift.config.schema import DataConfig
from rayswift.data.prepare import plan_windows
from rayswift.data.sequence.global_batches import FeedPlan
from rayswift.data.sequence.windows import Windows

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny"
_CHUNK_ROWS = 100_000


def question_rows(path: Path, num_rows: int) -> Path:
    """The questions and answers of examples/gsm8k again and again, each row with a number of its own."""
    lines = (ROOT / "examples" / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(num_rows):
            row = dict(rows[number % len(rows)])
            name = next(iter(row))
            file.write(json.dumps({**row, name: f"{number}: {row[name]}"}) + "\n")
    return path


def short_rows(path: Path, num_rows: int) -> Path:
    """Rows of some 40 tokens."""
    random = np.random.default_rng(0)
    words = ["red", "river", "seven", "under", "table", "quickly", "stone", "music", "garden", "blue"]
    with open(path, "w", encoding="utf-8") as file:
        for begin in range(0, num_rows, _CHUNK_ROWS):
            picks = random.integers(0, len(words), (min(_CHUNK_ROWS, num_rows - begin), 8))
            for number, pick in enumerate(picks, begin):
                asked, answered = " ".join(words[i] for i in pick[:5]), " ".join(words[i] for i in pick[5:])
                file.write(f'{{"query": "{number} {asked}", "response": "{answered}"}}\n')
    return path


def as_parquet(jsonl: Path) -> Path:
    """The same rows as one Parquet file of a single row group."""
    with open(jsonl, encoding="utf-8") as file:
        table = pa.Table.from_pylist([json.loads(line) for line in file])
    path = jsonl.with_suffix(".parquet")
    pq.write_table(table, path, row_group_size=table.num_rows)
    return path


def plans(source: Path, work: Path, global_batch: int, **data: object) -> tuple[Windows, FeedPlan]:
    """How a run over one source makes its windows and cuts its batches: one epoch of it."""
    config = DataConfig(dataset=[str(source)], **data)  # type: ignore[arg-type]
    windows, _ = plan_windows(config, TINY, 42, work)
    return windows, FeedPlan(
        global_batch=global_batch,
        num_rows=windows.num_rows,
        window_rows=windows.window_rows,
        num_epochs=1,
        max_steps=-1,
        max_bad_fraction=0.01,
    )
