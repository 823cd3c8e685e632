"""Malformed files of every kind: a run over them ends with a correct accounting, or with one clear error.

Never a traceback, a lost row or a hang. What is quarantined has row id, reason and the row, in a file of valid JSON.
"""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.feed.feed import Feed
from rayswift.data.sequence.global_batches import Position
from rayswift.data.sequence.windows import RowSet, WindowPlan
from rayswift.data.sources import open_sources, store
from rayswift.log import UserError
from tests.support.streams import MAX_LENGTH, TINY, feed_plan, in_process

GOOD = b'{"text": "a b"}'
NASTY = [
    b'{"text": "\xff\xfe"}',
    b'{"text": "\xc3"}',
    b"\xef\xbb\xbf" + GOOD,
    GOOD + b"\r",
    b'{"text": "\\ud83d"}',
    b'{"\\ud83d": 1}',
    b'{"text": "\x00\x01"}',
    b'{"text": "\\u0000"}',
    b'{"text": %s}' % (b"7" * 5000),
    b'{"text": 1e999}',
    b'{"text": NaN}',
    b'{"text": "a", "text": "b"}',
    b'{"text": null}',
    b'{"text": {"a": [{"b": null}]}}',
    b'{"messages": [{"role": "user", "content": {"x": "\\udc00"}}]}',
    b'{"messages": [[], null, 3]}',
    b'{"messages": "none"}',
    b'{"query": ["a"], "response": {"b": 1}}',
    b'{"": ""}',
    b"[" * 3000,
    b"{" * 20 + b'"',
    b"[1, 2]",
    b"null",
    b'"text"',
    b"",
    b" \t ",
    b"}",
    b"],",
    b'"',
    b"\\",
    b"\xff\xfe{\x00",
    b'a,"b\nc",d',
    b'"open',
]
LINES = st.lists(st.one_of(st.just(GOOD), st.sampled_from(NASTY), st.binary(max_size=12)), max_size=12)
KINDS = [".jsonl", ".json", ".csv", ".tsv", ".txt"]


def train(path: Path, folder: Path) -> Counter[str] | None:
    """The accounting of a run over one file, or None if it ended with an error of the user's; checks both."""
    try:
        (source,) = open_sources([str(path)], folder / "work")
        rows = source.read(range(source.num_rows))
        assert len({row.id for row in rows}) == len(rows) == source.num_rows
        assert all(row.id.startswith(f"{path}:") for row in rows)
        windows = WindowPlan(RowSet((source,), 1), EncodeConfig(str(TINY), "hash", MAX_LENGTH), True, 5)
        feed = Feed(windows, None, feed_plan(windows, 2), str(folder / "data"), in_process)
        feed.begin(1, Position())
        step, last, counts = 0, False, {}
        while not last:
            served = feed.next(1, step, 0, 1, timeout_s=20)
            step, last, counts = step + 1, served.last, served.position.counts
    except UserError as error:
        assert str(error).strip() and "Traceback" not in str(error)
        if "no row is left to train" not in str(error):
            assert str(path) in str(error)
            return None
        counts = _table_of(str(error))
    quarantined = _quarantine(folder / "data" / "quarantine.jsonl")
    assert len(quarantined) == sum(count for name, count in counts.items() if name.startswith("quarantined"))
    assert sum(counts.values()) == source.num_rows
    return Counter(counts)


def _table_of(message: str) -> dict[str, int]:
    lines = [line.rsplit(maxsplit=1) for line in message.splitlines()[2:]]
    return {name.strip(): int(count.replace(",", "")) for name, count in lines}


def _quarantine(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    rows = [json.loads(line) for line in file.read_bytes().decode("utf-8").split("\n")[:-1]]
    assert all(row["id"] and row["reason"] and isinstance(row["row"], str) for row in rows)
    return rows


@settings(max_examples=80)
@given(LINES, st.sampled_from(KINDS), st.sampled_from([b"\n", b"\r\n", b",\n"]), st.booleans(), st.booleans())
@example([GOOD, *NASTY], ".jsonl", b"\n", False, False)
@example([GOOD, *NASTY], ".json", b",\n", True, False)
@example([], ".jsonl", b"\n", False, True)
def test_text_files(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[bytes],
    kind: str,
    between: bytes,
    in_array: bool,
    with_bom: bool,
) -> None:
    folder = tmp_path_factory.mktemp("f")
    content = between.join(rows)
    content = b"[" + content + b"]" if in_array else content
    path = folder / f"rows{kind}"
    path.write_bytes(b"\xef\xbb\xbf" * with_bom + content)
    counts = train(path, folder)
    if kind == ".jsonl" and not in_array and between == b"\n" and counts:
        whole = b"\n".join(rows).split(b"\n")
        assert counts["trained"] >= whole.count(GOOD)


@settings(max_examples=40)
@given(st.binary(max_size=200), st.sampled_from([*KINDS, ".parquet", ".arrow", ".jsonl.gz", ".json.zst"]))
def test_bytes_without_meaning(tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str) -> None:
    folder = tmp_path_factory.mktemp("f")
    path = folder / f"rows{kind}"
    path.write_bytes(content)
    train(path, folder)


def _whole(kind: str, folder: Path) -> bytes:
    lines = b"".join(b'{"text": "row %d"}\n' % i for i in range(300))
    if kind == ".jsonl.gz":
        return gzip.compress(lines)
    if kind == ".jsonl.zst":
        return bytes(pa.Codec("zstd").compress(lines, asbytes=True))
    table = pa.table({"text": [f"row {i}" for i in range(300)], "nested": [[{"a": i}] for i in range(300)]})
    path = folder / "whole"
    if kind == ".parquet":
        pq.write_table(table, path, row_group_size=100)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    return path.read_bytes()


@settings(max_examples=40)
@given(st.sampled_from([".jsonl.gz", ".jsonl.zst", ".parquet", ".arrow"]), st.floats(0, 1))
@example(".jsonl.gz", 1.0)
@example(".parquet", 1.0)
@example(".arrow", 0.999)
def test_files_that_are_cut_off(tmp_path_factory: pytest.TempPathFactory, kind: str, part: float) -> None:
    folder = tmp_path_factory.mktemp("f")
    content = _whole(kind, folder)
    path = folder / f"rows{kind}"
    path.write_bytes(content[: round(len(content) * part)])
    counts = train(path, folder)
    if part == 1:
        assert counts == Counter({"trained": 300})
    else:
        assert counts is None or counts["trained"] == 300


@settings(max_examples=40)
@given(st.sampled_from([".jsonl.gz", ".jsonl.zst", ".parquet"]), st.floats(0, 0.999), st.integers(1, 255))
def test_files_with_a_wrong_byte(
    tmp_path_factory: pytest.TempPathFactory, kind: str, where: float, change: int
) -> None:
    folder = tmp_path_factory.mktemp("f")
    content = bytearray(_whole(kind, folder))
    content[int(len(content) * where)] ^= change
    path = folder / f"rows{kind}"
    path.write_bytes(bytes(content))
    train(path, folder)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".txt"])
def test_a_line_of_100_mb(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{kind}"
    huge = b'{"text": "' + b"x y " * 25_000_000 + b'"}'
    path.write_bytes(b"[" + huge + b"," + GOOD + b"]" if kind == ".json" else GOOD + b"\n" + huge + b"\n" + GOOD)
    del huge
    counts = train(path, tmp_path)
    good = 1 if kind == ".json" else 2
    assert counts == {"trained": good, f"quarantined: row over {store.MAX_ROW_BYTES >> 20} MiB": 1}


def test_a_csv_field_of_20_mb(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text\ngood\n" + b"x y " * 5_000_000 + b"\ngood\n")
    assert train(path, tmp_path) is None


def test_a_parquet_value_of_20_mb(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "x y " * 5_000_000, "b"]}), tmp_path / "rows.parquet")
    counts = train(tmp_path / "rows.parquet", tmp_path)
    assert counts == {"trained": 2, f"quarantined: row over {store.MAX_ROW_BYTES >> 20} MiB": 1}
