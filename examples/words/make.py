"""Sums of two numbers from 1 to 20, asked in words: prompts and solutions, in train.jsonl and test.jsonl.

No sum is in both, in either order. Run: python examples/words/make.py
"""

import json
import random
from itertools import combinations_with_replacement
from pathlib import Path

HERE = Path(__file__).parent
LARGEST, NUM_TEST_PAIRS = 20, 40
QUESTIONS = (
    "What is {a} plus {b}? Answer with the number only.",
    "What is the sum of {a} and {b}? Answer with the number only.",
    "Tom has {a} apples and gets {b} more. How many apples has Tom now? Answer with the number only.",
    "Ann reads {a} pages, then {b} more. How many pages has Ann read? Answer with the number only.",
)


def rows(pairs: list[tuple[int, int]], drawn: random.Random) -> str:
    """Each sum in both orders and two of the wordings, shuffled, as jsonl."""
    lines = []
    for pair in pairs:
        for a, b in (pair, pair[::-1]):
            for question in drawn.sample(QUESTIONS, 2):
                asked = [{"role": "user", "content": question.format(a=a, b=b)}]
                lines.append(json.dumps({"prompt": asked, "solution": str(a + b)}, separators=(",", ":")) + "\n")
    drawn.shuffle(lines)
    return "".join(lines)


def main() -> None:
    """Write both files; the same bytes each time."""
    drawn = random.Random(0)
    pairs = list(combinations_with_replacement(range(1, LARGEST + 1), 2))
    drawn.shuffle(pairs)
    (HERE / "test.jsonl").write_text(rows(pairs[:NUM_TEST_PAIRS], drawn))
    (HERE / "train.jsonl").write_text(rows(pairs[NUM_TEST_PAIRS:], drawn))


if __name__ == "__main__":
    main()
