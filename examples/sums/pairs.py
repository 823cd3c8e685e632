"""Pairs for a reward model of sums: beside the right answer, one with a wrong digit."""

import random
from typing import Any


def with_wrong_answer(row: dict[str, Any]) -> dict[str, Any]:
    """Add the rejected answer to a row; the same one each time."""
    question, answer = (message["content"] for message in row["messages"])
    rng = random.Random(question)
    digits = list(answer)
    place = rng.randrange(len(digits))
    digits[place] = rng.choice([digit for digit in "0123456789" if digit != digits[place]])
    return {**row, "rejected_response": "".join(digits)}
