"""`rayswift data inspect`: correct figures, marked trained tokens, a self-contained page."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayswift import cli
from rayswift.config.schema import DataConfig
from rayswift.data import prepare
from rayswift.data.inspect.inspection import inspect
from rayswift.data.inspect.page import to_html, to_text
from rayswift.data.sequence.windows import WindowPlan
from tests.support.streams import TINY

ROWS = [
    *({"query": f"{i}+{i}=", "response": f"<b>{2 * i}</b>"} for i in range(50)),
    *({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": str(i)}]} for i in range(30)),
    *({"n": i} for i in range(5)),
]


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[WindowPlan]:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    yield prepare.plan_encoding(DataConfig(dataset=[str(source)], max_length=128), TINY, 5, tmp_path / "work")[0]


def test_the_figures_are_those_of_the_rows(plan: WindowPlan) -> None:
    found = inspect(plan, 1000, 2)
    assert (found.num_rows, found.num_sampled) == (85, 85)
    assert sorted(found.formats.values()) == [5, 30, 50]
    assert found.counts.total() == 85
    assert found.counts["trained"] == len(found.lengths) == sum(count for _, _, count in found.bins) == 80
    rows = plan.make(0, 0).rows
    assert found.num_trained_tokens == sum(int(row.trained.sum()) for row in rows)
    assert found.fill == pytest.approx(sum(len(row.input_ids) for row in rows) / (len(rows) * 128))
    assert [bad.reason for bad in found.left_out] == ["no known columns"]
    assert len(found.shown) == 2
    assert inspect(plan, 20, 0).num_sampled == 20


def test_what_is_trained_is_marked(plan: WindowPlan) -> None:
    found = inspect(plan, 1000, 80)
    for document in found.shown:
        row = ROWS[int(document.id.rsplit(":", 1)[1]) - 1]
        answer = row["response"] if "response" in row else row["messages"][1]["content"]  # type: ignore[index]
        trained = "".join(text for text, is_trained in document.runs if is_trained)
        assert trained.startswith(str(answer))
        assert f"«{trained}»" in to_text(found, colours=False)
    assert "\x1b[" in to_text(found, colours=True)
    page = to_html(found)
    assert "<mark>&lt;b&gt;" in page
    assert "prefers-color-scheme: dark" in page
    assert "http" not in page


def test_the_command(tmp_path: Path, plan: WindowPlan, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dataset", str(tmp_path / "rows.jsonl"), "--model", str(TINY), "--html", str(tmp_path / "page.html")]
    assert cli._run(["data", "inspect", *flags, "--show", "1"]) == 0
    out = capsys.readouterr().out
    assert "85 of 85 rows" in out
    assert "% of them trained" in out
    assert "Outcomes" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert cli._run(["data", "inspect", *flags[:-1], str(tmp_path / "no" / "page.html")]) == 2
