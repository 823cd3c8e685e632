"""calculations.jsonl and calculations_test.jsonl from train.jsonl: each question with the calculations that answer it.

Run: python examples/gsm8k/make.py
"""

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
NUM_TEST_ROWS = 100
_CALCULATION = re.compile(r"<<(.*?)>>")


def main() -> None:
    """Write both files; the same bytes each time."""
    rows = map(json.loads, (HERE / "train.jsonl").read_text(encoding="utf-8").splitlines())
    pairs = [{"anchor": row["question"], "positive": " ".join(_CALCULATION.findall(row["answer"]))} for row in rows]
    lines = [json.dumps(pair) + "\n" for pair in pairs if pair["positive"]]
    (HERE / "calculations_test.jsonl").write_text("".join(lines[:NUM_TEST_ROWS]))
    (HERE / "calculations.jsonl").write_text("".join(lines[NUM_TEST_ROWS:]))


if __name__ == "__main__":
    main()
