"""An engine with a teacher, in this process: its scores of tokens compared with those of transformers.

    python -m tests.ray.teacher_engine FOLDER

Prints a JSON object of the largest differences.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from rayswift.engines.engine import SamplingSettings
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest
from rayswift.engines.vllm.engine import VllmEngine
from rayswift.engines.vllm.setup import EngineSetup

TOP, TEMPERATURE = 5, 0.8
VERSION = PolicyVersion(0, 0)


async def score(folder: Path, rows: Any, top: int) -> list[Completion]:
    """Each row's tokens from its fourth on, scored twice: the second time the prefixes are known."""
    setup = EngineSetup(str(folder), SamplingSettings(TEMPERATURE), 64, load_format="auto")
    engine = VllmEngine(EngineSetup(**{**vars(setup), "engine_kwargs": {"max_logprobs": TOP}}))
    await engine.start()
    await engine.load(VERSION, None)
    found: dict[str, Completion] = {}
    for number in range(2):
        requests = [
            SampleRequest(f"{i}:{number}", row[:3], len(row) - 2, 0, row[3:], top) for i, row in enumerate(rows)
        ]
        await engine.submit([*requests, SampleRequest(f"sample{number}", rows[0][:3], 4, 1)])
        while len(found) < (len(rows) + 1) * (number + 1):
            found |= {each.key: each for each in (await engine.collect(5.0, None)).finished}
    await engine.close()
    return [found[f"{i}:{number}"] for number in range(2) for i in range(len(rows))]


def main() -> None:
    """Score, and compare."""
    folder = Path(sys.argv[1])
    rng = np.random.default_rng(0)
    rows = [rng.integers(6, 500, length).astype(np.int32) for length in (4, 9, 20, 9)]
    rows[3][:8] = rows[1][:8]
    scored = asyncio.run(score(folder, rows, TOP))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    differences = {"chosen": 0.0, "top": 0.0, "misplaced": 0.0}
    for row, each in zip([*rows, *rows], scored, strict=True):
        ids = torch.from_numpy(row.astype(np.int64))
        wanted = (model(ids[None]).logits[0, 2:-1] / TEMPERATURE).log_softmax(-1)
        chosen = wanted.gather(-1, ids[3:, None])[:, 0].detach().numpy()
        best = wanted.topk(TOP, dim=-1)
        assert each.top is not None and each.top.ids.shape == (len(row) - 3, TOP)
        differences["chosen"] = max(differences["chosen"], float(np.abs(each.logprobs - chosen).max()))
        scored = wanted.gather(-1, torch.from_numpy(each.top.ids.astype(np.int64))).detach().numpy()
        differences["misplaced"] = max(differences["misplaced"], float(np.abs(each.top.logprobs - scored).max()))
        differences["top"] = max(
            differences["top"], float(np.abs(each.top.logprobs - best.values.detach().numpy()).max())
        )
    print(json.dumps(differences))  # noqa: T201


if __name__ == "__main__":
    main()
