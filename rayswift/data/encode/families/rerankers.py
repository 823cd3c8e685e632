"""Pairs of a query and a document, for rerankers; pure."""

from dataclasses import replace

from rayswift.data.encode.families.texts import TextEncoder
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
        made = [] if self.config.use_chat_template else [self._part_of_pair(sample.query)]
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
            return self._part_of_pair(sequence)
        pair = [
            *query.messages[:-1],
            {"role": "query", "content": query.messages[-1]["content"]},
            {"role": "document", "content": content},
        ]
        tools = list(query.tools) if query.tools else None
        text = self.template.render(pair, tools, bool(self.config.answers), query.template_kwargs)
        self._refuse(text, True, 1)
        return self._with_closing(Document(text, (Span(0, len(text)),)), content)
