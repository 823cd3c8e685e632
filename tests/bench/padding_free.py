"""Padding-free batches for the tasks that pad: forward and backward of the same sequences, padded and packed.

    python -m tests.bench.padding_free [--rounds 5] [--device cpu]

Prints one table over micro-batches of real pairs and texts: the share of padded tokens that are real, milliseconds
padded, packed into rows of up to 512 tokens, and in one row, medians of rounds that alternate, in CPU time of one
thread: what else the machine does counts little. On a GPU a model of 0.3 B in bfloat16, by the clock. Attention is
SDPA; packed sequences stay apart by their position ids.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rayswift.config.schema import DataConfig
from rayswift.data.collate.packed import collate
from rayswift.data.collate.padded import class_batch, preference_batch
from rayswift.data.encode.config import RowKind
from rayswift.data.prepare import plan_windows
from rayswift.data.sequence.packing import pack
from rayswift.data.sequence.windows import PackedRow
from tests.bench import gpu_sft
from tests.bench.generated import TINY
from tests.bench.sft_speed import write_model
from tests.ray import test_tasks

MAX_LENGTH = 512
CASES = [("pairs (dpo, rm)", rows) for rows in (2, 4, 8)] + [("texts (seq_cls)", rows) for rows in (4, 8, 16)]


def sequences(work: Path, kind: str, number: int) -> list[PackedRow]:
    """Rows of sequences as a run has them, in their shuffled order."""
    pairs = kind.startswith("pairs")
    rows = test_tasks.pairs(200) if pairs else [row | {"label": 0} for row in test_tasks.gsm8k(200)]
    path = test_tasks.write(work / f"{number}.jsonl", rows)
    config = DataConfig(dataset=[str(path)], max_length=MAX_LENGTH, packing=False)
    what = RowKind("preference") if pairs else RowKind("classification", 2, "single_label_classification")
    windows, _ = plan_windows(config, TINY, 42, work / str(number), what)
    return list(windows.make(0, 0).rows[:number])


def packed(rows: list[PackedRow], max_length: int) -> dict[str, Any]:
    """The sequences, documents of packed rows."""
    lengths = [length for row in rows for length in row.lengths]
    tokens = torch.cat([torch.from_numpy(row.input_ids) for row in rows]).split(lengths)
    return collate(
        [
            PackedRow(
                torch.cat([tokens[i] for i in each]).numpy(),
                torch.ones(sum(lengths[i] for i in each), dtype=torch.bool).numpy(),
                tuple(lengths[i] for i in each),
                len(each),
            )
            for each in pack(lengths, max_length)
        ],
        0,
        "rows",
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    print("| micro-batch | real tokens | padded, ms | packed to 512, ms | one row, ms | gain of packing to 512 |")  # noqa: T201
    print("| --- | ---: | ---: | ---: | ---: | ---: |")  # noqa: T201
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        on_gpu = options.device == "cuda"
        if on_gpu:
            gpu_sft.write_model(work / "model", 1024, 24)
        else:
            write_model(work / "model")
        torch.manual_seed(0)
        torch.set_num_threads(1)
        config = AutoConfig.from_pretrained(work / "model", max_position_embeddings=1 << 14)
        dtype = torch.bfloat16 if on_gpu else torch.float32
        model = AutoModelForCausalLM.from_config(config).base_model.to(options.device, dtype)
        for kind, on_cpu in CASES:
            number = on_cpu * (4 if on_gpu else 1)
            (work / kind).mkdir(exist_ok=True)
            rows = sequences(work / kind, kind, number)
            padded = (preference_batch if kind.startswith("pairs") else class_batch)(rows, 0, "rows")
            batches = [
                to_device(each, options.device) for each in (padded, packed(rows, MAX_LENGTH), packed(rows, 1 << 14))
            ]
            times: dict[int, list[float]] = defaultdict(list)
            for _ in range(options.rounds + 1):
                for i, batch in enumerate(batches):
                    times[i].append(seconds(lambda batch=batch: step(model, batch), options.device))
            ms = [1000 * statistics.median(times[i][1:]) for i in range(len(batches))]
            fill = sum(length for row in rows for length in row.lengths) / padded["input_ids"].numel()
            cells = [f"{fill:.0%}", *(f"{each:.0f}" for each in ms), f"{ms[0] / ms[1]:.2f} x"]
            print(f"| {number} {kind} | {' | '.join(cells)} |", flush=True)  # noqa: T201


def step(model: torch.nn.Module, batch: dict[str, Any]) -> None:
    """Forward and backward of the body; heads and losses take the same tokens either way."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    model(**inputs, use_cache=False).last_hidden_state.square().mean().backward()
    model.zero_grad()


def to_device(batch: dict[str, Any], device: str) -> dict[str, Any]:
    """Its tensors there."""
    return {name: each.to(device) if isinstance(each, torch.Tensor) else each for name, each in batch.items()}


def seconds(work: Callable[[], None], device: str) -> float:
    """CPU time it takes; on a GPU, time until that is done."""
    if device == "cpu":
        began = time.thread_time()
        work()
        return time.thread_time() - began
    torch.cuda.synchronize()
    began = time.monotonic()
    work()
    torch.cuda.synchronize()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
