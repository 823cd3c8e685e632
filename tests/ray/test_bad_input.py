"""Bad input through the real command line: one message that names field or row and what to do; the exit code."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayswift.run import checkpoint
from tests.html_page import Page
from tests.ray.conftest import ROOT, curve, sft, start

# Far above the few seconds that a refusal takes; starting Ray and training would not fit.
REFUSED_WITHIN_S = 30
SHORT = ("--num_workers", "0", "--device", "cpu", "--per_device_train_batch_size", "2", "--packing", "false")


def good(number: int) -> dict[str, Any]:
    return {"query": f"What is {number} + {number}?", "response": str(2 * number)}


def write_rows(path: Path, rows: list[Any]) -> str:
    """A jsonl file; a row that is text is written as it stands."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


# ---- refused before any work: exit code 2, no Ray ----


def _unknown_key(folder: Path) -> list[str]:
    (folder / "run.yaml").write_text("data: {max_lenght: 128}\n")
    return ["--config", str(folder / "run.yaml")]


def _rows(*rows: Any) -> Callable[[Path], list[str]]:
    return lambda folder: ["--data.dataset", write_rows(folder / "rows.jsonl", list(rows))]


def _flags(*flags: str) -> Callable[[Path], list[str]]:
    return lambda folder: list(flags)


def _below_a_file(folder: Path) -> list[str]:
    (folder / "run").write_text("a regular file where the run folder should be")
    return []


REFUSED: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    "unknown flag": (
        _flags("--learning_rat", "1"),
        ["--learning_rat is unknown", "did you mean --train.learning_rate?"],
    ),
    "unknown key": (_unknown_key, ["data.max_lenght is unknown", "did you mean data.max_length?"]),
    "wrong type": (_flags("--max_length", "many"), ["data.max_length = 'many'", "valid integer"]),
    "missing file": (
        _flags("--data.dataset", "nowhere/rows.jsonl"),
        ["data.dataset: no file or folder nowhere/rows.jsonl", "check the path"],
    ),
    "empty file": (_rows(), ["data.dataset: ", "rows.jsonl is empty"]),
    "blank lines only": (_rows("", "  "), ["data.dataset: ", "rows.jsonl holds no row, only blank lines"]),
    "no known columns": (
        _rows({"frage": "q", "antwort": "a"}, {"frage": "r", "antwort": "b"}),
        ["2 x no known columns: columns are antwort, frage", "wanted: messages; ", "query", "data.columns"],
    ),
    "nothing to train": (
        _rows({"messages": [{"role": "user", "content": "q"}]}),
        ["1 x no trainable token", "no assistant turn to train"],
    ),
    "all too long": (
        _flags("--max_length", "4"),
        ["none of the first 64 rows can be trained", "longer than data.max_length", "the limit is 4"],
    ),
    "no model": (_flags("--model", "nowhere/model"), ["model.path = 'nowhere/model' is no folder here"]),
    "no weights": (
        _flags("--random_init", "false"),
        ["model.path = 'examples/tiny' holds no weights", "model.random_init"],
    ),
    "more workers than cores": (
        _flags("--num_workers", "4096", "--device", "cpu"),
        ["cluster.num_workers = 4096 is more than the", "lower it"],
    ),
    "no GPU": (_flags("--device", "cuda"), ["on cuda needs as many GPUs; this machine shows 0", "cluster.device cpu"]),
    "callback that cannot be imported": (
        _flags("--train.callbacks", "no_such_module:Callback"),
        ["train.callbacks = 'no_such_module:Callback' cannot be imported: ModuleNotFoundError"],
    ),
    "unwritable run folder": (_below_a_file, ["train.output_dir = ", "cannot be written: Not a directory"]),
}


@pytest.fixture
def ray_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a Ray started by the command would keep its session."""
    folder = tmp_path / "sessions"
    folder.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    return folder


def refused(run_dir: Path, ray_sessions: Path, *flags: str) -> str:
    """Run the command; it must refuse at once, in one message, without Ray."""
    begun = time.monotonic()
    out = sft(run_dir, *flags, code=2)
    assert time.monotonic() - begun < REFUSED_WITHIN_S
    assert out.count("error:") == 1, out
    assert "Traceback" not in out
    assert not list(ray_sessions.iterdir())
    return out


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_at_once(
    case: str, tmp_path: Path, tiny: tuple[str, ...], ray_sessions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    flags, expected = REFUSED[case]
    run_dir = tmp_path / "run" / "here"
    out = refused(run_dir, ray_sessions, *tiny, *flags(tmp_path))
    for part in expected:
        assert part in out, out
    assert not (run_dir / "ray").exists()
    assert not list(run_dir.glob("checkpoint-*"))


# ---- rows ----


@pytest.fixture(scope="module")
def with_a_bad_row(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]) -> tuple[Path, str]:
    """The folder of a short run whose third line is no JSON, and its rows."""
    folder = tmp_path_factory.mktemp("bad_row")
    rows = write_rows(folder / "rows.jsonl", [good(1), good(2), '{"query": "cut', *map(good, range(3, 12))])
    sft(folder / "run", *tiny, *SHORT, "--max_steps", "2", "--data.dataset", rows)
    return folder / "run", rows


def test_a_malformed_line_is_left_out_and_named(with_a_bad_row: tuple[Path, str]) -> None:
    run_dir, rows = with_a_bad_row
    assert sorted(curve(run_dir)) == [1, 2]
    (quarantined,) = map(json.loads, (run_dir / "data" / "quarantine.jsonl").read_text().splitlines())
    assert (quarantined["id"], quarantined["reason"]) == (f"{rows}:3", "malformed JSON")
    assert quarantined["row"] == '{"query": "cut'
    accounting = json.loads((run_dir / "data" / "accounting.json").read_text())
    assert accounting["quarantined: malformed JSON"] == 1
    assert accounting["trained"] == 4
    assert accounting["rows seen"] == 5


def test_another_model_is_not_continued(
    with_a_bad_row: tuple[Path, str], tmp_path: Path, tiny: tuple[str, ...], ray_sessions: Path
) -> None:
    run_dir, rows = with_a_bad_row
    other = tmp_path / "other"
    shutil.copytree(ROOT / "examples" / "tiny", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "initializer_range": 0.5}))
    before = sorted((str(path), path.stat().st_mtime_ns) for path in run_dir.glob("checkpoint-*/**/*"))
    again = ("--max_steps", "2", "--data.dataset", rows, "--resume", "auto", "--model", str(other))
    out = refused(run_dir, ray_sessions, *tiny, *SHORT, *again)
    assert "checkpoint-2 cannot be continued" in out
    assert f"model.path: was 'examples/tiny', is '{other}'" in out
    assert "content of the model: was " in out
    assert "another --train.output_dir" in out
    assert before == sorted((str(path), path.stat().st_mtime_ns) for path in run_dir.glob("checkpoint-*/**/*"))


def test_too_many_bad_rows_end_the_run(tmp_path: Path, run_dir: Path, tiny: tuple[str, ...]) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [good(1), "{", good(2), '{"query"', good(3), good(4)])
    flags = ("--max_steps", "20", "--data.dataset", rows, "--data.max_bad_fraction", "0.1")
    # With a worker: the error comes from the feed's actor, through the worker's process.
    out = sft(run_dir, *tiny, *SHORT, *flags, "--num_workers", "1", code=1)
    assert "error: 2 of 6 rows are bad, more than data.max_bad_fraction = 0.1 allows" in out
    assert "data/quarantine.jsonl" in out
    table = {
        name.strip(): int(count)
        for name, _, count in (line.rpartition(" ") for line in out.splitlines())
        if count.isdigit()
    }
    assert table == {"rows seen": 6, "trained": 4, "quarantined: malformed JSON": 2}
    assert "Traceback" not in out
    ids = [json.loads(line)["id"] for line in (run_dir / "data" / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(ids) == [f"{rows}:2", f"{rows}:4"]
    assert json.loads((run_dir / "data" / "accounting.json").read_text()) == table
    page = Page((run_dir / "report.html").read_text(encoding="utf-8"))
    assert ("data-state", "failed") in page.attributes
    assert "quarantined: malformed JSON" in page.text
    assert "2 of 6 rows are bad" in page.text


# ---- the disk ----


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds initial weights and two checkpoints of the tiny model, not three."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=23m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        pytest.skip(f"no mount command: {error}")
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], timeout=30, check=True)


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint_before(small_disk: Path, tiny: tuple[str, ...]) -> None:
    run_dir = small_disk / "run"
    saving = ("--save_strategy", "steps", "--save_steps", "2", "--max_steps", "40")
    code, out = start("sft", run_dir, *tiny, *SHORT, *saving).wait()
    assert code == 1, out
    assert "the disk is full" in out
    assert "--resume auto" in out
    saved = checkpoint.newest(run_dir)
    assert saved is not None
    assert saved.step >= 2
    failed = run_dir / f"checkpoint-{saved.step + 2}"
    assert str(failed) in out
    assert checkpoint.read_complete(failed) is None
