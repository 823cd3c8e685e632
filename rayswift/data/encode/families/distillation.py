"""The parts of a prompt's row for a teacher: the row's answer, and another prompt for the teacher; pure.

Their tokens go into the record of the prompt (see `prompts`): `answer_ids` [prompt, answer], and `teacher_ids`.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import EncodedRow, LeftOut
from rayswift.data.encode.template import ChatTemplate
from rayswift.data.encode.truncation import Bound
from rayswift.data.encode.turns import Document, Marking, documents, joined
from rayswift.data.rows import BadRow, Conversation, MessageLoss, PromptRow

TEACHER_PROMPT = "teacher_prompt"


def teacher_prompt(sample: PromptRow, config: EncodeConfig) -> Conversation | None:
    """The conversation with the teacher's prompt in place of the last question; None: the row has none.

    Raises:
        BadRow: it is missing but required, or it is not text.
    """
    given = sample.columns.get(TEACHER_PROMPT) if config.teacher_prompts else None
    if given is None:
        if config.teacher_prompts == "all":
            raise BadRow("no teacher_prompt", "a model that is its own teacher needs that column in each row")
        return None
    if not isinstance(given, str):
        raise BadRow("bad teacher_prompt", f"it is {type(given).__name__}, not a text")
    messages = list(sample.prompt.messages)
    last = max(place for place, message in enumerate(messages) if message["role"] == "user")
    messages[last] = {**messages[last], "content": given}
    return replace(sample.prompt, messages=tuple(messages))


def answered(
    sample: PromptRow, marking: Marking, end: str, template: Callable[[], ChatTemplate], config: EncodeConfig
) -> Document:
    """The conversation with the row's answer; only the answer is trained.

    Args:
        sample: The row.
        marking: As of the encoder.
        end: The end-of-sequence token.
        template: The chat template; called where one renders.
        config: Of the encoder.

    Raises:
        BadRow: it has no answer, or the template cannot be trained on it.
    """
    if sample.reply is None:
        raise BadRow(
            "no answer", "task gkd trains answers of rows where train.lmbda is below 1; add one, or set train.lmbda 1"
        )
    asked = sample.prompt
    whole = replace(asked, messages=(*asked.messages, sample.reply), losses=(*_untrained(asked), MessageLoss(True)))
    marking = replace(marking, loss_on="assistant")
    if not config.use_chat_template:
        return joined(whole, marking, end)
    whole = replace(whole, template_kwargs={**config.template_kwargs, **whole.template_kwargs})
    (made,) = documents(template(), whole, marking, lambda *_: None)
    return made


def refuse_long(sample: PromptRow, max_answer: int, bound: Bound) -> None:
    """Leave out an answer that is surely too long, before it is tokenised."""
    least = bound.min_tokens(sample.answer or "")
    if least > max_answer:
        raise _too_long(f"at least {least}", max_answer)


def _too_long(num_tokens: str, limit: int) -> LeftOut:
    return LeftOut("answer longer than rollout.max_completion_length", f"{num_tokens} tokens, the limit is {limit}")


def _untrained(row: Conversation) -> list[MessageLoss]:
    return [MessageLoss(False) for _ in row.messages]


def answer_ids(row: EncodedRow, max_answer: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The tokens before the answer, and those of the answer.

    Raises:
        BadRow: the answer is empty or too long.
    """
    places = np.flatnonzero(row.trained)
    if not len(places):
        raise BadRow("no trainable token", "the answer is empty")
    begin, end = int(places[0]), int(places[-1]) + 1
    if end - begin > max_answer:
        raise _too_long(str(end - begin), max_answer)
    return row.input_ids[:begin], row.input_ids[begin:end]
