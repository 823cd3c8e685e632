"""Embeddings and rerankers beyond the matrix of tasks: their other losses against plain sentence-transformers, on
workers that share a batch, and what is saved of each kind loads there.

Minutes, so not part of the suite: pytest tests/bars/test_sentences_matrix.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from rayswift.run.checkpoint import model_folder
from tests.bars.test_tasks_matrix import TUNERS, InProcess
from tests.ray import test_sentences, test_tasks
from tests.ray.conftest import assert_same_curve, curve, train

STEPS, ROWS = 20, test_sentences.ROWS
PAIRS = ("--data.columns", json.dumps({"question": "anchor", "answer": "positive"}), "--max_length", "512")
CASES: dict[str, tuple[str, ...]] = {
    "infonce": test_sentences.EMBEDDING,
    "matryoshka": (*test_sentences.EMBEDDING, "--matryoshka_dims", '{"64": 0.5, "16": 0.25}'),
    "mean": (*test_sentences.EMBEDDING, "--pooling", "mean", "--normalize", "false", "--use_chat_template", "false"),
    "cosine_similarity": ("--task_type", "embedding", "--loss_type", "cosine_similarity", *PAIRS),
    "contrastive": ("--task_type", "embedding", "--loss_type", "contrastive", *PAIRS),
    "online_contrastive": ("--task_type", "embedding", "--loss_type", "online_contrastive", *PAIRS),
    "pointwise": test_sentences.RERANKER,
    "listwise": (*test_sentences.RERANKER, "--loss_type", "listwise"),
    "generative pointwise": test_sentences.GENERATIVE,
    "generative listwise": (*test_sentences.GENERATIVE, "--loss_type", "listwise"),
}


def rows_of(case: str) -> list[dict[str, Any]]:
    """A hundred rows; pairs with a label have the right answer or that of the next problem."""
    if case in ("infonce", "matryoshka", "mean"):
        return test_sentences.triples(100)
    if "wise" in case:
        return test_sentences.lists(100)
    rows = test_sentences.triples(100)
    return [
        {"question": row["question"], "answer": row["wrong" if i % 2 else "answer"], "label": 1 - i % 2}
        for i, row in enumerate(rows)
    ]


def run(folder: Path, case: str, tuner: str, workers: int, stage: int, *more: str) -> Path:
    """A run whose global batch is `ROWS`, evaluated at its end."""
    folder.parent.mkdir(exist_ok=True)
    path, evaluate = test_sentences.split(folder.parent, rows_of(case))
    layout = ("--num_workers", str(workers), "--zero_stage", str(stage), "--global_batch_size", str(ROWS))
    train("sft", folder, *test_tasks.flags(path, STEPS), *CASES[case], *evaluate, *layout, *TUNERS[tuner], *more)
    return folder


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> InProcess:
    """The in-process run of a case and tuner, made once."""
    made: dict[tuple[str, str], Path] = {}

    def get(case: str, tuner: str) -> Path:
        if (case, tuner) not in made:
            made[case, tuner] = run(tmp_path_factory.mktemp("one") / "run", case, tuner, 0, 0)
        return made[case, tuner]

    return get


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"infonce", "pointwise", "generative pointwise"}))
def test_a_loss_equals_plain_sentence_transformers(case: str, in_process: InProcess, tmp_path: Path) -> None:
    ours = in_process(case, "full")
    theirs = test_tasks.reference("tests.ray.oracle_rows", ours, tmp_path / "plain", "sft", (STEPS, 2, ROWS // 2))
    assert_same_curve(ours, theirs, test_tasks.TOLERANCE)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("case", ["infonce", "online_contrastive", "listwise"])
def test_workers_share_a_global_batch(case: str, workers: int, in_process: InProcess, tmp_path: Path) -> None:
    """Three workers, with uneven shares."""
    ours = run(tmp_path / "run", case, "full", workers, 0)
    assert_same_curve(ours, in_process(case, "full"), test_tasks.TOLERANCE, ("loss", "grad_norm", "eval_loss"))


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_saved_embedding_loads(tuner: str, in_process: InProcess) -> None:
    ours = in_process("infonce", tuner)
    found = test_sentences.loss_of_loaded_embedding(ours, test_sentences.held_out(ours.parent))
    assert found == pytest.approx(curve(ours, "eval_loss")[STEPS], abs=1e-5)
    assert curve(in_process("mean", tuner), "eval_loss").keys() == {STEPS}
    model = SentenceTransformer(str(model_folder(in_process("mean", tuner))), device="cpu")
    assert abs(float(torch.as_tensor(model.encode("a text")).norm()) - 1) > 1e-3  # it is not normalized


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("case", ["pointwise", "generative pointwise"])
def test_a_saved_reranker_loads(case: str, tuner: str, in_process: InProcess) -> None:
    ours = in_process(case, tuner)
    scores = test_sentences.scores_of_loaded_reranker(ours, test_sentences.held_out(ours.parent))
    labels = torch.zeros_like(scores)
    labels[:, 0] = 1
    loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels)
    assert float(loss) == pytest.approx(curve(ours, "eval_loss")[STEPS], abs=1e-5)
