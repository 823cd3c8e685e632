"""Reference log-probabilities computed before training: each answer's own, brought to its pair in every epoch."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayswift.config.model import ModelConfig
from rayswift.data.computed import PartWriter, compute
from rayswift.data.encode import EncodeConfig
from rayswift.data.sources import open_sources
from rayswift.data.windows import RowSet, WindowPlan
from rayswift.train.reference_logps import ReferenceLogps, answer_logps

ROWS: list[dict[str, Any]] = [
    {"prompt": "one and two?", "chosen": "three, of course", "rejected": "5"},
    {"prompt": "bad", "chosen": "same", "rejected": "same"},
    {"query": "the sum?", "response": "7", "rejected_response": ["eight it is", "9, or so"]},
    {"prompt": "and 4?", "chosen": "no", "rejected": "yes, yes"},
]


def here(writer: PartWriter, parts: range) -> Iterator[int]:
    return map(writer, parts)


@pytest.mark.parametrize("ld_alpha", [None, 0.3])
def test_every_pair_has_what_the_model_gives_its_answers(
    tmp_path: Path, tiny_model_dir: Path, ld_alpha: float | None
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from rayswift.data.member_batches import preference_batch

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    encode = EncodeConfig(str(tiny_model_dir), "hash", 64, family="preference")
    plan = WindowPlan(RowSet(open_sources([str(path)], tmp_path / "work"), 5), encode, packing=False, window_rows=3)
    model_json = ModelConfig(path=str(tiny_model_dir), dtype="float32").model_dump_json()
    function = ReferenceLogps(encode, model_json, "cpu", 1, 2, ld_alpha)
    columns = compute(plan.row_set, function, tmp_path / "columns", {}, here, part_rows=3)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32")
    seen = 0
    for epoch, window in ((epoch, window) for epoch in range(2) for window in range(plan.num_windows)):
        rows = replace(plan, columns=columns).make(epoch, window).rows
        for row in rows:
            border = row.lengths[0]
            members = [(row.input_ids[:border], row.trained[:border]), (row.input_ids[border:], row.trained[border:])]
            shortest = min(int(trained.sum()) for _, trained in members)
            expected = []
            for ids, trained in members:
                with torch.inference_mode():
                    logits = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
                logps = logits.log_softmax(-1)
                own = [float(logps[i - 1, ids[i]]) for i in np.flatnonzero(trained)]
                tail = 1.0 if ld_alpha is None else ld_alpha
                expected.append(sum(own[:shortest]) + tail * sum(own[shortest:]))
            assert dict(row.numbers) == pytest.approx(
                dict(zip(("ref_chosen_logps", "ref_rejected_logps"), expected, strict=True)), abs=1e-4
            )
            seen += 1
        if rows:
            batch = preference_batch(rows, 0, "rows")
            assert batch["ref_chosen_logps"].tolist() == pytest.approx(
                [dict(row.numbers)["ref_chosen_logps"] for row in rows]
            )
    assert seen == 2 * 4


def test_length_desensitised() -> None:
    import torch

    logps = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = torch.tensor([[0, 1, 0], [1, 1, 1]])
    assert answer_logps(logps, mask, None).tolist() == [2.0, 56.0]
    assert answer_logps(logps, mask, 0.5).tolist() == [2.0, 8.0 + 0.5 * 48.0]
