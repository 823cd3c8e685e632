"""Files of real users: other encodings and delimiters, JSON of every shape; they are read, or the error names them."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayswift.config.fields.source import SourceConfig
from rayswift.config.tasks import Family
from rayswift.data.rows import Conversation, parse_row
from rayswift.data.sources import json_values, open_sources
from rayswift.log import UserError

ROWS = [{"query": "Wie groß?", "response": "1 µm"}, {"query": '[{"', "response": "多"}, {"query": "c", "response": "d"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path, **fields: Any) -> list[Any]:
    (source,) = open_sources([SourceConfig(path=str(path), **fields)], path.parent / "w")
    return [row.value for row in source.read(range(source.num_rows))]


def refusal(path: Path, **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        values(path, **fields)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---- encodings ----


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".txt"])
def test_text_that_says_its_encoding(encoding: str, suffix: str, tmp_path: Path) -> None:
    between = {".csv": ",", ".tsv": "\t"}.get(suffix, "")
    latin = (
        f"query{between}response\nabcdefgh{between}grüß\n" if between else '{"query": "abcdefgh", "response": "grüß"}\n'
    )
    expected = {".txt": [{"text": latin.strip()}]}.get(suffix, [{"query": "abcdefgh", "response": "grüß"}])
    assert values(write(tmp_path / f"x{suffix}", latin.encode(encoding))) == expected


def test_a_compressed_file_in_utf_16(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl.gz", gzip.compress(LINES.encode("utf-16"), mtime=0))
    assert values(path) == ROWS
    assert values(path) == ROWS  # as a continued run finds it
    assert not list((tmp_path / "w").glob("*.brought*"))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
def test_another_encoding_is_named_and_read_where_the_source_says_it(suffix: str, tmp_path: Path) -> None:
    words = ["привет мир", "как дела", "большое спасибо", "доброе утро", "хорошая погода", "где библиотека"] * 4
    lines = {
        ".jsonl": "".join(json.dumps({"text": word}, ensure_ascii=False) + "\n" for word in words),
        ".csv": "text\n" + "".join(f"{word}\n" for word in words),
        ".txt": "".join(f"{word}\n" for word in words),
    }[suffix]
    path = write(tmp_path / f"x{suffix}", lines.encode("cp1251"))
    message = refusal(path)
    assert "is not UTF-8: of its first 24 lines with other letters than ASCII's 24 are not" in message
    assert "it looks like cp1251" in message and "encoding: cp1251" in message and "iconv -f cp1251 -t utf-8" in message
    assert values(path, encoding="cp1251") == [{"text": word} for word in words]


def test_an_encoding_that_is_none_or_another(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", LINES)
    assert "'utf-9' is no encoding that Python knows" in refusal(path, encoding="utf-9")
    assert "cannot be read as ascii" in refusal(path, encoding="ascii")
    assert values(path, encoding="UTF8") == ROWS


def test_a_few_lines_that_are_no_utf_8_cost_their_rows_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", LINES.encode() * 20 + b'{"query": "\xe9", "response": "a"}\n' * 12)
    (source,) = open_sources([str(path)], tmp_path / "w")
    assert sum(row.error is not None for row in source.read(range(source.num_rows))) == 12


# ---- other kinds of file under these names ----


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        (
            "x.jsonl",
            gzip.compress(LINES.encode(), mtime=0),
            "is gzip, whatever its name says; rename it so that it ends in .gz",
        ),
        ("x.csv", b"PK\x03\x04....", "is a zip archive (as Excel's files are)"),
        ("x.json", b"PAR1....", "is Parquet"),
        ("x.jsonl", b"<!DOCTYPE html>\n<html>", "is a web page"),
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a Git LFS pointer"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "run git lfs pull"),
    ],
)
def test_files_that_are_not_what_they_are_called(name: str, content: bytes, why: str, tmp_path: Path) -> None:
    assert why in refusal(write(tmp_path / name, content))


# ---- delimiters ----


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_delimiters(delimiter: str, suffix: str, tmp_path: Path) -> None:
    content = f'query{delimiter}response\r\n"a{delimiter} b"{delimiter}"c\nd"\r\ne{delimiter}f\r\n'
    expected = [{"query": f"a{delimiter} b", "response": "c\nd"}, {"query": "e", "response": "f"}]
    assert values(write(tmp_path / f"x{suffix}", content)) == expected


def test_a_delimiter_that_excel_wrote_above_the_header(tmp_path: Path) -> None:
    assert values(write(tmp_path / "x.csv", "sep=;\nquery;response\na, b;c\n")) == [{"query": "a, b", "response": "c"}]


def test_one_column_stays_one_column(tmp_path: Path) -> None:
    assert values(write(tmp_path / "x.csv", "text\na; b\nc|d\n")) == [{"text": "a; b"}, {"text": "c|d"}]
    assert values(write(tmp_path / "y.csv", "text;\na; b; c\nd; e\n"))[0] == {"text;": "a; b; c"}


# ---- JSON ----


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize(
    "write_rows",
    [
        lambda rows: json.dumps(rows, ensure_ascii=False),
        lambda rows: json.dumps(rows, indent=2),
        lambda rows: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
        lambda rows: "[" + "\n,".join(map(json.dumps, rows)) + "]",
        lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows),
        lambda rows: "".join(map(json.dumps, rows)),
        lambda rows: " ".join(map(json.dumps, rows)) + "\n",
        lambda rows: json.dumps({"data": rows}),
        lambda rows: json.dumps({"version": "1.0", "info": {"a": [1]}, "data": rows}, indent=2),
        lambda rows: json.dumps({"train": rows, "test": rows[:1]}, ensure_ascii=False),
        lambda rows: json.dumps({"rows": rows, "total": 3}) + "\n",
    ],
    ids=[
        *("array", "pretty array", "array of lines", "commas first", "pretty objects", "objects in a line", "spaces"),
        *("wrapped", "pretty wrapped", "splits", "more behind"),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1 << 22])
def test_json_shapes(write_rows: Any, suffix: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "_CHUNK_BYTES", size)
    assert values(write(tmp_path / f"x{suffix}", write_rows(ROWS))) == ROWS


def test_a_split_inside_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", json.dumps({"train": ROWS[:2], "größe": ROWS[2:], "n": 3}))
    assert values(path) == ROWS[:2]
    assert values(path, split="größe") == ROWS[2:]
    assert "holds no list dev; it holds train, größe, n: name its split" in refusal(path, split="dev")
    assert "holds no splits by name" in refusal(write(tmp_path / "y.jsonl", LINES), split="dev")


def test_an_object_of_objects_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", json.dumps({str(i): ROWS[i % 3] for i in range(1500)}))
    assert "is one object whose values are objects (0, 1, 2, ...), where a list of rows is wanted" in refusal(path)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a"}], "data": [{"a": 1}]},
        {"chosen": {"role": "a"}, "rejected": {"role": "b"}},
        {"text": "a"},
        {},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_that_is_a_row_stays_one(row: dict[str, Any], indent: int | None, tmp_path: Path) -> None:
    assert values(write(tmp_path / "x.json", json.dumps(row, indent=indent))) == [row]


@pytest.mark.parametrize("first", ["[1, 2]", "[[[", '{"a": [', '[{"role": "user"}]', "{" * 20 + '"', "junk"])
def test_a_bad_first_line_costs_only_its_row(first: str, tmp_path: Path) -> None:
    (source,) = open_sources([str(write(tmp_path / "x.jsonl", f"{first}\n{LINES}"))], tmp_path / "w")
    assert [row.value for row in source.read(range(1, 4))] == ROWS and source.num_rows == 4


def test_rows_that_are_arrays_stay_rows(tmp_path: Path) -> None:
    rows = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]
    assert values(write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)))) == rows


def test_a_wrapped_list_in_one_line_may_be_larger_than_a_row(tmp_path: Path) -> None:
    rows = [{"text": "x" * 1000} for _ in range(20_000)]
    path = write(tmp_path / "x.json", json.dumps({"data": rows}))
    (source,) = open_sources([str(path)], tmp_path / "w")
    assert source.num_rows == 20_000 and source.read([19_999])[0].value == rows[-1]


# ---- files that change ----


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_file_that_is_written_anew_while_it_is_read_is_an_error(suffix: str, tmp_path: Path) -> None:
    rows = [{"text": "a" * n} for n in (5, 9, 7)]
    shape = json.dumps if suffix == ".json" else lambda rows: "\n".join(map(json.dumps, rows))
    path = write(tmp_path / f"x{suffix}", shape(rows))
    (source,) = open_sources([str(path)], tmp_path / "w")
    write(path, shape(rows))  # the same content: a copy on another node has another time too
    assert [row.value for row in source.read(range(3))] == rows
    for changed in (rows[::-1][1:] + rows[2:], [*rows, rows[0]]):
        write(path, shape(changed))
        with pytest.raises(UserError, match="changed while it was read"):
            source.read(range(3))


def test_an_arrow_file_that_is_written_anew_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"

    def written(num_rows: int) -> None:
        table = pa.table({"text": ["a"] * num_rows})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    written(3)
    (source,) = open_sources([str(path)], tmp_path / "w")
    path.unlink()  # a mapped file must not be cut
    written(2)
    with pytest.raises(UserError, match="changed while it was read: it had 3 rows, it has 2"):
        source.read([0])


# ---- Parquet ----


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_dictionaries_that_differ_from_part_to_part(kind: str, nested: bool, tmp_path: Path) -> None:
    tables = []
    for words in (["a", "b", "a"], ["c", "d"]):
        column: pa.Array = pa.array(words).dictionary_encode()
        tables.append(pa.table({"x": pa.StructArray.from_arrays([column], ["text"]) if nested else column}))
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        with pq.ParquetWriter(path, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)
    else:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, tables[0].schema, options=options) as stream:
            for table in tables:
                stream.write_table(table)
    expected = list("abacd")
    assert values(path) == [{"x": {"text": word} if nested else word} for word in expected]


# ---- cells of csv files ----

PAIR = '"[{""role"": ""user"", ""content"": ""q""}, {""role"": ""assistant"", ""content"": ""%s""}]"'
ANSWERED = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})


def last(conversation: Conversation) -> Any:
    return conversation.messages[-1]["content"]


@pytest.mark.parametrize(
    ("family", "content", "read"),
    [
        ("classification", "text,label\na,2\n", lambda row: row.label == 2 and type(row.label) is int),
        ("classification", "text,label\na,0.5\n", lambda row: row.label == 0.5),
        ("classification", 'text,label\na,"[0, 2]"\n', lambda row: row.label == (0, 2)),
        ("kto", "prompt,completion,label\nq,a,1\n", lambda row: row.judged[0][1] is True),
        ("kto", "prompt,completion,label\nq,a,False\n", lambda row: row.judged[0][1] is False),
        ("embedding", "sentence1,sentence2,score\nq,a,0.25\n", lambda row: row.label == 0.25),
        ("embedding", "anchor,positive,negative,label\nq,a,,\n", lambda row: not row.negatives and row.label is None),
        ("embedding", 'anchor,positive,negative\nq,a,"[""b"", ""c""]"\n', lambda row: len(row.negatives) == 2),
        ("embedding", "anchor,positive,negative\nq,a,\"['b', 'c']\"\n", lambda row: len(row.negatives) == 2),
        ("embedding", "anchor,positive,negative\nq,a,[b]\n", lambda row: last(row.negatives[0]) == "[b]"),
        ("reranker", 'query,positive,negative\nq,a,"[""b""]"\n', lambda row: last(row.negatives[0]) == "b"),
        ("preference", "prompt,chosen,rejected,margin\nq,a,b,0.5\n", lambda row: row.margin == 0.5),
        ("preference", "prompt,chosen,rejected,margin\nq,a,b,\n", lambda row: row.margin is None),
        ("preference", f"chosen,rejected\n{PAIR % 'a'},{PAIR % 'b'}\n", lambda row: row.chosen.messages == ANSWERED),
        ("preference", 'prompt,chosen,rejected\nq,"[""a""]",b\n', lambda row: last(row.chosen) == '["a"]'),
        ("causal", "query,response,history,tools,system\nq,a,,,\n", lambda row: row.conversation.messages == ANSWERED),
        ("causal", 'query,response,history\nq,a,"[[""x"", ""y""]]"\n', lambda row: len(row.conversation.messages) == 4),
        ("causal", 'query,response,tools\nq,a,"[{""name"": ""f""}]"\n', lambda row: len(row.conversation.tools) == 1),
        ("causal", f"messages\n{PAIR % 'a'}\n", lambda row: row.conversation.messages == ANSWERED),
        ("causal", "query,response\nq,\n", lambda row: last(row.conversation) == ""),
        ("causal", "query,response\nq,[1]\n", lambda row: last(row.conversation) == "[1]"),
    ],
)  # fmt: skip
def test_cells_are_what_their_columns_hold(family: Family, content: str, read: Any, tmp_path: Path) -> None:
    (store,) = open_sources([str(write(tmp_path / "x.csv", content))], tmp_path / "w")
    (row,) = store.read([0])
    assert read(parse_row(row.value, family, {})), parse_row(row.value, family, {})
    header, cells = content.split("\n", 1)
    mapped = {f"my {name}": name for name in header.split(",")}
    path = write(tmp_path / "y.csv", f"{','.join(mapped)}\n{cells}")
    (store,) = open_sources([str(path)], tmp_path / "w")
    assert read(parse_row(store.read([0])[0].value, family, mapped))


def test_columns_that_nobody_reads_make_no_row_too_large(tmp_path: Path) -> None:
    page = "x y " * 5_000_000
    columns = {"text": ["a", "b", "c"], "page": [page, "", page], "extra": [{"b": b"\x00" * 20_000_000}] * 3}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    path, limit = str(tmp_path / "x.parquet"), "row over 16 MiB"

    def rows(columns: dict[str, str] | None) -> list[Any]:
        (store,) = open_sources([path], tmp_path / "w", columns=columns)
        return [row.value if row.error is None else row.error.reason for row in store.read(range(3))]

    assert rows({}) == [{"text": "a"}, {"text": "b"}, {"text": "c"}]
    assert rows({"extra.b": "text"}) == [limit] * 3
    assert rows({"page": "text", "text": "unused"}) == [limit, {"page": ""}, limit]
    assert rows(None) == [limit] * 3  # a function or a reward may read them
