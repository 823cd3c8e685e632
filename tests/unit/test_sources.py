"""Files of every kind -> rows by number, with ids that say where a row stands."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayswift.data import sources
from rayswift.data.sources import RawRow, open_sources
from rayswift.log import UserError


def rows_of(path: Path | str, work: Path) -> list[RawRow]:
    rows: list[RawRow] = []
    for store in open_sources([str(path)], work / "work"):
        rows += store.read(range(store.num_rows))
    return rows


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path | str, work: Path) -> list[Any]:
    return [row.value for row in rows_of(path, work)]


def refusal(path: Path | str, work: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_sources([str(path)], work / "work")
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---- jsonl ----


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\n{"a": 2}',
        b'{"a": 1}\r\n{"a": 2}\r\n',
        b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\n\n\r\n \n{"a": 2}\n\n',
        b'\n\n{"a": 1}\n{"a": 2}',
    ],
    ids=["plain", "no newline at the end", "CRLF", "BOM", "blank lines", "blank first"],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".JSONL"])
def test_jsonl(content: bytes, suffix: str, tmp_path: Path) -> None:
    assert values(write(tmp_path / f"x{suffix}", content), tmp_path) == [{"a": 1}, {"a": 2}]


def test_ids_hold_the_number_of_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", b'\n{"a": 1}\r\n\n\xff\n{"a": }\n{"a": 2}')
    rows = rows_of(path, tmp_path)
    assert [row.id for row in rows] == [f"{path}:{line}" for line in (2, 4, 5, 6)]
    assert [row.error.reason if row.error else None for row in rows] == [
        None,
        "invalid UTF-8",
        "malformed JSON",
        None,
    ]
    assert rows[1].text == "\ufffd"
    assert rows[2].text == '{"a": }'
    assert rows[3].value == {"a": 2}


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    (store,) = open_sources([str(write(tmp_path / "x.jsonl", "".join(f"{i}\n" for i in range(50))))], tmp_path / "w")
    asked = [7, 0, 49, 7]
    assert [row.value for row in store.read(asked)] == asked
    assert [row.value for row in store.read(np.array(asked))] == asked
    assert store.read([]) == []


def test_lines_across_the_borders_of_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.jsonl", "".join(f'{{"n": "{"x" * (i % 7)}"}}\n' for i in range(40)))
    expected = values(path, tmp_path / "whole")
    for size in (1, 2, 3, 10, 11):
        monkeypatch.setattr(sources, "_CHUNK_BYTES", size)
        assert values(path, tmp_path / str(size)) == expected


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    assert values(write(tmp_path / "x.jsonl", "1\n22\n"), tmp_path) == [1, 22]
    assert values(write(tmp_path / "x.jsonl", "333\n4\n5\n"), tmp_path) == [333, 4, 5]


def test_a_number_that_python_refuses_makes_a_bad_row(tmp_path: Path) -> None:
    (row,) = rows_of(write(tmp_path / "x.jsonl", '{"a": %s}\n' % ("1" * 5000)), tmp_path)
    assert row.error is not None


def test_a_line_of_many_blanks_is_blank(tmp_path: Path) -> None:
    assert values(write(tmp_path / "x.jsonl", '{"a": 1}\n     \n'), tmp_path) == [{"a": 1}]


# ---- other kinds ----


def test_text(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", 'one\n\n{"two"} é\nthree')
    assert values(path, tmp_path) == [{"text": "one"}, {"text": '{"two"} é'}, {"text": "three"}]


def test_text_with_crlf(tmp_path: Path) -> None:
    assert values(write(tmp_path / "x.txt", "one\r\ntwo\r\n"), tmp_path) == [{"text": "one"}, {"text": "two"}]


def test_csv_with_quotes_newlines_and_bom(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", '\ufeffquery,response\r\n"a, b","line 1\nline ""2"""\r\né,\r\n')
    expected = [{"query": "a, b", "response": 'line 1\nline "2"'}, {"query": "é", "response": ""}]
    assert values(path, tmp_path) == expected
    assert [row.id for row in rows_of(path, tmp_path)] == [f"{path}:1", f"{path}:2"]


def test_tsv(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", 'query\tresponse\n"a\tb"\tc,d\n')
    assert values(path, tmp_path) == [{"query": "a\tb", "response": "c,d"}]


def test_csv_with_a_very_long_field(tmp_path: Path) -> None:
    assert len(values(write(tmp_path / "x.csv", "text\n" + "y" * 200_000 + "\n"), tmp_path)[0]["text"]) == 200_000


@pytest.mark.parametrize("start", ["", " \n\t", "\ufeff"])
def test_json_array(start: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", start + json.dumps([{"a": "é\n"}, 3, {"a": None}], indent=2))
    assert values(path, tmp_path) == [{"a": "é\n"}, 3, {"a": None}]


def test_a_broken_json_array(tmp_path: Path) -> None:
    assert "not valid JSON" in refusal(write(tmp_path / "x.json", '[{"a": 1},'), tmp_path)


def test_a_json_array_with_a_lone_surrogate(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", '[{"text": "\\ud83d"}, {"text": "a"}]')
    assert values(path, tmp_path)[1] == {"text": "a"}


def test_parquet_with_nested_messages(tmp_path: Path) -> None:
    rows = [
        {"id": i, "messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "é"}]}
        for i in range(10)
    ]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    (store,) = open_sources([str(path)], tmp_path / "w")
    assert store.num_rows == 10
    read = store.read([9, 0, 4])
    assert [row.value for row in read] == [rows[9], rows[0], rows[4]]
    assert [row.id for row in read] == [f"{path}:{number}" for number in (9, 0, 4)]


def test_parquet_without_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet holds no row"):
        rows_of(tmp_path / "x.parquet", tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.parquet", b"not parquet"), ("x.csv", b"text\n\xff\n"), ("x.json", b'["\xff"]')],
)
def test_unreadable_files(name: str, content: bytes, tmp_path: Path) -> None:
    assert "cannot read" in refusal(write(tmp_path / name, content), tmp_path)


# ---- which files ----


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "d" / "b.jsonl", "2\n")
    write(tmp_path / "d" / "a" / "z.jsonl", "1\n")
    write(tmp_path / "d" / "c.txt", "three\n")
    write(tmp_path / "d" / "notes.md", "no\n")
    assert values(tmp_path / "d", tmp_path) == [1, 2, {"text": "three"}]


def test_a_glob(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        write(tmp_path / name, f'"{name}"\n')
    assert values(tmp_path / "*.jsonl", tmp_path) == ["a.jsonl", "b.jsonl"]


def test_several_sources_and_one_twice(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.jsonl", "1\n"), write(tmp_path / "2.csv", "text\ntwo\n")
    stores = open_sources([str(two), str(one), str(two)], tmp_path / "w")
    assert [store.read([0])[0].value for store in stores] == [{"text": "two"}, 1, {"text": "two"}]


def test_ids_are_unique_over_all_sources(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder / "train.jsonl", "1\n")
    stores = open_sources([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "w")
    assert len({row.id for store in stores for row in store.read([0])}) == 2


def test_an_empty_file(tmp_path: Path) -> None:
    assert "x.jsonl is empty; " in refusal(write(tmp_path / "x.jsonl", ""), tmp_path)


@pytest.mark.parametrize(("name", "content"), [("x.jsonl", "\n\n \r\n"), ("x.csv", "a,b\n"), ("x.json", "[]")])
def test_files_without_rows(name: str, content: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=f"{name} holds no row"):
        open_sources([str(path)], tmp_path / "w")


@pytest.mark.parametrize("name", ["none.jsonl", "none/", "a/b/c", "*.jsonl"])
def test_missing_files(name: str, tmp_path: Path) -> None:
    assert "no file or folder" in refusal(f"{tmp_path}/{name}", tmp_path)


def test_a_relative_name_that_ends_like_a_file_is_no_hub_id(tmp_path: Path) -> None:
    assert "no file or folder data/train.jsonl" in refusal("data/train.jsonl", tmp_path)


def test_an_unknown_kind_of_file(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "x.docx", "a"), tmp_path)
    assert "unknown kind of file; known are .jsonl" in message


def test_a_folder_without_rows(tmp_path: Path) -> None:
    write(tmp_path / "d" / "x.md", "a")
    assert "holds no file ending in .jsonl" in refusal(tmp_path / "d", tmp_path)
