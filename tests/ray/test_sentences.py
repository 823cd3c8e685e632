"""Embeddings and rerankers against plain sentence-transformers on the same rows in the same order, float32; what a run
saves loads there, and scores as the run's own evaluation did."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import losses

from rayswift.run.checkpoint import model_folder
from tests.ray.conftest import assert_same_curve, curve, train
from tests.ray.test_tasks import TOLERANCE, flags, gsm8k, reference, write

ROWS = 4
"""Of the global batch, with which an evaluation compares."""
# Cosines are not divided by less than 1, where this random model has gradient norms of 100.
EMBEDDING = (
    "--task_type", "embedding", "--infonce_temperature", "1", "--max_length", "512",
    "--data.columns", json.dumps({"question": "anchor", "answer": "positive", "wrong": "negative"}),
)  # fmt: skip
_QUERIES = json.dumps({"question": "query", "chosen": "positive", "rejected": "negative"})
RERANKER = ("--task_type", "reranker", "--data.columns", _QUERIES, "--max_length", "512")
GENERATIVE = (
    "--task_type", "generative_reranker", "--positive_token", "y", "--negative_token", "n", "--data.columns", _QUERIES,
    "--max_length", "768",
)  # fmt: skip


def triples(num_rows: int) -> list[dict[str, Any]]:
    """Word problems with their solution and that of the next one."""
    rows = gsm8k(num_rows + 1)
    return [row | {"wrong": other["answer"]} for row, other in pairwise(rows)]


def lists(num_rows: int) -> list[dict[str, Any]]:
    """Word problems with their solution and those of the next two."""
    rows = gsm8k(num_rows + 2)
    answers = [row["answer"] for row in rows]
    return [
        {"question": rows[i]["question"], "chosen": answers[i], "rejected": answers[i + 1 : i + 3]}
        for i in range(num_rows)
    ]


def split(folder: Path, rows: list[dict[str, Any]]) -> tuple[Path, tuple[str, str]]:
    """Rows to train on, and flags that name eight short ones to evaluate on."""
    short = sorted(rows, key=lambda row: len(str(row)))[:8]
    rest = [row for row in rows if row not in short]
    return write(folder / "rows.jsonl", rest), ("--data.eval", str(write(folder / "eval.jsonl", short)))


def held_out(folder: Path) -> list[dict[str, Any]]:
    """The rows to evaluate on."""
    return [json.loads(line) for line in (folder / "eval.jsonl").read_text(encoding="utf-8").splitlines()]


def loss_of_loaded_embedding(run_dir: Path, rows: list[dict[str, Any]]) -> float:
    """What an evaluation with the vectors of a `SentenceTransformer` gives."""
    model = SentenceTransformer(str(model_folder(run_dir)), device="cpu")
    columns = [
        model.encode([row[name] for row in rows], convert_to_tensor=True) for name in ("question", "answer", "wrong")
    ]
    loss = losses.MultipleNegativesRankingLoss(model, scale=1.0)
    batches = zip(*(column.split(ROWS) for column in columns), strict=True)
    found = [loss.compute_loss_from_embeddings(list(batch), torch.empty(0)) for batch in batches]
    return float(torch.stack(found).mean())


def scores_of_loaded_reranker(run_dir: Path, rows: list[dict[str, Any]]) -> torch.Tensor:
    """Scores that a `CrossEncoder` gives each row's documents, [rows, documents]."""
    model = CrossEncoder(str(model_folder(run_dir)), device="cpu")
    pairs = [(row["question"], document) for row in rows for document in (row["chosen"], *row["rejected"])]
    scores: torch.Tensor = model.predict(pairs, activation_fn=torch.nn.Identity(), convert_to_tensor=True)
    return scores.view(len(rows), -1)


def test_embeddings_equal_plain_sentence_transformers(tmp_path: Path) -> None:
    """InfoNCE over the global batch: the reference has it in one micro-batch, the run in two."""
    path, evaluate = split(tmp_path, triples(44))
    train("sft", tmp_path / "run", *flags(path), *EMBEDDING, *evaluate)
    theirs = reference("tests.ray.oracle_rows", tmp_path / "run", tmp_path / "plain", "sft")
    assert_same_curve(tmp_path / "run", theirs, TOLERANCE)
    evaluated = max(curve(tmp_path / "run", "eval_loss").items())[1]
    assert loss_of_loaded_embedding(tmp_path / "run", held_out(tmp_path)) == pytest.approx(evaluated, abs=1e-5)


def test_a_reranker_equals_plain_sentence_transformers(tmp_path: Path) -> None:
    """Binary cross-entropy of each document."""
    path, evaluate = split(tmp_path, lists(44))
    train("sft", tmp_path / "run", *flags(path), *RERANKER, *evaluate)
    theirs = reference("tests.ray.oracle_rows", tmp_path / "run", tmp_path / "plain", "sft")
    assert_same_curve(tmp_path / "run", theirs, TOLERANCE)
    scores = scores_of_loaded_reranker(tmp_path / "run", held_out(tmp_path))
    labels = torch.zeros_like(scores)
    labels[:, 0] = 1
    found = {
        "eval_loss": float(torch.nn.functional.binary_cross_entropy_with_logits(scores, labels)),
        "eval_accuracy": float((scores[:, 0] > scores[:, 1:].max(dim=1).values).float().mean()),
    }
    evaluated = {name: max(curve(tmp_path / "run", name).items())[1] for name in found}
    assert found == pytest.approx(evaluated, abs=1e-5)
