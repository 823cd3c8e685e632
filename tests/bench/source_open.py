"""What it costs to open a source of each kind, and to read a window's rows from it in random order.

    python -m tests.bench.source_open [--rows 1000000]

Each kind in a process of its own: seconds to open it for the first time and again, milliseconds for 2,000 random rows
(median of 20), and the memory that the process has of its own afterwards. The Parquet file is one row group.
"""

import argparse
import gzip
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from rayswift.data.sources import open_sources

KINDS = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz")


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    num_rows = parser.parse_args().rows
    print(f"{num_rows:,} rows{'open, s':>20}{'again, s':>12}{'2,000 rows, ms':>18}{'own memory, MB':>18}")  # noqa: T201
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            write(Path(folder) / f"rows{kind}", kind, num_rows)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                opened, again, read, memory = pool.apply(measure, (folder, kind))
            print(f"{kind:<14}{opened:>20.2f}{again:>12.3f}{read:>18.1f}{memory:>18.0f}")  # noqa: T201


def write(path: Path, kind: str, num_rows: int) -> None:
    """A file of numbered questions and answers."""
    rows = ({"query": f"What is {i} + {i}?", "response": f"It is {2 * i}."} for i in range(num_rows))
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=num_rows)
        return
    with gzip.open(path, "wt", compresslevel=1) if kind.endswith(".gz") else open(path, "w") as file:
        if kind == ".csv":
            file.write("query,response\n" + "".join(f"{row['query']},{row['response']}\n" for row in rows))
        elif kind == ".json":
            file.write("[" + ",\n".join(map(json.dumps, rows)) + "]")
        else:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


def measure(folder: str, kind: str) -> tuple[float, float, float, float]:
    """Seconds to open, seconds to open again, milliseconds to read 2,000 rows, megabytes."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        (source,) = open_sources([f"{folder}/rows{kind}"], Path(folder) / f"work{kind}")
        seconds.append(time.perf_counter() - started)
    random, reads = np.random.default_rng(0), []
    for _ in range(20):
        rows = random.integers(0, source.num_rows, 2000)
        started = time.perf_counter()
        source.read(rows)
        reads.append(1e3 * (time.perf_counter() - started))
    return seconds[0], seconds[1], statistics.median(reads), psutil.Process().memory_full_info().uss / 1e6


if __name__ == "__main__":
    main()
