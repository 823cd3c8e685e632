"""Reference log-probabilities computed before training: each answer gets its own, in every epoch."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayswift.cluster.layout import Layout
from rayswift.config.model import ModelConfig
from rayswift.config.schema import RlhfConfig
from rayswift.data.cache.columns import PartWriter, compute
from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoders import cached_encoder
from rayswift.data.sequence.windows import RowSet, WindowPlan
from rayswift.data.sources import open_sources
from rayswift.model import reference_logps
from rayswift.model.reference_logps import ReferenceLogps, answer_logps
from tests.unit.model.test_whole import written

ROWS: list[dict[str, Any]] = [
    {"prompt": "one and two?", "chosen": "three, of course", "rejected": "5"},
    {"prompt": "bad", "chosen": "same", "rejected": "same"},
    {"query": "the sum?", "response": "7", "rejected_response": ["eight it is", "9, or so"]},
    {"prompt": "and 4?", "chosen": "no", "rejected": "yes, yes"},
]


def here(writer: PartWriter, parts: range) -> Iterator[int]:
    return map(writer, parts)


@pytest.mark.parametrize(("ld_alpha", "is_adapted"), [(None, False), (0.3, False), (None, True)])
def test_every_pair_has_what_the_model_gives_its_answers(
    tmp_path: Path, tiny_model_dir: Path, ld_alpha: float | None, is_adapted: bool
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from rayswift.data.collate.padded import preference_batch

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    encode = EncodeConfig(str(tiny_model_dir), "hash", 64, family="preference")
    plan = WindowPlan(RowSet(open_sources([str(path)], tmp_path / "work"), 5), encode, packing=False, window_rows=3)
    model_json = ModelConfig(path=str(tiny_model_dir), dtype="float32").model_dump_json()
    adapter = tmp_path / "adapter"
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32")
    model = written(adapter, tiny_model_dir, model) if is_adapted else model
    adapters = (str(adapter),) if is_adapted else ()
    function = ReferenceLogps(encode, model_json, False, "cpu", 1, 2, ld_alpha, adapters)
    columns = compute(plan.row_set, function, tmp_path / "columns", {}, here, part_rows=3)
    seen = 0
    for epoch, window in ((epoch, window) for epoch in range(2) for window in range(plan.num_windows)):
        rows = replace(plan, columns=columns).make(epoch, window).rows
        for row in rows:
            border = row.lengths[0]
            sequences = [(row.input_ids[:border], row.trained[:border]), (row.input_ids[border:], row.trained[border:])]
            shortest = min(int(trained.sum()) for _, trained in sequences)
            expected = []
            for ids, trained in sequences:
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


def test_an_adapter_that_training_continues_is_part_of_the_reference(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Before the first step policy and reference are one model, so that the first loss of dpo is ln 2."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32")
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    given = {
        "model": {"path": str(tiny_model_dir), "tuner": "lora", "adapters": [str(tmp_path / "adapter")]},
        "data": {"dataset": ["rows.jsonl"]},
        "train": {"task": "dpo", "precompute_ref_log_probs": True},
    }
    encode = EncodeConfig(str(tiny_model_dir), "hash", 64, family="preference")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    (raw,) = open_sources([str(path)], tmp_path / "work")[0].read([0])

    def computed(named: str | None) -> float:
        config = RlhfConfig.model_validate(given | {"model": {**given["model"], "reference": named}})  # type: ignore[dict-item]
        logps = reference_logps._function(config, Layout(1, "cpu", 1, True), encode)([raw])["ref_chosen_logps"][0]
        assert logps is not None
        return logps[0]

    documents = cached_encoder(json.dumps(asdict(encode))).encode([raw.value])[0]
    assert isinstance(documents, list)
    ids, trained = torch.from_numpy(documents[0].input_ids.astype(np.int64)), np.flatnonzero(documents[0].trained)

    def expected(model: Any) -> float:
        with torch.inference_mode():
            logps = model(ids[None]).logits[0].log_softmax(-1)
        return sum(float(logps[i - 1, ids[i]]) for i in trained)

    assert computed(None) == pytest.approx(expected(tuned), rel=1e-5)
    with tuned.disable_adapter():
        alone = expected(tuned)
    assert computed(str(tiny_model_dir)) == pytest.approx(alone, rel=1e-5)
    assert abs(alone - expected(tuned)) > 0.01


def test_length_desensitised() -> None:
    import torch

    logps = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = torch.tensor([[0, 1, 0], [1, 1, 1]])
    assert answer_logps(logps, mask, None).tolist() == [2.0, 56.0]
    assert answer_logps(logps, mask, 0.5).tolist() == [2.0, 8.0 + 0.5 * 48.0]
