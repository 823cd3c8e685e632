"""Files of every kind -> rows by number, with ids that say where a row stands."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.data.sources import RawRow, json_values, lines, open_sources, store
from rayswift.log import UserError


def rows_of(path: Path | str, work: Path) -> list[RawRow]:
    (source,) = open_sources([str(path)], work / "work")
    return source.read(range(source.num_rows))


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
        monkeypatch.setattr(lines, "_CHUNK_BYTES", size)
        assert values(path, tmp_path / str(size)) == expected


@settings(max_examples=100)
@given(st.lists(st.sampled_from([b"a", b" ", b"\n", b"\r", b"\t", b"\xef\xbb\xbf"]), max_size=30), st.integers(3, 12))
def test_any_lines(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], size: int) -> None:
    folder, content = tmp_path_factory.mktemp("l"), b"".join(parts)
    whole = content.removeprefix(b"\xef\xbb\xbf")
    expected = {number: line for number, line in enumerate(whole.split(b"\n"), 1) if line.strip()}
    path = write(folder / "x.txt", content)
    if not expected:
        assert "holds no row" in refusal(path, folder) if content else True
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_CHUNK_BYTES", size)
        read = rows_of(path, folder)
    assert [row.id for row in read] == [f"{path}:{number}" for number in expected]
    assert [row.value["text"].encode() for row in read] == [line.removesuffix(b"\r") for line in expected.values()]


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
    [("x.parquet", b"not parquet"), ("x.jsonl.gz", b"not gzip"), ("x.arrow", b"not arrow")],
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


# ---- rows that are bad by themselves ----


def reasons(rows: list[RawRow]) -> list[str | None]:
    return [row.error.reason if row.error else None for row in rows]


def test_bytes_that_are_no_utf8_cost_only_their_row(tmp_path: Path) -> None:
    table = rows_of(write(tmp_path / "x.csv", b"a,b\n1,\xff\n3,4\n"), tmp_path)
    assert reasons(table) == ["invalid UTF-8", None]
    assert table[0].text == '["1", "\ufffd"]'
    assert reasons(rows_of(write(tmp_path / "x.json", b'["\xff", {"a": 1}]'), tmp_path)) == ["invalid UTF-8", None]
    assert reasons(rows_of(write(tmp_path / "x.txt", b"\xff\nfine\n"), tmp_path)) == ["invalid UTF-8", None]


def test_a_key_twice_is_a_bad_row(tmp_path: Path) -> None:
    rows = rows_of(
        write(tmp_path / "x.jsonl", '{"a": 1, "a": 2}\n{"a": {"b": 1, "c": 2, "b": 3}}\n{"a": 1}\n'), tmp_path
    )
    assert reasons(rows) == ["duplicate keys", "duplicate keys", None]
    assert "'b' more than once" in str(rows[1].error)


def test_a_row_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_ROW_BYTES", 100)
    rows = rows_of(write(tmp_path / "x.jsonl", '{"a": "%s"}\n{"a": 1}\n' % ("x" * 5000)), tmp_path)
    assert reasons(rows) == [f"row over {store.MAX_ROW_BYTES >> 20} MiB", None]
    assert rows[0].text.startswith('{"a": "xxx') and rows[0].text.endswith("x...")


def test_csv_records_that_do_not_fit_the_header(tmp_path: Path) -> None:
    rows = rows_of(write(tmp_path / "x.csv", "a,b\n1\n1,2\n1,2,3\n"), tmp_path)
    assert reasons(rows) == ["wrong number of fields", None, "wrong number of fields"]
    assert "is no UTF-8" in refusal(write(tmp_path / "z.csv", b"a,\xff\n1,2\n"), tmp_path)
    assert "names a more than once" in refusal(write(tmp_path / "y.csv", "a,b,a\n1,2,3\n"), tmp_path)


def test_a_quote_left_open_in_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayswift.data.sources.csv_rows.MAX_ROW_BYTES", 100)
    path = write(tmp_path / "x.csv", 'a,b\n1,"2\n' + "3,4\n" * 100)
    assert "is a quote left open before it?" in refusal(path, tmp_path)


def test_a_file_that_shrinks_is_an_error_not_other_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", "1\n22\n333\n")
    (source,) = open_sources([str(path)], tmp_path / "w")
    write(path, "1\n2")
    with pytest.raises(UserError, match="changed while it was read"):
        source.read([2])


# ---- json: arrays and objects over several lines ----


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
def test_json_values_across_the_borders_of_reads(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "_CHUNK_BYTES", size)
    rows = [{"a": 'q"]},{[\\', "b": [1, [2, {"c": "\\\\"}]]}, "\\", [], {}, 10**60, "é\ud83d"]
    for indent in (None, 2):
        assert values(write(tmp_path / "x.json", json.dumps(rows, indent=indent)), tmp_path / str(indent)) == rows
    objects = [row for row in rows if isinstance(row, dict)]
    stream = "\n".join(json.dumps(row, indent=1) for row in [{"first": [1]}, *objects])
    assert values(write(tmp_path / "y.json", "\n " + stream + " \n"), tmp_path) == [{"first": [1]}, *objects]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('"\\\\[]{}, aé\\n\ud83d', max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a"\\\\]', max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60)
@given(st.lists(JSON, min_size=1, max_size=8), st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 40))
def test_any_json_values(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None, ascii: bool, size: int
) -> None:
    folder = tmp_path_factory.mktemp("j")
    content = json.dumps(rows, indent=indent, ensure_ascii=ascii).encode("utf-8", errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "_CHUNK_BYTES", size)
        read = rows_of(write(folder / "x.json", content), folder)
    # Half of a surrogate pair that is not escaped is no UTF-8; whatever else stands in an element stays as it is.
    for row, value in zip(read, rows, strict=True):
        assert row.error.reason == "invalid UTF-8" if row.error else row.value == value
        assert (row.error is None) or not ascii


def test_one_bad_element_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(write(tmp_path / "x.json", '[{"a": 1}, {"a" 2}, {"a": 3}]'), tmp_path)
    assert reasons(rows) == [None, "malformed JSON", None]
    for size in (1, 8, 100):
        monkeypatch.setattr(json_values, "_CHUNK_BYTES", size)
        comma = rows_of(write(tmp_path / "y.json", f'[{{"a": {size}}} , ]'), tmp_path / str(size))
        assert reasons(comma) == [None, "malformed JSON"]
    assert [row.id for row in rows] == [f"{tmp_path / 'x.json'}:{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('[{"a": 1}, {"b"', "it ends inside a value"),
        ('[{"a": 1}', "it ends inside a value"),
        ('[{"a": "1}]', "it ends inside a value"),
        ('[{"a": 1}] [2]', "text follows its array"),
        ('[{"a": 1}]]', "closes a bracket that is not open"),
        ("[]", "holds no row"),
        ("[\n \n]\n", "holds no row"),
    ],
)
def test_json_that_is_no_array(content: str, why: str, tmp_path: Path) -> None:
    assert why in refusal(write(tmp_path / "x.json", content), tmp_path)


def test_a_bad_first_line_does_not_make_jsonl_a_stream(tmp_path: Path) -> None:
    rows = rows_of(write(tmp_path / "x.json", 'junk\n{"a": 1}\n'), tmp_path)
    assert reasons(rows) == ["malformed JSON", None]


# ---- arrow ----

TABLE = pa.table({"text": [f"row {i}" for i in range(5000)], "n": range(5000)})


def arrow_file(path: Path, kind: str, compression: str | None = None) -> Path:
    new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(path), "wb") as sink, new(sink, TABLE.schema, options=options) as writer:
        writer.write_table(TABLE, max_chunksize=700)
    return path


@pytest.mark.parametrize("compression", [None, "lz4"])
@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow(kind: str, compression: str | None, tmp_path: Path) -> None:
    path = arrow_file(tmp_path / "x.ARROW", kind, compression)
    (source,) = open_sources([str(path)], tmp_path / "w")
    read = source.read([4999, 0, 699, 700, 0])
    assert [row.value["n"] for row in read] == [4999, 0, 699, 700, 0]
    assert read[0].id == f"{path}:4999"
    assert bool(list((tmp_path / "w").glob("*.arrow"))) == (compression is not None)  # read in place, or copied


def test_parquet_with_one_large_row_group(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "x.parquet", row_group_size=5000)
    (source,) = open_sources([str(tmp_path / "x.parquet")], tmp_path / "w")
    assert [row.value for row in source.read([4999, 4096, 4095])] == [
        {"text": f"row {i}", "n": i} for i in (4999, 4096, 4095)
    ]


def test_values_in_arrow_that_python_cannot_hold_cost_only_their_row(tmp_path: Path) -> None:
    words = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    times = pa.array([0, 0, 2**62], pa.timestamp("ms"))
    pq.write_table(pa.table({"text": words, "at": times}), tmp_path / "x.parquet")
    rows = rows_of(tmp_path / "x.parquet", tmp_path)
    assert reasons(rows) == [None, "invalid UTF-8", "unreadable value"]
    assert json.loads(rows[1].text)["text"] == "\ufffd\ufffd"


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        arrow_file(folder / "data-00000-of-00001.arrow", "stream")
        write(folder / "state.json", json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
        write(folder / "dataset_info.json", "{}")
    write(tmp_path / "saved" / "dataset_dict.json", json.dumps({"splits": ["train", "test"]}))
    assert len(rows_of(tmp_path / "saved", tmp_path)) == len(rows_of(tmp_path / "saved" / "test", tmp_path)) == 5000


# ---- compressed, behind a URL ----


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


@pytest.mark.parametrize("suffix", [".gz", ".GZ", ".zst"])
@pytest.mark.parametrize(
    ("kind", "content"),
    [(".jsonl", '{"a": 1}\n{"a": 2}\n'), (".json", '[{"a": 1}, {"a": 2}]'), (".csv", "a\n1\n2\n"), (".txt", "1\n2\n")],
)
def test_compressed_files(kind: str, content: str, suffix: str, tmp_path: Path) -> None:
    pack = zstd if suffix == ".zst" else gzip.compress
    path = write(tmp_path / f"x{kind}{suffix}", pack(content.encode()))
    assert values(path, tmp_path) == values(write(tmp_path / f"y{kind}", content), tmp_path / "plain")
    assert rows_of(path, tmp_path)[0].id.startswith(f"{path}:")


def test_gzip_of_several_members(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl.gz", gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n'))
    assert values(path, tmp_path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_that_are_cut_off(suffix: str, tmp_path: Path) -> None:
    pack = zstd if suffix == ".zst" else gzip.compress
    content = pack("".join(f'{{"a": {i}}}\n' for i in range(5000)).encode())
    path = write(tmp_path / f"x.jsonl{suffix}", content[: len(content) // 2])
    assert "cannot read" in refusal(path, tmp_path)


def test_urls(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/rows/a.jsonl", b'{"a": 1}\n')
    memory.pipe("/bucket/rows/deep/b.jsonl.gz", gzip.compress(b'{"a": 2}\n'))
    memory.pipe("/bucket/rows/notes.md", b"no")
    for url in ("memory://bucket/rows", "memory://bucket/rows/**/*.jsonl*"):
        assert values(url, tmp_path) == [{"a": 1}, {"a": 2}]
    assert values("memory://bucket/rows/*.jsonl*", tmp_path) == [{"a": 1}]
    assert "no memory object fits memory://bucket/*.jsonl" in refusal("memory://bucket/*.jsonl", tmp_path)
    (row,) = rows_of("memory://bucket/rows/a.jsonl", tmp_path)
    assert row.id == "memory://bucket/rows/a.jsonl:1"
    assert "nothing is at memory://bucket/none" in refusal("memory://bucket/none", tmp_path)
    assert "cannot reach" in refusal("nowhere://bucket/none", tmp_path)


# ---- hub data sets ----


def test_a_local_folder_laid_out_like_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (
        "---\nconfigs:\n- config_name: one\n  data_files: one.jsonl\n- config_name: two\n  data_files: two.jsonl\n---\n"
    )
    write(tmp_path / "set" / "README.md", readme)
    write(tmp_path / "set" / "one.jsonl", '{"text": "1"}\n')
    write(tmp_path / "set" / "two.jsonl", '{"text": "2"}\n')
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert values(f"{tmp_path / 'set'}:two", tmp_path) == [{"text": "2"}]


def test_a_hub_id_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot be downloaded from the hub" in refusal("org/no-such-set", tmp_path)


# ---- samples and held-out rows ----


def numbered(tmp_path: Path, num_rows: int) -> Path:
    return write(tmp_path / "x.jsonl", "".join(f"{i}\n" for i in range(num_rows)))


def test_a_sample_of_a_source(tmp_path: Path) -> None:
    path = numbered(tmp_path, 50)
    (taken,) = open_sources([f"{path}#20"], tmp_path / "w", seed=1)
    (other,) = open_sources([f"{path}#20"], tmp_path / "w", seed=2)
    rows = [row.value for row in taken.read(range(20))]
    assert taken.num_rows == len(set(rows)) == 20
    assert rows != sorted(rows) and rows != [row.value for row in other.read(range(20))]


def test_a_sample_beyond_the_size_repeats_evenly(tmp_path: Path) -> None:
    path = numbered(tmp_path, 7)
    (taken,) = open_sources([f"{path}#17"], tmp_path / "w")
    rows = [row.value for row in taken.read(range(17))]
    assert sorted(rows[:7]) == sorted(rows[7:14]) == list(range(7))
    assert len(set(rows[14:])) == 3
    assert "asks for no row" in refusal(f"{path}#0", tmp_path)


def test_samples_of_folders_and_their_ids(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "d" / f"{name}.jsonl", "1\n2\n")
    (taken,) = open_sources([f"{tmp_path / 'd'}#4"], tmp_path / "w")
    ids = sorted(row.id for row in taken.read(range(4)))
    assert ids == [f"{tmp_path / 'd' / f'{name}.jsonl'}:{line}" for name in "ab" for line in (1, 2)]


def test_stores_are_light(tmp_path: Path) -> None:
    """A data task gets its plan with every window."""
    import pickle

    (source,) = open_sources([str(numbered(tmp_path, 20_000))], tmp_path / "w")
    assert len(pickle.dumps(source)) < 1000


def test_a_continued_run_copies_nothing_again(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl.gz", gzip.compress(b"1\n2\n"))
    first = open_sources([str(path)], tmp_path / "w")
    copy = tmp_path / "w" / "0-0.brought.jsonl"
    made = copy.stat().st_mtime_ns
    assert open_sources([str(path)], tmp_path / "w") == first
    assert copy.stat().st_mtime_ns == made
    copy.unlink()
    assert values(path, tmp_path) == [1, 2]
    write(path, gzip.compress(b"3\n"))
    (anew,) = open_sources([str(path)], tmp_path / "w")
    assert [row.value for row in anew.read([0])] == [3]
