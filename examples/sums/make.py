"""All 10,000 sums of two numbers from 0 to 99 as chat rows, split once into train.jsonl and test.jsonl;
and 2,000 of them as texts with a class, classes.jsonl: whether the sum has three digits.

Run: python examples/sums/make.py
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
NUM_TEST_ROWS, NUM_CLASS_ROWS = 500, 2000


def chat_row(a: int, b: int) -> str:
    """One jsonl line: the sum as the user's question, its value as the assistant's answer."""
    question, answer = {"role": "user", "content": f"{a}+{b}="}, {"role": "assistant", "content": str(a + b)}
    return json.dumps({"messages": [question, answer]}, separators=(",", ":")) + "\n"


def class_row(chat: str) -> str:
    """The same sum as a text and its class."""
    question, answer = json.loads(chat)["messages"]
    return json.dumps({"text": question["content"], "label": int(len(answer["content"]) == 3)}) + "\n"


def main() -> None:
    """Write all files; the same bytes each time."""
    rows = [chat_row(a, b) for a in range(100) for b in range(100)]
    random.Random(0).shuffle(rows)
    (HERE / "test.jsonl").write_text("".join(rows[:NUM_TEST_ROWS]))
    (HERE / "train.jsonl").write_text("".join(rows[NUM_TEST_ROWS:]))
    (HERE / "classes.jsonl").write_text("".join(map(class_row, rows[-NUM_CLASS_ROWS:])))


if __name__ == "__main__":
    main()
