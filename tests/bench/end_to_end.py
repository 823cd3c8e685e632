"""Rows on disk to packed batches in two Ray Train workers that only count tokens, beside the raw tokenizer.

    python -m tests.bench.end_to_end [--rows 60000] [--cases jsonl parquet cache] [--global_batch 16]

`raw`: `tokenizers` alone, one core, the same texts rendered before; times the cores it is what the machine could do.
The clock runs over the second half of the steps, so that nothing that was made ahead counts. `first batch`: what the
slower worker waited for its first once it was ready. The Parquet file is one row group. Bars: 0.4 of raw x cores; 5 s;
from the cache 10 M tokens/s.
"""

import argparse
import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import ray
from tokenizers import Tokenizer

from rayswift.config.schema import DataConfig
from rayswift.data import prepare
from rayswift.data.cache import fingerprint
from rayswift.data.cache import folder as cache_folder
from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import Encoder
from rayswift.data.feed.pipeline import make_in_order
from tests.bench.counting import count, start_ray
from tests.bench.generated import TINY, as_parquet, plans, question_rows

MAX_LENGTH = 2048
_SAMPLE = 4000


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--cases", nargs="+", default=["jsonl", "parquet", "cache"])
    parser.add_argument("--global_batch", type=int, default=16, help="packed rows of a step, over both workers")
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        jsonl = question_rows(work / "rows.jsonl", options.rows)
        raw = raw_tokens_per_s(jsonl)
        print(f"{options.rows:,} rows, {cores} cores; raw tokenizer on one: {raw / 1e6:.2f} M tokens/s")  # noqa: T201
        print(f"{'from':<10}{'M tokens/s':>12}{'of raw x cores':>16}{'first batch, s':>16}")  # noqa: T201
        start_ray(cores)
        for case in options.cases:
            source = as_parquet(jsonl) if case == "parquet" else jsonl
            settings: dict[str, object] = {"max_length": MAX_LENGTH}
            if case == "cache":
                settings["cache"] = encode(source, work / "cache", settings)
            windows, plan = plans(source, work / f"{case}-work", options.global_batch, **settings)
            found = count(windows, plan, work / case)
            speed = found["tokens"] / found["seconds"]
            ratio = speed / raw / cores
            print(f"{case:<10}{speed / 1e6:>12.2f}{ratio:>16.2f}{found['first_batch_s']:>16.2f}")  # noqa: T201
            if case == "cache":
                read = cache_tokens_per_s(windows)
                print(f"{'  read':<10}{read / 1e6:>12.2f}  one process, no feed")  # noqa: T201
        ray.shutdown()


def raw_tokens_per_s(jsonl: Path) -> float:
    """Speed of `encode_batch_fast` on one core; the best of three."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = Encoder(EncodeConfig(str(TINY), "", MAX_LENGTH))
    with open(jsonl, encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(_SAMPLE), strict=False)]
    texts = [document.text for row in rows for document in encoder.documents(row)]
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    speeds = []
    for _ in range(3):
        began = time.perf_counter()
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        speeds.append(sum(len(e.ids) for e in encodings) / (time.perf_counter() - began))
    return max(speeds)


def encode(source: Path, folder: Path, settings: dict[str, object]) -> str:
    """The cache of a source, as `rayswift data encode` makes it."""
    data = DataConfig(dataset=[str(source)], **settings)  # type: ignore[arg-type]
    made_from = fingerprint.take(data, TINY, 42)
    cache_folder.start(folder, made_from, 1)
    train, _ = prepare.plan_encoding(data, TINY, 42, folder / "work")
    cache_folder.write(folder, {"train": train}, made_from, 1, 0.01, partial(make_in_order))
    return str(folder)


def cache_tokens_per_s(windows: object) -> float:
    """Speed of reading every window in one process."""
    began = time.perf_counter()
    tokens = 0
    for number in range(windows.num_windows):  # type: ignore[attr-defined]
        tokens += sum(len(row.input_ids) for row in windows.make(0, number).rows)  # type: ignore[attr-defined]
    return tokens / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
