"""Each task, full and LoRA, on workers and ZeRO stages, against its in-process run, and that one against the plain
trainer, 20 steps, float32.

Minutes per task, so not part of the suite: pytest tests/bars/test_tasks_matrix.py
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ray import test_sentences, test_tasks
from tests.ray.conftest import assert_same_curve, train

STEPS, ROWS = 20, 4
TASKS: dict[str, tuple[str, ...]] = {
    "dpo": ("rlhf", "--rlhf_type", "dpo"),
    "kto": ("rlhf", "--rlhf_type", "kto"),
    "rm": ("rlhf", "--rlhf_type", "rm"),
    "orpo": ("rlhf", "--rlhf_type", "orpo"),
    "cpo": ("rlhf", "--rlhf_type", "cpo"),
    "simpo": ("rlhf", "--rlhf_type", "simpo"),
    "seq_cls": ("sft", "--task_type", "seq_cls", "--num_labels", "3", "--truncation", "drop"),
    "embedding": ("sft", *test_sentences.EMBEDDING),
    "reranker": ("sft", *test_sentences.RERANKER),
    "generative_reranker": ("sft", *test_sentences.GENERATIVE),
}
# Of all weights trained at 1e-3, rounding alone grows to 3e-4 of the gradient norm within twenty steps.
TUNERS = {"full": ("--learning_rate", "1e-4"), "lora": ("--tuner", "lora", "--lora_dropout", "0")}
InProcess = Callable[[str, str], Path]


def rows_of(task: str, number: int = 100) -> list[dict[str, Any]]:
    """Rows that a task takes."""
    if task == "seq_cls":
        return [row | {"label": i % 3} for i, row in enumerate(test_tasks.gsm8k(number))]
    if task == "embedding":
        return test_sentences.triples(number)
    if task.endswith("reranker"):
        return test_sentences.lists(number)
    return test_tasks.judged(number) if task == "kto" else test_tasks.pairs(number)


def run(folder: Path, task: str, tuner: str, workers: int, stage: int) -> Path:
    """A run whose global batch is `ROWS`."""
    verb, *own = TASKS[task]
    path = folder.parent / "rows.jsonl"
    if not path.exists():
        test_tasks.write(path, rows_of(task))
    layout = ("--num_workers", str(workers), "--zero_stage", str(stage), "--max_length", "512")
    per_device = ("--per_device_train_batch_size", "2", "--global_batch_size", str(ROWS))
    train(verb, folder, *test_tasks.flags(path, STEPS), *layout, *per_device, *own, *TUNERS[tuner])
    return folder


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> InProcess:
    """The in-process run of a task and tuner, made once."""
    made: dict[tuple[str, str], Path] = {}

    def get(task: str, tuner: str) -> Path:
        if (task, tuner) not in made:
            made[task, tuner] = run(tmp_path_factory.mktemp(f"{task}-{tuner}") / "run", task, tuner, 0, 0)
        return made[task, tuner]

    return get


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("task", TASKS)
def test_in_process_equals_the_plain_trainer(task: str, tuner: str, in_process: InProcess, tmp_path: Path) -> None:
    ours = in_process(task, tuner)
    cut = (STEPS, ROWS, 1) if task in ("seq_cls", "kto") else (STEPS, 2, ROWS // 2)
    theirs = test_tasks.reference("tests.ray.oracle_rows", ours, tmp_path / "plain", TASKS[task][0], cut)
    assert_same_curve(ours, theirs, test_tasks.TOLERANCE)


@pytest.mark.parametrize(("workers", "stage"), [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("task", TASKS)
def test_workers_and_stages_agree(
    task: str, tuner: str, workers: int, stage: int, in_process: InProcess, tmp_path: Path
) -> None:
    assert_same_curve(run(tmp_path / "run", task, tuner, workers, stage), in_process(task, tuner), test_tasks.TOLERANCE)
