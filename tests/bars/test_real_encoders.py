"""Encoders beyond `tests/ray/test_encoders.py`: every family and task, MiniLM for real, folders of
sentence-transformers with each of their modules, adapters, merges, workers and resumes.

Half an hour, so not part of the suite: pytest tests/bars/test_real_encoders.py
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

from rayswift.run.checkpoint import model_folder
from tests.ray.conftest import assert_same_curve, curve, start, train
from tests.ray.test_encoders import (
    ROWS,
    SHORT,
    STEPS,
    check_equal,
    class_loss,
    embedding_loss,
    ends,
    flags,
    labelled,
    no_warnings,
    reranker_loss,
    rows_of,
    run,
)
from tests.ray.test_tasks import TOLERANCE, gsm8k, write
from tests.support import encoders, real_models

KINDS = ("single_label_classification", "multi_label_classification", "regression")
TASKS = ("embedding", "reranker", *KINDS)
LORA = ("--tuner", "lora", "--lora_dropout", "0", "--learning_rate", "1e-3")
SCALE = ("--infonce_temperature", "1")
"""Cosines that are not divided: random models have gradient norms of 100 else."""
Family = Callable[[str], Path]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The folder of a family's small random model."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = encoders.write(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 without dropout, because no two trainers draw the same dropout."""
    folder = shutil.copytree(real_models.minilm(), tmp_path_factory.mktemp("minilm") / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def run_of(folder: Path, model: Path, task: str, *more: str) -> tuple[Path, list[dict[str, Any]]]:
    """A run of a task or a kind of labels, and its rows."""
    if task in KINDS:
        rows = labelled(task)
        more = ("--problem_type", task, "--num_labels", str(1 if task == "regression" else 3), *more)
        return run(folder, model, "seq_cls", rows, *more), rows
    return run(folder, model, task, rows := rows_of(task), *(SCALE if task == "embedding" else ()), *more), rows


def loss_of_saved(folder: Path, task: str, rows: list[dict[str, Any]], max_length: int) -> float:
    """What the model's own library gives for the rows of the evaluation, of the model in a folder."""
    if task == "embedding":
        return embedding_loss(SentenceTransformer(str(folder), device="cpu"), rows[:8], 1.0)
    if task == "reranker":
        return reranker_loss(CrossEncoder(str(folder), device="cpu"), rows[:8])
    return class_loss(folder, rows[:8], max_length)


def merged(run_dir: Path) -> Path:
    """An adapter's model as `rayswift export` merges it."""
    code, said = start("export", run_dir, "--model", str(run_dir), "--merge_lora").wait()
    assert code == 0, said
    found = model_folder(run_dir)
    return found.with_name(f"merged-{found.name}")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", encoders.FAMILIES)
def test_each_family_and_task(
    name: str, task: str, family: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Loss and gradient norm of each step, and the loss of what is saved."""
    run_dir, rows = run_of(tmp_path / "one", family(name), task, "--max_length", str(SHORT))
    check_equal(run_dir, tmp_path / "plain")
    with no_warnings(caplog):
        found = loss_of_saved(model_folder(run_dir), task, rows, SHORT)
    assert found == pytest.approx(ends(run_dir)[1], rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", encoders.FAMILIES)
def test_adapters(name: str, task: str, family: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With heads that are in no file: the adapter merged loads without a warning and gives the run's numbers."""
    run_dir, rows = run_of(tmp_path / "one", family(name), task, "--max_length", str(SHORT), *LORA)
    check_equal(run_dir, tmp_path / "plain")
    before, after = ends(run_dir)
    assert after != before
    with no_warnings(caplog):
        found = loss_of_saved(merged(run_dir), task, rows, SHORT)
    assert found == pytest.approx(after, rel=1e-5)
    if task in ("embedding", "reranker"):  # which put adapters on their base by themselves
        assert loss_of_saved(model_folder(run_dir), task, rows, SHORT) == pytest.approx(after, rel=1e-5)


@pytest.mark.parametrize("tuner", ["full", "lora"])
@pytest.mark.parametrize("task", TASKS)
def test_minilm(task: str, tuner: str, minilm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The real one, of whose rows few are cut."""
    more = LORA if tuner == "lora" else ("--learning_rate", "1e-5")
    run_dir, rows = run_of(tmp_path / "one", minilm, task, "--max_length", "128", *more)
    check_equal(run_dir, tmp_path / "plain")
    before, after = ends(run_dir)
    if task == "embedding":
        untouched = SentenceTransformer(str(minilm), device="cpu")
        untouched.max_seq_length = 128
        assert embedding_loss(untouched, rows[:8], 1.0) == pytest.approx(before, rel=1e-5)
    with no_warnings(caplog):
        found = loss_of_saved(merged(run_dir) if tuner == "lora" else model_folder(run_dir), task, rows, 128)
    assert found == pytest.approx(after, rel=1e-5)


def test_minilm_is_measured_as_it_comes(tmp_path: Path) -> None:
    """The first evaluation, before any step: what sentence-transformers gives for the same pairs, in batches of 16."""
    rows = [{"anchor": row["question"], "positive": row["answer"]} for row in gsm8k(64)]
    path = write(tmp_path / "rows.jsonl", rows)
    own = ("--infonce_temperature", "0.05", "--per_device_train_batch_size", "16", "--max_steps", "1")
    evaluated = ("--data.eval", str(path), "--eval_on_start", "true", "--eval_steps", "100")
    said = train("sft", tmp_path / "run", *flags(real_models.minilm(), path, "embedding"), *own, *evaluated)
    assert "of up to 256 tokens" in said
    assert "modules of the folder: mean pooling, Normalize" in said
    model = SentenceTransformer(str(real_models.minilm()), device="cpu")
    batches = [embedding_loss_of_batch(model, rows[begin : begin + 16]) for begin in range(0, 64, 16)]
    assert ends(tmp_path / "run")[0] == pytest.approx(sum(batches) / 4, rel=1e-5)


def embedding_loss_of_batch(model: SentenceTransformer, rows: list[dict[str, Any]]) -> float:
    """InfoNCE at 0.05 of one batch."""
    queries, documents = (model.encode([row[n] for row in rows], convert_to_tensor=True) for n in rows[0])
    return float(torch.nn.functional.cross_entropy(queries @ documents.T / 0.05, torch.arange(len(rows))))


# ---- folders of sentence-transformers ----

MODULES: dict[str, Callable[[], list[torch.nn.Module]]] = {
    "cls": lambda: [Pooling(32, "cls")],
    "max": lambda: [Pooling(32, "max"), Normalize()],
    "mean_sqrt_len_tokens": lambda: [Pooling(32, "mean_sqrt_len_tokens")],
    "weightedmean": lambda: [Pooling(32, "weightedmean"), Normalize()],
    "lasttoken": lambda: [Pooling(32, "lasttoken")],
    "concatenated": lambda: [Pooling(32, ("cls", "max", "mean")), Normalize()],
    "without the prompt": lambda: [Pooling(32, "mean", include_prompt=False), Normalize()],
    "weighted without the prompt": lambda: [Pooling(32, "weightedmean", include_prompt=False)],
    "dense": lambda: [Pooling(32, "mean"), Dense(32, 16), Normalize()],
    # From 100,000 elements on, ZeRO-3 shards a weight.
    "wide dense": lambda: [Pooling(32, "mean"), Dense(32, 4096), Normalize()],
    "two dense": lambda: [Pooling(32, ("mean", "max")), Dense(64, 32), Dense(32, 24, bias=False), LayerNorm(24)],
}
PROMPTS = {"query": "question: ", "document": "answer: "}


def sentence_folder(folder: Path, base: Path, name: str) -> Path:
    """A folder as sentence-transformers saves it, with prompts, a similarity and a length of its own."""
    torch.manual_seed(1)
    modules = [Transformer(str(base)), *MODULES[name]()]
    model = SentenceTransformer(modules=modules, prompts=PROMPTS, similarity_fn_name="dot", device="cpu")
    model.max_seq_length = SHORT
    model.save(str(folder), create_model_card=False)
    return folder


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a folder of sentence-transformers."""
    model = SentenceTransformer(str(folder), device="cpu")
    return {
        "modules": [type(module).__name__ for module in model],
        "pooling": model[1].get_config_dict(),
        "prompts": model.prompts,
        "similarity": model.similarity_fn_name,
        "length": model.max_seq_length,
    }


@pytest.mark.parametrize("name", MODULES)
def test_a_folder_is_read_and_kept_whole(
    name: str, family: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = sentence_folder(tmp_path / "model", family("bert"), name)
    run_dir, rows = run_of(tmp_path / "one", model, "embedding")
    check_equal(run_dir, tmp_path / "plain")
    with no_warnings(caplog):
        saved = SentenceTransformer(str(model_folder(run_dir)), device="cpu")
    found = [embedding_loss(each, rows[:8], 1.0) for each in (SentenceTransformer(str(model), device="cpu"), saved)]
    assert found == pytest.approx(ends(run_dir), rel=1e-5)
    assert settings_of(model_folder(run_dir)) == settings_of(model)


def test_modules_behind_an_adapter_are_trained_whole(family: Family, tmp_path: Path) -> None:
    """As sentence-transformers does it: its adapter goes around the model alone."""
    model = sentence_folder(tmp_path / "model", family("bert"), "dense")
    run_dir, rows = run_of(tmp_path / "one", model, "embedding", *LORA)
    check_equal(run_dir, tmp_path / "plain")
    for folder in (model_folder(run_dir), merged(run_dir)):
        loss = embedding_loss(SentenceTransformer(str(folder), device="cpu"), rows[:8], 1.0)
        assert loss == pytest.approx(ends(run_dir)[1], rel=1e-5)


def test_modules_behind_an_adapter_that_is_trained_further(family: Family, tmp_path: Path) -> None:
    """They begin as they were saved with it, not as they are in the folder of the model."""
    model = sentence_folder(tmp_path / "model", family("bert"), "two dense")
    first, _ = run_of(tmp_path / "one", model, "embedding", *LORA, "--learning_rate", "1e-2")
    second, rows = run_of(tmp_path / "two", model, "embedding", *LORA, "--adapters", str(first))
    assert ends(first)[1] != pytest.approx(ends(first)[0], rel=1e-4)  # ten times what the next line lets through
    assert ends(second)[0] == pytest.approx(ends(first)[1], rel=1e-5)
    saved = SentenceTransformer(str(model_folder(second)), device="cpu")
    assert embedding_loss(saved, rows[:8], 1.0) == pytest.approx(ends(second)[1], rel=1e-5)


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_modules_come_back_at_a_resume(tuner: str, family: Family, tmp_path: Path) -> None:
    model = sentence_folder(tmp_path / "model", family("bert"), "two dense")
    more = ("--save_strategy", "steps", "--save_steps", "5", *(LORA if tuner == "lora" else ()))
    whole, _ = run_of(tmp_path / "one", model, "embedding", *more)
    half = shutil.copytree(whole, tmp_path / "half")
    shutil.rmtree(half / f"checkpoint-{STEPS}")
    path, evaluated = tmp_path / "one" / "rows.jsonl", tmp_path / "one" / "eval.jsonl"
    again = (*flags(model, path, "embedding"), "--data.eval", str(evaluated), "--eval_on_start", "true")
    said = train("sft", half, *again, "--eval_steps", str(STEPS), *SCALE, *more, "--resume", "auto")
    assert "checkpoint-5 at step 5" in said
    assert_same_curve(half, whole, 1e-6)
    assert ends(half)[1] == pytest.approx(ends(whole)[1], rel=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_modules_on_workers(stage: int, family: Family, tmp_path: Path) -> None:
    model = sentence_folder(tmp_path / "model", family("bert"), "wide dense")
    one, rows = run_of(tmp_path / "one", model, "embedding")
    layout = ("--num_workers", "2", "--zero_stage", str(stage), "--global_batch_size", str(ROWS))
    two, _ = run_of(tmp_path / "two", model, "embedding", *layout, "--per_device_train_batch_size", "2")
    assert_same_curve(two, one, TOLERANCE, ("loss", "grad_norm", "eval_loss"))
    saved = SentenceTransformer(str(model_folder(two)), device="cpu")
    assert embedding_loss(saved, rows[:8], 1.0) == pytest.approx(ends(two)[1], rel=1e-5)


def test_what_is_set_against_a_folder_is_said(family: Family, tmp_path: Path) -> None:
    model = sentence_folder(tmp_path / "model", family("bert"), "max")
    path = write(tmp_path / "rows.jsonl", rows_of("embedding", 16))
    own = ("--pooling", "cls", "--normalize", "false", "--system", "mine: ", "--max_length", "64", "--max_steps", "1")
    said = train("sft", tmp_path / "run", *flags(model, path, "embedding"), *own)
    for line in (
        "model.pooling = cls, it has max",
        "model.normalize = False, it has True",
        "data.system = 'mine: ', its prompt is 'question: '",
        f"data.max_length = 64, its max_seq_length is {SHORT}",
    ):
        assert f"set against   the folder: {line}" in said
    found = settings_of(model_folder(tmp_path / "run"))
    assert found["modules"] == ["Transformer", "Pooling"]
    assert found["pooling"]["pooling_mode"] == "cls"
    assert found["prompts"] == PROMPTS | {"query": "mine: "}
    assert found["length"] == 64


# ---- folders of cross-encoders ----


@pytest.mark.parametrize("layout", ["new", "old"])
def test_a_cross_encoder_is_read_and_kept(
    layout: str, family: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its head, prompt and activation; the old layout has all in the model's `config.json`."""
    torch.manual_seed(2)
    prompts: dict[str, Any] = {"prompts": {"q": "find: "}, "default_prompt_name": "q"} if layout == "new" else {}
    made = CrossEncoder(
        str(family("bert")), num_labels=1, activation_fn=torch.nn.Identity(), max_length=SHORT, device="cpu", **prompts
    )
    model = tmp_path / "model"
    if layout == "new":
        made.save(str(model))
    else:
        made.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"}
        made.model.save_pretrained(model)
        made.tokenizer.save_pretrained(model)
    run_dir, rows = run_of(tmp_path / "one", model, "reranker")
    check_equal(run_dir, tmp_path / "plain")
    with no_warnings(caplog):
        saved = CrossEncoder(str(model_folder(run_dir)), device="cpu")
    found = [reranker_loss(each, rows[:8]) for each in (CrossEncoder(str(model), device="cpu"), saved)]
    assert found == pytest.approx(ends(run_dir), rel=1e-5)
    assert isinstance(saved.activation_fn, torch.nn.Identity)
    assert (saved.prompts, saved.max_seq_length) == (made.prompts, SHORT)
    assert curve(run_dir, "fill")[STEPS] <= 1
