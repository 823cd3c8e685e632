"""Encoders without a chat template against the plain trainers of sentence-transformers and transformers: the same rows
in the same order, float32; what a run saves loads there, without a warning, and gives the run's own numbers."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rayswift.run.checkpoint import model_folder
from tests.ray.conftest import assert_same_curve, curve, train
from tests.ray.test_tasks import TOLERANCE, gsm8k, reference, write
from tests.support import encoders

STEPS, ROWS = 10, 4
SHORT = 48
"""Tokens of the longest text: most of these rows are cut."""


def flags(model: Path, rows: Path, task: str, *more: str) -> tuple[str, ...]:
    """A run in this process whose global batch is one micro-batch."""
    return (
        "--model", str(model), "--task_type", task, "--data.dataset", str(rows), "--learning_rate", "1e-4",
        "--logging_steps", "1", "--gradient_checkpointing", "false", "--report_to", "none", "--timeout_s", "60",
        "--num_workers", "0", "--zero_stage", "0", "--max_steps", str(STEPS), "--save_strategy", "no",
        "--per_device_train_batch_size", str(ROWS), "--threads_per_worker", "1", *more,
    )  # fmt: skip


def rows_of(task: str, num_rows: int = 60) -> list[dict[str, Any]]:
    """Word problems: with their solution and another one, or with the first digit as their class."""
    pairs = list(pairwise(gsm8k(num_rows + 1)))
    if task == "embedding":
        return [{"anchor": a["question"], "positive": a["answer"], "negative": b["answer"]} for a, b in pairs]
    if task == "reranker":
        return [{"query": a["question"], "positive": a["answer"], "negative": [b["answer"]]} for a, b in pairs]
    return [{"text": a["question"], "label": len(a["answer"]) % 3} for a, _ in pairs]


def labelled(kind: str, num_rows: int = 60) -> list[dict[str, Any]]:
    """The same texts with one of three classes, several of them, or a value."""
    rows = rows_of("seq_cls", num_rows)
    labels = {
        "single_label_classification": lambda label: label,
        "multi_label_classification": lambda label: [float(label == 0), 1.0, float(label == 2)],
        "regression": lambda label: label / 2 + 0.25,
    }
    return [row | {"label": labels[kind](row["label"])} for row in rows]


@contextmanager
def no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing in here may log a warning, of weights or of settings."""
    names = ("transformers", "sentence_transformers")
    for name in names:
        logging.getLogger(name).propagate = True
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        yield
    said = [record.getMessage() for record in caplog.records if record.name.split(".")[0] in names]
    assert not said


def held_out(folder: Path, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """Flags that evaluate on the first rows before any step and behind the last."""
    path = write(folder / "eval.jsonl", rows[:8])
    return ("--data.eval", str(path), "--eval_on_start", "true", "--eval_steps", str(STEPS))


def embedding_loss(model: SentenceTransformer, rows: list[dict[str, Any]], temperature: float = 0.05) -> float:
    """InfoNCE of each batch of `ROWS`, by the vectors that a `SentenceTransformer` makes."""
    names = [name for name in ("anchor", "positive", "negative") if name in rows[0]]
    encode = {"anchor": model.encode_query}
    columns = [encode.get(n, model.encode_document)([row[n] for row in rows], convert_to_tensor=True) for n in names]
    loss = losses.MultipleNegativesRankingLoss(model, scale=1 / temperature)
    batches = zip(*(column.split(ROWS) for column in columns), strict=True)
    return float(torch.stack([loss.compute_loss_from_embeddings(list(b), torch.empty(0)) for b in batches]).mean())


def reranker_loss(model: CrossEncoder, rows: list[dict[str, Any]]) -> float:
    """Binary cross-entropy of the scores that a `CrossEncoder` gives."""
    pairs = [(row["query"], document) for row in rows for document in (row["positive"], *row["negative"])]
    scores = model.predict(pairs, activation_fn=torch.nn.Identity(), convert_to_tensor=True)
    labels = torch.tensor(([1.0] + [0.0] * len(rows[0]["negative"])) * len(rows))
    return float(torch.nn.functional.binary_cross_entropy_with_logits(scores, labels))


def class_loss(folder: Path, rows: list[dict[str, Any]], max_length: int) -> float:
    """The loss that transformers' own model gives for the rows."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = tokenizer(
        [row["text"] for row in rows], truncation=True, max_length=max_length, padding=True, return_tensors="pt"
    )
    labels = torch.tensor([row["label"] for row in rows])
    with torch.no_grad():
        return float(model(**texts, labels=labels).loss)


def ends(run_dir: Path) -> tuple[float, float]:
    """The loss of the evaluation before any step, and of that behind the last."""
    found = curve(run_dir, "eval_loss")
    return found[min(found)], found[max(found)]


def run(folder: Path, model: Path, task: str, rows: list[dict[str, Any]], *more: str) -> Path:
    """A run on rows, evaluated on the first of them."""
    folder.mkdir(exist_ok=True)
    path = write(folder / "rows.jsonl", rows)
    train("sft", folder / "run", *flags(model, path, task, *held_out(folder, rows), *more))
    return folder / "run"


def check_equal(run_dir: Path, out_dir: Path) -> None:
    """Loss and gradient norm of each step are those of the model's own library.

    At the first step, from the same weights, within some hundred roundings of float32; later within what they grow to.
    """
    theirs = reference("tests.ray.oracle_rows", run_dir, out_dir, "sft", (STEPS, ROWS, 1))
    for key in ("loss", "grad_norm"):
        assert curve(run_dir, key)[1] == pytest.approx(curve(theirs, key)[1], rel=1e-5), key
    assert_same_curve(run_dir, theirs, TOLERANCE)


@pytest.mark.parametrize("family", ["bert"])
def test_embeddings(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_of("embedding")
    model = encoders.write(family, tmp_path / "model")
    run_dir = run(tmp_path / "one", model, "embedding", rows, "--max_length", str(SHORT), "--infonce_temperature", "1")
    check_equal(run_dir, tmp_path / "plain")
    with no_warnings(caplog):
        saved = SentenceTransformer(str(model_folder(run_dir)), device="cpu")
    assert saved.max_seq_length == SHORT
    untouched = SentenceTransformer(str(model), device="cpu")
    untouched.max_seq_length = SHORT
    found = [embedding_loss(each, rows[:8], 1.0) for each in (untouched, saved)]
    assert found == pytest.approx(ends(run_dir), rel=1e-5)
    assert curve(run_dir, "fill")[STEPS] <= 1


@pytest.mark.parametrize("family", ["deberta-v2"])
def test_rerankers(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Token types of pairs; the head is drawn before the first step, so what is compared before it is their trainer."""
    rows = rows_of("reranker")
    model = encoders.write(family, tmp_path / "model")
    run_dir = run(tmp_path / "one", model, "reranker", rows, "--max_length", str(SHORT))
    check_equal(run_dir, tmp_path / "plain")
    with no_warnings(caplog):
        saved = CrossEncoder(str(model_folder(run_dir)), device="cpu")
    assert reranker_loss(saved, rows[:8]) == pytest.approx(ends(run_dir)[1], rel=1e-5)


@pytest.mark.parametrize(("family", "kind"), [("roberta", "multi_label_classification")])
def test_classes(family: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = labelled(kind)
    model = encoders.write(family, tmp_path / "model")
    own = ("--problem_type", kind, "--num_labels", str(1 if kind == "regression" else 3), "--max_length", str(SHORT))
    run_dir = run(tmp_path / "one", model, "seq_cls", rows, *own)
    check_equal(run_dir, tmp_path / "plain")
    with no_warnings(caplog):
        assert class_loss(model_folder(run_dir), rows[:8], SHORT) == pytest.approx(ends(run_dir)[1], rel=1e-5)


def test_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    rows = rows_of("embedding", 8)
    model = encoders.write("distilbert", tmp_path / "model")
    path = write(tmp_path / "rows.jsonl", rows)
    said = train("sft", tmp_path / "run", *flags(model, path, "embedding"), "--max_steps", "1")
    assert "as the tokenizer makes them, of up to 128 tokens, longer ones cut on the right" in said
    assert "mean pooling, scaled to length 1" in said
    counts = json.loads((tmp_path / "run" / "data" / "accounting.json").read_text(encoding="utf-8"))
    assert "cut to data.max_length" in json.dumps(counts)
    assert "filtered" not in json.dumps(counts)
