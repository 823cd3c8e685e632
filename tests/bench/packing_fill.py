"""How full packed rows are, and what packing costs, in the windows that `data.window_rows: null` gives.

    python -m tests.bench.packing_fill [--rows examples/gsm8k/train.jsonl] [--model examples/tiny]

Question-and-answer rows at 2,048 tokens, and log-normal lengths (sigma 1) at 8,192; beside them plain best-fit
decreasing on the same windows. `least` is what no packing of these windows can beat. Tokens/s are of one core.
"""

import argparse
import json
import time
from bisect import bisect_left, insort
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from rayswift.data.prepare import derived_window_rows
from rayswift.data.sequence.packing import pack

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path, default=ROOT / "examples" / "gsm8k" / "train.jsonl")
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "tiny")
    options = parser.parse_args()
    head = f"{'lengths':<24}{'capacity':>9}{'window':>8}{'fill':>9}{'least':>9}{'best fit':>10}{'M tokens/s':>12}"
    print(head)  # noqa: T201
    for name, lengths, capacity in cases(options.rows, options.model):
        window = derived_window_rows(capacity, float(np.mean(lengths)))
        windows = [lengths[i : i + window] for i in range(0, len(lengths), window)]
        started = time.process_time()
        ours = sum(len(pack(w, capacity)) for w in windows)
        seconds = time.process_time() - started
        best_fit = sum(len(best_fit_decreasing(w, capacity)) for w in windows)
        least = sum(-(-sum(w) // capacity) for w in windows)
        fills = [f"{sum(lengths) / bins / capacity:.2%}" for bins in (ours, least, best_fit)]
        speed = sum(lengths) / seconds / 1e6
        row = f"{name:<24}{capacity:>9}{window:>8}{fills[0]:>9}{fills[1]:>9}{fills[2]:>10}{speed:>12.0f}"
        print(row)  # noqa: T201


def cases(rows: Path, model: Path) -> Iterator[tuple[str, list[int], int]]:
    """Name, lengths in tokens, and capacity."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = [" ".join(json.loads(line).values()) for line in rows.read_text(encoding="utf-8").splitlines()]
    lengths = np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(texts)])
    random = np.random.default_rng(0)
    random.shuffle(lengths)
    yield rows.parent.name, lengths[lengths <= 2048].tolist(), 2048
    # As a tokenizer with a vocabulary of 150,000 would have it.
    yield f"{rows.parent.name}, mean 165", np.maximum(lengths * 165 / lengths.mean(), 1).astype(int).tolist(), 2048
    for mean in (300, 800, 1600):
        drawn = random.lognormal(np.log(mean) - 0.5, 1, 50_000).astype(int).clip(1, 8192)
        yield f"log-normal, mean {mean}", drawn.tolist(), 8192


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[int]:
    """Tokens left in each bin when every row, longest first, goes into the fullest bin that takes it."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = bisect_left(room, length)
        insort(room, (room.pop(place) if place < len(room) else capacity) - length)
    return room


if __name__ == "__main__":
    main()
