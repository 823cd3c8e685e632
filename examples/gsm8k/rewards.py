"""A reward for the form of GSM8K's answers, as an example of one of your own."""

import re

_ENDS_WITH_ANSWER = re.compile(r"\n#### -?[\d,.]+\s*$")


def states_answer(completions: list[list[dict[str, str]]]) -> list[float]:
    """1 for a completion whose last line is its answer behind ####, else 0."""
    return [float(bool(_ENDS_WITH_ANSWER.search(messages[-1]["content"]))) for messages in completions]
