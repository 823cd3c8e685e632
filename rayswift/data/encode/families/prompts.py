"""Rows of tasks that sample completions: a conversation without an answer -> its tokens and its record; pure.

A prompt is rendered with the generation prompt. The record is the JSON object `{"messages": [...], "columns": {...}}`
that rewards receive: the conversation and the row's other columns. An answer at the end of the row's conversation is
the column `answer`, unless the row has a column of that name. Tokens for a teacher may stand beside them: see
`distillation`.
"""

import datetime
import decimal
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayswift.data.encode.encoder import EncodedRow, Encoder, TooLong
from rayswift.data.encode.families import distillation
from rayswift.data.encode.truncation import kept
from rayswift.data.encode.turns import Document, Marking, Span, joined
from rayswift.data.rows import BadRow, Conversation, Message, PromptRow, Row, parse_row


class PromptEncoder(Encoder):
    """Encodes prompts: one document each, not trained; `max_length` is that of a prompt."""

    def documents(self, row: Row) -> list[Document]:
        """The prompt with the generation prompt, or without a chat template its contents."""
        sample = parse_row(row, "prompt", self.config.columns, self.config.system)
        assert isinstance(sample, PromptRow)
        answer = {} if sample.answer is None else {"answer": sample.answer}
        record = _record(sample.prompt.messages, {**answer, **sample.columns})
        made = [self._question(sample.prompt, record)]
        if self.config.max_answer is not None:
            distillation.refuse_long(sample, self.config.max_answer, self._bound)
            made.append(distillation.answered(sample, self._marking, self._eos, lambda: self.template, self.config))
        teachers = distillation.teacher_prompt(sample, self.config)
        return made if teachers is None else [*made, self._question(teachers)]

    def _question(self, asked: Conversation, record: str = "") -> Document:
        """A conversation with the opening of the answer, or its contents alone."""
        is_rendered = self.config.use_chat_template
        text = self._rendered(asked, generate=True) if is_rendered else joined(asked, Marking("all"), "").text
        self._refuse(text, True, len(asked.messages))
        return Document(text, (Span(0, len(text)),), record=record, framed=not is_rendered)

    def _excerpts(self, document: Document) -> list[tuple[int, str]]:
        """See `Encoder`; with room for an answer."""
        return self._bound.excerpts(
            document.text, self.config.max_length + (self.config.max_answer or 0), self.config.truncation
        )

    def _may_cut(self, whole: bool) -> bool:
        # The end holds the question and the generation prompt.
        return self.config.truncation == "left"

    def _too_long(self, num_tokens: str) -> TooLong:
        limit = self.config.max_length
        return TooLong("longer than rollout.max_prompt_length", f"{num_tokens} tokens, the limit is {limit}")

    def _all_fitted(self, made: Sequence[Document], tokens: Iterator[EncodedRow]) -> list[EncodedRow] | BadRow:
        encoded = [next(tokens) for _ in made]
        try:
            ids, cut = self._prompt_ids(made[0], encoded[0].input_ids)
            more: dict[str, Any] = {}
            if self.config.max_answer is not None:
                asked, answer = distillation.answer_ids(encoded[1], self.config.max_answer)
                more["answer_ids"] = [self._within(asked)[0].tolist(), answer.tolist()]
            if len(made) > 1 + len(more):
                more["teacher_ids"] = self._prompt_ids(made[-1], encoded[-1].input_ids)[0].tolist()
        except BadRow as bad:
            return bad
        record = made[0].record
        record = json.dumps(json.loads(record) | more) if more else record
        return [EncodedRow(ids, np.zeros(len(ids), np.bool_), cut=cut, record=record)]

    def _prompt_ids(self, document: Document, ids: NDArray[np.int32]) -> tuple[NDArray[np.int32], bool]:
        if document.framed and self._frame.behind:
            ids = ids[: -len(self._frame.behind)]  # the completion follows
        if not len(ids):
            raise BadRow("empty prompt", "it has no token")
        return self._within(ids)

    def _within(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.int32], bool]:
        """The tokens of a prompt that fit, and whether some were cut off."""
        limit = self.config.max_length
        if len(ids) <= limit:
            return ids, False
        if not self._may_cut(True):
            raise self._too_long(str(len(ids)))
        (part,) = kept(len(ids), limit, self.config.truncation)
        return ids[part], True


def _record(messages: Sequence[Message], columns: Mapping[str, Any]) -> str:
    """The record of a prompt."""
    plain = {}
    for name, value in columns.items():
        try:
            plain[name] = json.loads(json.dumps(value, default=_plain))
        except (TypeError, ValueError) as error:
            raise BadRow("column is no JSON", f"column {name}: {error}; leave it out of the rows") from error
    return json.dumps({"messages": list(messages), "columns": plain})


def _plain(value: Any) -> Any:
    """A value of Parquet that JSON does not have, as text or list."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__}")
