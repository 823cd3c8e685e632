"""The reward of sums asked in words: the last number of the answer is the sum."""

import re

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def last_number(completions: list[list[dict[str, str]]], solution: list[str]) -> list[float]:
    """1 for a completion whose last number is the solution, else 0.

    Only the last number counts, so a completion that lists several candidates gains nothing.
    """
    found = [_NUMBER.findall(messages[-1]["content"]) for messages in completions]
    return [float(bool(numbers) and numbers[-1] == right) for numbers, right in zip(found, solution, strict=True)]
