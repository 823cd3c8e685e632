"""Rows of tasks that sample completions: a conversation without an answer -> its tokens and its record; pure.

A prompt is rendered with the generation prompt. The record is the JSON object `{"messages": [...], "columns": {...}}`
that rewards receive: the conversation and the row's other columns. An answer at the end of the row's conversation is
the column `answer`, unless the row has a column of that name.
"""

import datetime
import decimal
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rayswift.data.encode.encoder import EncodedRow, Encoder, TooLong
from rayswift.data.encode.truncation import kept
from rayswift.data.encode.turns import Document, Marking, Span, joined
from rayswift.data.rows import BadRow, Message, PromptRow, Row, parse_row


class PromptEncoder(Encoder):
    """Encodes prompts: one document each, not trained; `max_length` is that of a prompt."""

    def documents(self, row: Row) -> list[Document]:
        """The prompt with the generation prompt, or without a chat template its contents."""
        sample = parse_row(row, "prompt", self.config.columns, self.config.system)
        assert isinstance(sample, PromptRow)
        asked = sample.prompt
        is_rendered = self.config.use_chat_template
        text = self._rendered(asked, generate=True) if is_rendered else joined(asked, Marking("all"), "").text
        self._refuse(text, True, len(asked.messages))
        answer = {} if sample.answer is None else {"answer": sample.answer}
        record = _record(asked.messages, {**answer, **sample.columns})
        return [Document(text, (Span(0, len(text)),), record=record, framed=not is_rendered)]

    def _may_cut(self, whole: bool) -> bool:
        # The end holds the question and the generation prompt.
        return self.config.truncation == "left"

    def _too_long(self, num_tokens: str) -> TooLong:
        limit = self.config.max_length
        return TooLong("longer than rollout.max_prompt_length", f"{num_tokens} tokens, the limit is {limit}")

    def _all_fitted(self, made: Sequence[Document], tokens: Iterator[EncodedRow]) -> list[EncodedRow] | BadRow:
        (document,) = made
        ids, limit = next(tokens).input_ids, self.config.max_length
        if document.framed and self._frame.behind:
            ids = ids[: -len(self._frame.behind)]  # the completion follows
        if not len(ids):
            return BadRow("empty prompt", "it has no token")
        cut = len(ids) > limit
        if cut and not self._may_cut(True):
            return self._too_long(str(len(ids)))
        if cut:
            (part,) = kept(len(ids), limit, self.config.truncation)
            ids = ids[part]
        return [EncodedRow(ids, np.zeros(len(ids), np.bool_), cut=cut, record=document.record)]


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
