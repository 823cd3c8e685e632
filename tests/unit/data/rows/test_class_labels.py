"""The kind of labels, found from the rows: names, numbers, several, values; unclear labels are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayswift.config.model import ModelConfig, ProblemType
from rayswift.config.schema import DataConfig
from rayswift.data.class_labels import completed
from rayswift.data.encode.config import EncodeConfig, RowKind
from rayswift.data.encode.encoders import encoder_of
from rayswift.data.prepare import plan_encoding
from rayswift.data.rows import BadRow
from rayswift.data.sources import open_sources
from rayswift.data.tokenizer.training_copy import prepare_tokenizer
from rayswift.log import UserError
from rayswift.model.heads import settings
from tests.support.streams import TINY

KIND = RowKind("classification")


def config_of(kind: RowKind = KIND, **options: Any) -> EncodeConfig:
    return EncodeConfig(
        str(TINY),
        "hash",
        64,
        family="classification",
        num_labels=kind.num_labels,
        problem_type=kind.problem_type,
        label_names=kind.label_names,
        use_chat_template=False,
        **options,
    )


def found_in(folder: Path, labels: list[Any], **given: Any) -> EncodeConfig:
    """What rows with these labels say of the rest."""
    path = folder / "rows.jsonl"
    rows = [json.dumps({"text": f"t{i}", "tag": label}) for i, label in enumerate(labels)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    stores = open_sources([str(path)], folder / "work", 0)
    return completed(config_of(replace(KIND, **given), columns={"tag": "label"}), stores)


def encoded(kind: RowKind, label: Any) -> Any:
    (result,) = encoder_of(config_of(kind)).encode([{"text": "two words", "label": label}])
    return result if isinstance(result, BadRow) else [value for _, value in result[0].numbers]


SINGLE: ProblemType = "single_label_classification"
SEVERAL: ProblemType = "multi_label_classification"


@pytest.mark.parametrize(
    ("labels", "given", "wanted"),
    [
        (["good", "bad", "good"], {}, (2, SINGLE, ("bad", "good"))),
        (["good", "bad"], {"label_names": ("good", "bad", "so so")}, (3, SINGLE, ("good", "bad", "so so"))),
        ([0, 2, 1], {}, (3, SINGLE, ())),
        (["0", "2"], {}, (3, SINGLE, ())),
        ([0, 2], {"num_labels": 5}, (5, SINGLE, ())),
        ([True, False], {}, (2, SINGLE, ())),
        ([[0, 2], [], [1]], {}, (3, SEVERAL, ())),
        ([[0, 2], []], {"num_labels": 3}, (3, SEVERAL, ())),
        ([["a"], [], ["b", "a"]], {}, (2, SEVERAL, ("a", "b"))),
        ([[1, 0, 0], [1, 0, 1]], {}, (3, SEVERAL, ())),
        ([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], {}, (2, SEVERAL, ())),
        ([0.5, 1.0, -2.25], {}, (1, "regression", ())),
        (["0.5", "1"], {}, (1, "regression", ())),
        ([0, 1, 2], {"num_labels": 1}, (1, "regression", ())),
        ([[0.5, 2.0], [1.0, 1.0]], {}, (2, "regression", ())),
        (["a", None, {"x": 1}, "b"], {}, (2, SINGLE, ("a", "b"))),
    ],
)
def test_what_rows_say(tmp_path: Path, labels: list[Any], given: dict[str, Any], wanted: tuple[Any, ...]) -> None:
    found = found_in(tmp_path, labels, **given)
    assert (found.num_labels, found.problem_type, found.label_names) == wanted


@pytest.mark.parametrize(
    ("labels", "given", "says"),
    [
        (["a", 1], {}, "numbers in some rows and texts in others"),
        (["a", "b"], {"num_labels": 3}, "2 classes"),
        (["a", "a"], {}, "all labels are equal"),
        ([0, 0], {}, "all labels are equal"),
        (["a", "b"], {"problem_type": "regression"}, "labels are texts"),
        ([f"text {i}" for i in range(1001)], {}, "more than 1000 different texts"),
    ],
)
def test_what_is_unclear_is_refused(tmp_path: Path, labels: list[Any], given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        found_in(tmp_path, labels, **given)


def test_a_class_that_comes_late_is_found(tmp_path: Path) -> None:
    found = found_in(tmp_path, [*["a", "b"] * 1500, "late"])
    assert found.label_names == ("a", "b", "late")


@pytest.mark.parametrize(
    ("kind", "label", "wanted"),
    [
        (RowKind("classification", 2, SINGLE, label_names=("bad", "good")), "good", [1.0]),
        (RowKind("classification", 2, SINGLE, label_names=("bad", "good")), 1, [1.0]),
        (RowKind("classification", 2, SINGLE, label_names=("bad", "good")), "ugly", None),
        (RowKind("classification", 2, SINGLE), 1.0, [1.0]),
        (RowKind("classification", 2, SINGLE), "0.0", [0.0]),
        (RowKind("classification", 2, SINGLE), 0.5, None),
        (RowKind("classification", 2, SINGLE), 2.0, None),
        (RowKind("classification", 3, SEVERAL), [0, 2], [1.0, 0.0, 1.0]),
        (RowKind("classification", 3, SEVERAL), [], [0.0, 0.0, 0.0]),
        (RowKind("classification", 3, SEVERAL), [1, 0, 1], [1.0, 0.0, 1.0]),
        (RowKind("classification", 3, SEVERAL), [1, 1, 1], [1.0, 1.0, 1.0]),
        (RowKind("classification", 2, SEVERAL), [0, 1], [1.0, 1.0]),
        (RowKind("classification", 2, SEVERAL), [0.0, 1.0], [0.0, 1.0]),
        (RowKind("classification", 2, SEVERAL), [1, 1], None),
        (RowKind("classification", 2, SEVERAL, label_names=("a", "b")), ["b"], [0.0, 1.0]),
        (RowKind("classification", 2, SINGLE), "good", None),
    ],
)
def test_labels_as_their_loss_takes_them(kind: RowKind, label: Any, wanted: Any) -> None:
    result = encoded(kind, label)
    if wanted is None:
        assert isinstance(result, BadRow)
        assert result.reason == "bad label"
    else:
        assert result == wanted


def test_names_are_in_the_plan_of_a_run_and_in_the_models_config(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "1 + 1", "label": ("good", "bad")[i % 2]} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = ModelConfig(path=str(TINY))
    tokenizer_dir = prepare_tokenizer(model, tmp_path / "tokenizer", KIND)
    windows, _ = plan_encoding(DataConfig(dataset=[str(path)]), tokenizer_dir, 0, tmp_path / "work", KIND)
    assert (windows.encode.label_names, windows.encode.num_labels) == (("bad", "good"), 2)
    named = model.model_copy(update={"num_labels": 2, "label_names": ["bad", "good"]})
    assert settings(named, "classes") == {
        "problem_type": SINGLE,
        "id2label": {0: "bad", 1: "good"},
        "label2id": {"bad": 0, "good": 1},
    }


def test_labels_are_read_as_each_source_and_the_users_function_have_them(tmp_path: Path) -> None:
    sources = []
    for column, label in (("tag", "good"), ("mark", "bad")):
        path = tmp_path / f"{column}.jsonl"
        path.write_text(json.dumps({"text": "1 + 1", column: label}) + "\n", encoding="utf-8")
        sources.append({"path": str(path), "columns": {column: "label"}})
    function = tmp_path / "louder.py"
    function.write_text(
        "def louder(row):\n    return {k: v.upper() if k != 'text' else v for k, v in row.items()}\n", encoding="utf-8"
    )
    data = DataConfig.model_validate({"dataset": sources, "map": f"{function}:louder"})
    tokenizer_dir = prepare_tokenizer(ModelConfig(path=str(TINY)), tmp_path / "tokenizer", KIND)
    windows, _ = plan_encoding(data, tokenizer_dir, 0, tmp_path / "work", KIND)
    assert windows.encode.label_names == ("BAD", "GOOD")
    assert windows.make(0, 0).counts == {"trained": 2}
