"""Rows of tasks whose loss compares whole texts: the texts of a row, its members, in a fixed order; pure.

A row of a batch is one raw row's members end to end: chosen and rejected for preferences. A raw row with several
rejected answers makes several such rows, each against the same chosen one. A classified text is its row's
only member, and so is a conversation whose answer is wanted or not; its partner comes from its global batch (see
`kl_partners`). A row for an embedding or a reranker holds all texts of its raw row.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayswift.config.schema import LossOn
from rayswift.data.encode.encoder import EncodeConfig, EncodedRow, Encoder, TooLong
from rayswift.data.encode.prompts import PromptEncoder
from rayswift.data.encode.truncation import kept, longest_first
from rayswift.data.encode.turns import Document, Marking, Numbers, Span, documents, joined
from rayswift.data.rows import (
    BadRow,
    ClassificationRow,
    Conversation,
    EmbeddingRow,
    KtoRow,
    MessageLoss,
    PreferenceRow,
    RerankerRow,
    Row,
    parse_row,
)


class MemberEncoder(Encoder):
    """Encodes rows whose members must all be there: one document each, never split, none without a trained token."""

    def _may_cut(self, whole: bool) -> bool:
        return self.config.truncation in ("left", "right")

    def _all_fitted(self, made: Sequence[Document], tokens: Iterator[EncodedRow]) -> list[EncodedRow] | BadRow:
        encoded = [next(tokens) for _ in made]
        try:
            fitted = [self._fitted(document, row) for document, row in zip(made, encoded, strict=True)]
        except TooLong as too_long:
            return too_long
        if not all(fitted):
            return BadRow("no trainable token", "a member of the row has no trained token within data.max_length")
        rows = [replace(row, numbers=document.numbers) for document, (row,) in zip(made, fitted, strict=True)]
        cut = any(row.cut for row in rows)
        # The first stands for the raw row in the accounting.
        return [replace(row, cut=cut and position == 0) for position, row in enumerate(rows)]

    def _judged(self, row: Conversation, loss_on: LossOn) -> Document:
        """A conversation as one text, of which a loss judges the turns that `loss_on` names.

        Raises:
            BadRow: a message has a weight, or no text holds all of these turns.
        """
        if any(loss.weight != 1 for loss in row.losses):
            raise BadRow("bad loss", f"{self.config.family} rows count whole answers: messages take no loss_scale")
        marking = replace(self._marking, loss_on=loss_on)
        if not self.config.use_chat_template:
            made = [joined(row, marking, self._eos)]
            self._refuse(made[0].text, made[0].whole, 1)
        else:
            made = documents(self.template, self._with_kwargs(row), marking, self._refuse)
        if len(made) > 1:
            raise BadRow(
                "chat template rewrites earlier turns",
                "so the answers of this row are not in one text; set data.loss_on last_turn, or data.keep_history true",
            )
        return made[0]


class PreferenceEncoder(MemberEncoder):
    """Encodes preferences: trained is what follows the common beginning of the two conversations."""

    def documents(self, row: Row) -> list[Document]:
        """Chosen and rejected, chosen and the next rejected, ...; see `Encoder.documents`."""
        sample = parse_row(row, "preference", self.config.columns, self.config.system)
        assert isinstance(sample, PreferenceRow)
        numbers = () if sample.margin is None else (("margin", sample.margin),)
        made: list[Document] = []
        for rejected in sample.rejected:
            pairs = zip(sample.chosen.messages, rejected.messages, strict=False)
            begin = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
            both = [self._answer(member, begin) for member in (sample.chosen, rejected)]
            if both[0].text == both[1].text:
                raise BadRow("no preference", "chosen and rejected are the same text once rendered")
            made += [replace(both[0], numbers=numbers), both[1]]
        return made

    def _answer(self, member: Conversation, begin: int) -> Document:
        """A conversation of which the assistant's turns from message `begin` on are trained."""
        losses = [loss if i >= begin else MessageLoss(False) for i, loss in enumerate(member.losses)]
        return self._judged(replace(member, losses=tuple(losses)), self.config.loss_on)

    def _all_fitted(self, made: Sequence[Document], tokens: Iterator[EncodedRow]) -> list[EncodedRow] | BadRow:
        rows = super()._all_fitted(made, tokens)
        if isinstance(rows, list):
            for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
                if chosen.input_ids.tobytes() == rejected.input_ids.tobytes():
                    return BadRow("no preference", "chosen and rejected are the same tokens within data.max_length")
        return rows


class KtoEncoder(MemberEncoder):
    """Encodes conversations whose last answer, which alone is trained, is wanted or not: `label` is 1 or 0."""

    def documents(self, row: Row) -> list[Document]:
        """The conversation, or the two of a pair; see `Encoder.documents`."""
        sample = parse_row(row, "kto", self.config.columns, self.config.system)
        assert isinstance(sample, KtoRow)
        return [
            replace(self._judged(conversation, "last_turn"), numbers=(("label", float(label)),))
            for conversation, label in sample.judged
        ]


class TextEncoder(MemberEncoder):
    """Encodes texts that are read as a whole, where nothing predicts a token.

    A text is what the tokenizer makes of it, [CLS] and [SEP] or BOS around it; or a conversation as the chat template
    renders it, which writes these itself. A cut leaves both: what is around a text, and what the template writes behind
    its last content, where the last token's state is read.
    """

    def _text(self, member: Conversation) -> Document:
        """One text.

        Raises:
            BadRow: it is empty.
        """
        if self.config.use_chat_template:
            document = self._with_tail(Document(self._rendered(member), ()), member.messages[-1]["content"])
        else:
            document = joined(member, _WHOLE, "")
        if not document.text:
            raise BadRow("empty text", "a text of the row has no characters")
        self._refuse(document.text, True, 1)
        return replace(document, spans=(Span(0, len(document.text)),))

    @staticmethod
    def _with_tail(document: Document, content: str) -> Document:
        """A rendered text that knows what the template writes behind its last content."""
        at = document.text.rfind(content.rstrip())
        return replace(document, tail=document.text[at + len(content.rstrip()) :] if at >= 0 else "")

    def _fitted(self, document: Document, row: EncodedRow) -> list[EncodedRow]:
        row, limit = replace(row, trained=np.ones(len(row.trained), np.bool_)), self.config.max_length
        if len(row.input_ids) <= limit:
            return [row] if len(row.input_ids) else []
        before = len(self._frame.before) if document.framed else 0
        tail = self._frame.behind if document.framed else self._tail(document)
        if not self._may_cut(True) or limit <= before + len(tail):
            raise self._too_long(str(len(row.input_ids)))
        # Of a text that is not whole, what is behind it need not be there.
        end = len(row.input_ids) - (len(tail) if document.framed else 0)
        (inside,) = kept(end - before, limit - before - len(tail), self.config.truncation)
        ids = np.concatenate([row.input_ids[:before], row.input_ids[before:end][inside], np.asarray(tail, np.int32)])
        return [EncodedRow(ids, np.ones(len(ids), np.bool_), cut=True)]

    def _tail(self, document: Document) -> tuple[int, ...]:
        """Tokens to keep of the end of a rendered text that loses its right end; as sentence-transformers does it."""
        if self.config.truncation != "right" or not document.tail:
            return ()
        return tuple(self._tokenizer.encode(document.tail, add_special_tokens=False).ids)


class ClassificationEncoder(TextEncoder):
    """Encodes texts with a class, classes or values: `class` for one class, else `value` for each output."""

    def documents(self, row: Row) -> list[Document]:
        """The one text; see `TextEncoder`."""
        sample = parse_row(row, "classification", self.config.columns, self.config.system)
        assert isinstance(sample, ClassificationRow)
        return [replace(self._text(sample.conversation), numbers=self._label(sample.label))]

    def _numbers(self, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Labels with the number of a class for its name.

        Raises:
            BadRow: it is the name of none.
        """
        names = self.config.label_names
        for one in given:
            if isinstance(one, str) and one not in names:
                known = f"the classes are {', '.join(names)[:400]}" if names else "the classes are numbers"
                raise BadRow("bad label", f"label is {one[:40]!r}; {known}; see model.label_names")
        return tuple(names.index(one) if isinstance(one, str) else one for one in given)

    def _label(self, label: Any) -> Numbers:
        """The label as its loss takes it.

        Raises:
            BadRow: it is none of the model's.
        """
        given = self._numbers(label if isinstance(label, tuple) else (label,))
        num_labels, kind = self.config.num_labels or 1, self.config.problem_type
        if kind == _MULTI and _are_marks(given, num_labels):
            return tuple(("value", float(mark)) for mark in given)
        if kind == "regression":
            if len(given) != num_labels:
                raise BadRow("bad label", f"{len(given)} values, model.num_labels is {num_labels}")
            return tuple(("value", float(value)) for value in given)
        if not all(isinstance(one, int) and 0 <= one < num_labels for one in given):
            raise BadRow(
                "bad label", f"label is {label!r}; with model.num_labels {num_labels} it is 0 to {num_labels - 1}"
            )
        if kind == _MULTI:
            if len(set(given)) < len(given):
                raise BadRow("bad label", f"label is {label!r}: a class twice; write marks as decimals (1.0, 0.0)")
            return tuple(("value", float(one in given)) for one in range(num_labels))
        if len(given) != 1:
            raise BadRow("bad label", f"{len(given)} labels; for several set model.problem_type to {_MULTI}")
        return (("class", float(given[0])),)


def _are_marks(given: tuple[Any, ...], num_labels: int) -> bool:
    """Whether a label has a mark, 0 or 1, for each class; of two classes, [0, 1] may as well be their numbers."""
    if len(given) != num_labels or not all(one in (0, 1) for one in given):
        return False
    return num_labels > 2 or any(isinstance(one, float) for one in given)


class EmbeddingEncoder(TextEncoder):
    """Encodes an anchor, its positive and its negatives, each a text of its own; the row's `label` where its loss has
    one. A text is what a `SentenceTransformer` makes of it."""

    def documents(self, row: Row) -> list[Document]:
        """Anchor, positive, negatives; see `Encoder.documents`."""
        sample = parse_row(row, "embedding", self.config.columns, self.config.system)
        assert isinstance(sample, EmbeddingRow)
        if len(sample.positives) != 1:
            raise BadRow("several positives", f"{len(sample.positives)} where one is asked; make a row of each")
        numbers = _similarity(sample, self.config.loss or "infonce")
        anchor, config = sample.anchor, self.config
        first = anchor.messages[0]
        if not config.pools_prompt and first["role"] == "system" and first["content"] != config.system:
            raise BadRow("prompt of its own", "the model pools all but its prompt, and knows none but its own")
        documents = [_prompted(member, config.document_prompt) for member in (*sample.positives, *sample.negatives)]
        made = [self._text(member) for member in (anchor, *documents)]
        return [replace(made[0], numbers=numbers), *made[1:]]


def _prompted(member: Conversation, prompt: str) -> Conversation:
    """A text with a prompt before it."""
    if not prompt or member.messages[0]["role"] == "system":
        return member
    messages = ({"role": "system", "content": prompt}, *member.messages)
    return replace(member, messages=messages, losses=(MessageLoss(), *member.losses))


def _similarity(sample: EmbeddingRow, loss: str) -> Numbers:
    """The label as the loss takes it.

    Raises:
        BadRow: the loss wants another, or takes no negatives.
    """
    label = sample.label
    if loss == "infonce":
        if label not in (None, 1.0):
            raise BadRow("bad label", f"label is {label}; infonce takes every positive as one: leave such rows out")
        return ()
    if sample.negatives:
        raise BadRow("negatives", f"{loss} takes pairs with a label; make a row of each negative")
    if label is None:
        raise BadRow("bad label", f"no label, which {loss} needs")
    if loss == "cosine_similarity" and not -1 <= label <= 1:
        raise BadRow("bad label", f"label is {label}; a cosine similarity is -1 to 1")
    if loss != "cosine_similarity" and label not in (0.0, 1.0):
        raise BadRow("bad label", f"label is {label}; for {loss} it is 1 (alike) or 0")
    return (("label", label),)


class RerankerEncoder(TextEncoder):
    """Encodes a query with each of its documents, positives first; `label` 1 or 0 for each.

    The last message of the query and a document are rendered as messages of roles `query` and `document`, as a
    `CrossEncoder` does; see `reranker_template`. Without a chat template they are what the tokenizer makes of the two
    texts; `second` is where the document begins, if it has a token type of its own.
    """

    def _may_cut(self, whole: bool) -> bool:
        return not self.config.answers and super()._may_cut(whole)

    def _excerpts(self, text: str) -> list[tuple[int, str]]:
        # Which of two texts is the longer one, and loses tokens first, only whole texts tell.
        return super()._excerpts(text) if self.config.use_chat_template else [(0, text)]

    def documents(self, row: Row) -> list[Document]:
        """Query and positive, query and next positive, ..., query and negative, ...; see `Encoder.documents`.

        Without a chat template the query, then the documents.
        """
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
        for label, members in ((1.0, sample.positives), (0.0, sample.negatives)):
            for member in members:
                if len(member.messages) != 1:
                    raise BadRow("bad document", f"a document is one message, this has {len(member.messages)}")
                made.append(replace(self._judged_by(sample.query, member), numbers=(("label", label),)))
        return made

    def _judged_by(self, query: Conversation, member: Conversation) -> Document:
        """A document, with its query if the chat template renders both."""
        content = member.messages[0]["content"]
        if not self.config.use_chat_template:
            return replace(self._text(member), framed=False)
        pair = [
            *query.messages[:-1],
            {"role": "query", "content": query.messages[-1]["content"]},
            {"role": "document", "content": content},
        ]
        tools = list(query.tools) if query.tools else None
        text = self.template.render(pair, tools, bool(self.config.answers), query.template_kwargs)
        self._refuse(text, True, 1)
        return self._with_tail(Document(text, (Span(0, len(text)),)), content)

    def _all_fitted(self, made: Sequence[Document], tokens: Iterator[EncodedRow]) -> list[EncodedRow] | BadRow:
        if self.config.use_chat_template:
            return super()._all_fitted(made, tokens)
        query, *members = [next(tokens).input_ids for _ in made]
        if not len(query) or not all(map(len, members)):
            return BadRow("no trainable token", "the tokenizer leaves nothing of a text of the row")
        try:
            pairs = [self._pair(query, member) for member in members]
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


_MULTI = "multi_label_classification"
_WHOLE = Marking("all")
_ENCODERS: dict[str, type[Encoder]] = {
    "causal": Encoder,
    "preference": PreferenceEncoder,
    "kto": KtoEncoder,
    "classification": ClassificationEncoder,
    "prompt": PromptEncoder,
    "embedding": EmbeddingEncoder,
    "reranker": RerankerEncoder,
}


def encoder_of(config: EncodeConfig) -> Encoder:
    """The encoder of a family of rows."""
    return _ENCODERS[config.family](config)


@cache
def cached_encoder(config_json: str) -> Encoder:
    """The process's encoder for a config given as JSON: a data task encodes many windows with one."""
    return encoder_of(EncodeConfig(**json.loads(config_json)))
