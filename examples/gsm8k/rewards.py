"""A reward for the format of GSM8K's answers, an example of a custom reward."""

import re

_ENDS_WITH_ANSWER = re.compile(r"\n#### -?[\d,.]+\s*$")


def states_answer(completions: list[list[dict[str, str]]]) -> list[float]:
    """1 for a completion whose last line is #### and its answer, else 0."""
    return [float(bool(_ENDS_WITH_ANSWER.search(messages[-1]["content"]))) for messages in completions]
