"""Packed rows -> tensors, and the proof that packing changes nothing for a document."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayswift.data.sequence.windows import PackedRow

IGNORED = -100
PAD = 0


def packed(*documents: list[int], trained_from: int = 1) -> PackedRow:
    ids = np.array([token for document in documents for token in document], np.int32)
    trained = np.concatenate([np.arange(len(document)) >= trained_from for document in documents])
    return PackedRow(ids, trained, tuple(len(document) for document in documents), len(documents))


def collate(*args: Any) -> dict[str, Any]:
    from rayswift.data.collate.packed import collate as real

    return real(*args)


TWO = packed([11, 12, 13], [21, 22], trained_from=1)
ONE = packed([31, 32, 33, 34], trained_from=2)


def test_rows_layout() -> None:
    batch = collate([TWO, ONE], PAD, "rows")
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[11, 12, 13, 21, 22], [31, 32, 33, 34, PAD]],
        "labels": [[-100, 12, 13, -100, 22], [-100, -100, 33, 34, -100]],
        "position_ids": [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]],
    }


def test_flat_layout() -> None:
    batch = collate([TWO, ONE], PAD, "flat")
    shown = {name: value if isinstance(value, int) else value.tolist() for name, value in batch.items()}
    assert shown == {
        "input_ids": [[11, 12, 13, 21, 22, 31, 32, 33, 34]],
        "labels": [[-100, 12, 13, -100, 22, -100, -100, 33, 34]],
        "position_ids": [[0, 1, 2, 0, 1, 0, 1, 2, 3]],
        "cu_seq_lens_q": [0, 3, 5, 9],
        "cu_seq_lens_k": [0, 3, 5, 9],
        "max_length_q": 4,
        "max_length_k": 4,
    }


def test_loss_weights_go_beside_the_labels_where_a_row_has_them() -> None:
    weighted = dataclasses.replace(TWO, weights=np.array([1, 0.5, 2, 1, 0], np.float32))
    rows, flat = (collate([weighted, ONE], PAD, layout)["loss_weights"] for layout in ("rows", "flat"))
    assert rows.tolist() == [[1, 0.5, 2, 1, 0], [1, 1, 1, 1, 1]]
    assert flat.tolist() == [[1, 0.5, 2, 1, 0, 1, 1, 1, 1]]
    assert str(rows.dtype) == str(flat.dtype) == "torch.float32"
    assert "loss_weights" not in collate([TWO, ONE], PAD, "rows")


@pytest.mark.parametrize("layout", ["rows", "flat"])
def test_types_and_an_empty_micro_batch(layout: str) -> None:
    import torch

    for rows in ([TWO, ONE], []):
        batch = collate(rows, PAD, layout)
        assert {batch[name].dtype for name in ("input_ids", "labels", "position_ids")} == {torch.int64}
    assert batch["input_ids"].tolist() == [[PAD]]
    assert batch["labels"].tolist() == [[IGNORED]]
    if layout == "flat":
        assert batch["cu_seq_lens_q"].dtype == torch.int32
        assert batch["cu_seq_lens_q"].tolist() == [0, 1]


def test_the_padding_token_may_be_trained_inside_a_document() -> None:
    # Where padding and end of text are one token, only the padding is without loss.
    row = packed([5, PAD])
    assert collate([row, ONE], PAD, "rows")["labels"].tolist()[0] == [-100, PAD, -100, -100]


@pytest.mark.parametrize(("num_rows", "num_batches", "sizes"), [(6, 3, [2, 2, 2]), (3, 3, [2, 1, 0]), (0, 2, [0, 0])])
def test_cut(num_rows: int, num_batches: int, sizes: list[int]) -> None:
    from rayswift.data.collate.packed import cut

    rows = [packed([i, i]) for i in range(num_rows)]
    pieces = cut(rows, 2, num_batches)
    assert [len(piece) for piece in pieces] == sizes
    assert [row for piece in pieces for row in piece] == rows


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, tiny_model_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tiny_model_dir, attn_implementation=request.param).eval()
    loaded.config.use_cache = False
    return loaded


def documents() -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 512, size).tolist() for size in (17, 1, 40, 5, 23, 64, 2)]


def logits_and_losses(model: Any, rows: list[PackedRow]) -> tuple[list[Any], list[Any]]:
    """Per document: logits [T, V], and the loss of each token behind the first [T - 1]."""
    import torch
    from torch.nn.functional import cross_entropy

    batch = collate(rows, PAD, "rows")
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    all_logits, losses = [], []
    for number, row in enumerate(rows):
        begin = 0
        for length in row.lengths:
            part = logits[number, begin : begin + length]
            labels = batch["labels"][number, begin : begin + length]
            all_logits.append(part)
            losses.append(cross_entropy(part[:-1], labels[1:], ignore_index=IGNORED, reduction="none"))
            begin += length
    return all_logits, losses


def test_packed_documents_get_the_logits_and_losses_of_single_ones(model: Any) -> None:
    docs = documents()
    rows = [packed(*docs[:3]), packed(*docs[3:5]), packed(docs[5]), packed(docs[6])]
    together = logits_and_losses(model, rows)
    alone = [logits_and_losses(model, [packed(document)]) for document in docs]
    for index in range(len(docs)):
        for packed_values, single in zip(together, alone[index], strict=True):
            assert packed_values[index].shape == single[0].shape
            if packed_values[index].numel():
                assert float((packed_values[index] - single[0]).abs().max()) < 1e-5


def test_without_position_ids_packing_would_be_seen(model: Any) -> None:
    # The test above can fail: attention across documents moves the logits by far more than its tolerance.
    import torch

    docs = documents()[:3]
    batch = collate([packed(*docs)], PAD, "rows")
    with torch.no_grad():
        leaking = model(input_ids=batch["input_ids"], use_cache=False).logits[0, -40:]
    alone = logits_and_losses(model, [packed(docs[2])])[0][0]
    assert float((leaking - alone).abs().max()) > 1e-3


def test_the_models_own_loss_is_the_mean_over_trained_tokens(model: Any) -> None:
    import torch

    rows = [packed(*documents()[:3], trained_from=4), packed(documents()[4], trained_from=2)]
    batch = collate(rows, PAD, "rows")
    with torch.no_grad():
        loss = model(**batch, use_cache=False).loss
    losses = torch.cat(logits_and_losses(model, rows)[1])
    num_trained = int((batch["labels"] != IGNORED).sum())
    assert int((losses != 0).sum()) == num_trained
    assert float(loss) == pytest.approx(float(losses.sum() / num_trained), abs=1e-5)
