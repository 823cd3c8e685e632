"""Pairs of a query and a document, for rerankers; pure."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rayswift.data.encode.encoder import EncodedRow, TooLong
from rayswift.data.encode.families.texts import TextEncoder
from rayswift.data.encode.truncation import kept, longest_first
from rayswift.data.encode.turns import Document, Span
from rayswift.data.rows import BadRow, Conversation, RerankerRow, Row, parse_row


class RerankerEncoder(TextEncoder):
    """Encodes a query with each of its documents, positives first, each with a number `label`, 1 or 0.

    The chat template renders the query's last message in role `query` and the document in role `document`, as for a
    `CrossEncoder`. Without a chat template the tokenizer joins the two texts; the number `second` is the first token of
    the document, if it has a token type of its own.
    """

    def _may_cut(self, whole: bool) -> bool:
        return not self.config.answers and super()._may_cut(whole)

    def _excerpts(self, text: str) -> list[tuple[int, str]]:
        # The longer of two texts loses tokens first, so both are tokenised as a whole.
        return super()._excerpts(text) if self.config.use_chat_template else [(0, text)]

    def documents(self, row: Row) -> list[Document]:
        """The query with each positive, then with each negative; without a chat template the query, then each text."""
        sample = parse_row(row, "reranker", self.config.columns, self.config.system)
        assert isinstance(sample, RerankerRow)
        if self.config.loss == "listwise" and not (sample.positives and sample.negatives):
            lacks = "negative" if sample.positives else "positive"
            raise BadRow(f"no {lacks}", "a list needs documents that fit the query and documents that do not")
        *before, query = sample.query.messages
        roles = {message["role"] for message in before}
        if query["role"] != "user" or (self.config.answers and roles - {"system"}):
            raise BadRow("bad query", "a query is one message of the user, behind a system prompt at most")
        made = [] if self.config.use_chat_template else [replace(self._text(sample.query), framed=False)]
        for label, sequences in ((1.0, sample.positives), (0.0, sample.negatives)):
            for sequence in sequences:
                if len(sequence.messages) != 1:
                    raise BadRow("bad document", f"a document is one message, this has {len(sequence.messages)}")
                made.append(replace(self._judged_by(sample.query, sequence), numbers=(("label", label),)))
        return made

    def _judged_by(self, query: Conversation, sequence: Conversation) -> Document:
        """A document, together with its query if the chat template renders both."""
        content = sequence.messages[0]["content"]
        if not self.config.use_chat_template:
            return replace(self._text(sequence), framed=False)
        pair = [
            *query.messages[:-1],
            {"role": "query", "content": query.messages[-1]["content"]},
            {"role": "document", "content": content},
        ]
        tools = list(query.tools) if query.tools else None
        text = self.template.render(pair, tools, bool(self.config.answers), query.template_kwargs)
        self._refuse(text, True, 1)
        return self._with_closing(Document(text, (Span(0, len(text)),)), content)

    def _all_fitted(self, made: Sequence[Document], tokens: Iterator[EncodedRow]) -> list[EncodedRow] | BadRow:
        if self.config.use_chat_template:
            return super()._all_fitted(made, tokens)
        query, *sequences = [next(tokens).input_ids for _ in made]
        if not len(query) or not all(map(len, sequences)):
            return BadRow("no trainable token", "the tokenizer leaves nothing of a text of the row")
        try:
            pairs = [self._pair(query, sequence) for sequence in sequences]
        except TooLong as too_long:
            return too_long
        cut = any(pair.cut for pair in pairs)
        return [
            replace(pair, numbers=document.numbers + pair.numbers, cut=cut and position == 0)
            for position, (pair, document) in enumerate(zip(pairs, made[1:], strict=True))
        ]

    def _pair(self, query: NDArray[np.int32], document: NDArray[np.int32]) -> EncodedRow:
        """The tokens of a pair.

        Raises:
            TooLong: it is longer than `max_length`, and not to be cut.
        """
        frame, limit = self._frame, self.config.max_length
        room, whole = limit - len(frame) - len(frame.between), len(query) + len(document)
        if whole > room:
            if not self._may_cut(True) or room < 2:
                raise self._too_long(str(whole + limit - room))
            for_query, for_document = longest_first(len(query), len(document), room)
            (of_query,) = kept(len(query), for_query, self.config.truncation)
            (of_document,) = kept(len(document), for_document, self.config.truncation)
            query, document = query[of_query], document[of_document]
        ids = np.concatenate(
            [np.asarray(part, np.int32) for part in (frame.before, query, frame.between, document, frame.behind)]
        )
        begin = len(frame.before) + len(query) + len(frame.between)
        second = (("second", float(begin)),) if frame.second_type else ()
        return EncodedRow(ids, np.ones(len(ids), np.bool_), cut=whole > room, numbers=second)
