"""Sources of several kinds, mixed, through the real command line."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.ray.conftest import sft


def row(number: int) -> dict[str, str]:
    return {"query": f"What is {number} + {number}?", "response": str(2 * number)}


def test_a_mix_of_compressed_lines_and_parquet(run_dir: Path, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    lines, table = tmp_path / "lines.jsonl.gz", tmp_path / "table.parquet"
    good = [json.dumps(row(number)) for number in range(60)]
    lines.write_bytes(gzip.compress("\n".join([*good[:4], "{", *good[4:]]).encode()))
    pq.write_table(pa.Table.from_pylist([row(number) for number in range(60, 90)]), table)
    sft(
        run_dir,
        *tiny,
        *("--data.dataset", str(lines), str(table), "--mix_until", "all_exhausted"),
        *("--data.mix", '{"lines": 0.7, "table": 0.3}', "--num_workers", "0", "--device", "cpu"),
        *("--num_train_epochs", "1"),
    )
    counts = json.loads((run_dir / "data" / "accounting.json").read_text())
    # 70 draws of 61 lines and 30 of 30 rows: every row comes, and nine lines twice.
    assert counts["rows seen"] == 100
    assert counts["trained"] + counts["quarantined: malformed JSON"] == 100
    (quarantined,) = (run_dir / "data" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(quarantined)["id"] == f"{lines}:5"
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["data"]["window_rows"] >= 2000
