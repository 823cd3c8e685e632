"""Texts for classification and embedding; pure."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayswift.data.encode.encoder import EncodedRow, TooLong
from rayswift.data.encode.families.preferences import SequencesEncoder
from rayswift.data.encode.truncation import kept, longest_first
from rayswift.data.encode.turns import Document, Marking, Numbers, Span, joined
from rayswift.data.rows import BadRow, ClassificationRow, Conversation, EmbeddingRow, MessageLoss, Row, parse_row

_MULTI = "multi_label_classification"
_WHOLE = Marking("all")


class TextEncoder(SequencesEncoder):
    """Encodes texts for models that predict no tokens.

    A text gets the tokenizer's frame, such as [CLS] and [SEP]; or the chat template renders it and writes such tokens
    itself. A text that is cut keeps the frame and what the template writes after the last content, because the model
    reads the state of the last token.

    Without a chat template the tokenizer joins the two texts of a pair; the number `second` is the first token of the
    second one, if it has a token type of its own. The documents of pairs are the first text, then each second one.
    """

    def _part_of_pair(self, sequence: Conversation) -> Document:
        """The document of one of two texts."""
        return replace(self._text(sequence), framed=False)

    def _excerpts(self, document: Document) -> list[tuple[int, str]]:
        # The longer of two texts loses tokens first, so both are tokenised as a whole.
        is_part = not document.framed and not self.config.use_chat_template
        return [(0, document.text)] if is_part else super()._excerpts(document)

    def _text(self, sequence: Conversation) -> Document:
        """The document of one text."""
        if self.config.use_chat_template:
            document = self._with_closing(Document(self._rendered(sequence), ()), sequence.messages[-1]["content"])
        else:
            document = joined(sequence, _WHOLE, "")
        if not document.text:
            raise BadRow("empty text", "a text of the row has no characters")
        self._refuse(document.text, True, 1)
        return replace(document, spans=(Span(0, len(document.text)),))

    @staticmethod
    def _with_closing(document: Document, content: str) -> Document:
        """The document with what the template writes after its last content."""
        at = document.text.rfind(content.rstrip())
        return replace(document, closing=document.text[at + len(content.rstrip()) :] if at >= 0 else "")

    def _fitted(self, document: Document, row: EncodedRow) -> list[EncodedRow]:
        row, limit = replace(row, trained=np.ones(len(row.trained), np.bool_)), self.config.max_length
        if len(row.input_ids) <= limit:
            return [row] if len(row.input_ids) else []
        before = len(self._frame.before) if document.framed else 0
        closing = self._frame.behind if document.framed else self._closing(document)
        if not self._may_cut(True) or limit <= before + len(closing):
            raise self._too_long(str(len(row.input_ids)))
        # A rendered text of which only an excerpt was tokenised may lack its closing tokens.
        end = len(row.input_ids) - (len(closing) if document.framed else 0)
        (inside,) = kept(end - before, limit - before - len(closing), self.config.truncation)
        ids = np.concatenate([row.input_ids[:before], row.input_ids[before:end][inside], np.asarray(closing, np.int32)])
        return [EncodedRow(ids, np.ones(len(ids), np.bool_), cut=True)]

    def _closing(self, document: Document) -> tuple[int, ...]:
        """The closing tokens of a rendered text that is cut at its right end; as in sentence-transformers."""
        if self.config.truncation != "right" or not document.closing:
            return ()
        return tuple(self._tokenizer.encode(document.closing, add_special_tokens=False).ids)

    def _all_fitted(self, made: Sequence[Document], tokens: Iterator[EncodedRow]) -> list[EncodedRow] | BadRow:
        if made[0].framed or self.config.use_chat_template:
            return super()._all_fitted(made, tokens)
        first, *others = [next(tokens).input_ids for _ in made]
        if not len(first) or not all(map(len, others)):
            return BadRow("no trainable token", "the tokenizer leaves nothing of a text of the row")
        try:
            pairs = [self._pair(first, second) for second in others]
        except TooLong as too_long:
            return too_long
        cut = any(pair.cut for pair in pairs)
        return [
            replace(pair, numbers=document.numbers + pair.numbers, cut=cut and position == 0)
            for position, (pair, document) in enumerate(zip(pairs, made[1:], strict=True))
        ]

    def _pair(self, first: NDArray[np.int32], second: NDArray[np.int32]) -> EncodedRow:
        """The tokens of two texts, of which the longer one is cut first.

        Raises:
            TooLong: it is longer than `max_length`, and not to be cut.
        """
        frame, limit = self._frame, self.config.max_length
        room, whole = limit - len(frame) - len(frame.between), len(first) + len(second)
        if whole > room:
            if not self._may_cut(True) or room < 2:
                raise self._too_long(str(whole + limit - room))
            for_first, for_second = longest_first(len(first), len(second), room)
            (of_first,) = kept(len(first), for_first, self.config.truncation)
            (of_second,) = kept(len(second), for_second, self.config.truncation)
            first, second = first[of_first], second[of_second]
        ids = np.concatenate(
            [np.asarray(part, np.int32) for part in (frame.before, first, frame.between, second, frame.behind)]
        )
        begin = len(frame.before) + len(first) + len(frame.between)
        numbers = (("second", float(begin)),) if frame.second_type else ()
        return EncodedRow(ids, np.ones(len(ids), np.bool_), cut=whole > room, numbers=numbers)


class ClassificationEncoder(TextEncoder):
    """Encodes texts with their labels as numbers: `class` for one class, else `value` for each output."""

    def documents(self, row: Row) -> list[Document]:
        """The text with its label; without a chat template an answer is the second text of a pair."""
        sample = parse_row(row, "classification", self.config.columns, self.config.system)
        assert isinstance(sample, ClassificationRow)
        text, numbers = sample.conversation, self._label(sample.label)
        if self.config.use_chat_template or len(text.messages) < 2 or text.messages[-1]["role"] != "assistant":
            return [replace(self._text(text), numbers=numbers)]
        parts = (slice(-1), slice(-1, None))
        first, second = (replace(text, messages=text.messages[part], losses=text.losses[part]) for part in parts)
        return [self._part_of_pair(first), replace(self._part_of_pair(second), numbers=numbers)]

    def _numbers(self, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Labels with names of classes replaced by their numbers."""
        names = self.config.label_names
        for one in given:
            if isinstance(one, str) and one not in names:
                known = f"the classes are {', '.join(names)[:400]}" if names else "the classes are numbers"
                raise BadRow("bad label", f"label is {one[:40]!r}; {known}; see model.label_names")
        return tuple(names.index(one) if isinstance(one, str) else one for one in given)

    def _label(self, label: Any) -> Numbers:
        """The label as numbers for the loss."""
        given = self._numbers(label if isinstance(label, tuple) else (label,))
        num_labels, kind = self.config.num_labels or 1, self.config.problem_type
        if kind == _MULTI and _are_marks(given, num_labels):
            return tuple(("value", float(mark)) for mark in given)
        if kind == "regression":
            if len(given) != num_labels:
                raise BadRow("bad label", f"{len(given)} values, model.num_labels is {num_labels}")
            return tuple(("value", float(value)) for value in given)
        if kind != _MULTI:  # tables with gaps hold whole numbers as decimals
            given = tuple(int(one) if isinstance(one, float) and one.is_integer() else one for one in given)
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
    """Whether a label is a mark, 0 or 1, for each class. With two classes, [0, 1] could also be class numbers."""
    if len(given) != num_labels or not all(one in (0, 1) for one in given):
        return False
    return num_labels > 2 or any(isinstance(one, float) for one in given)


class EmbeddingEncoder(TextEncoder):
    """Encodes an anchor, its positive and its negatives, each as a text, as a `SentenceTransformer` does; the number
    `label` is the similarity, for losses that take one."""

    def documents(self, row: Row) -> list[Document]:
        """Anchor, positive, negatives."""
        sample = parse_row(row, "embedding", self.config.columns, self.config.system)
        assert isinstance(sample, EmbeddingRow)
        if len(sample.positives) != 1:
            raise BadRow("several positives", f"{len(sample.positives)} where one is expected; make a row of each")
        numbers = _similarity(sample, self.config.loss or "infonce")
        anchor, config = sample.anchor, self.config
        first = anchor.messages[0]
        if not config.pools_prompt and first["role"] == "system" and first["content"] != config.system:
            raise BadRow("prompt of its own", "the model pools without its own prompt, so rows cannot bring another")
        documents = [_prompted(sequence, config.document_prompt) for sequence in (*sample.positives, *sample.negatives)]
        made = [self._text(sequence) for sequence in (anchor, *documents)]
        return [replace(made[0], numbers=numbers), *made[1:]]


def _prompted(sequence: Conversation, prompt: str) -> Conversation:
    """A text with a prompt before it, unless it has a system message."""
    if not prompt or sequence.messages[0]["role"] == "system":
        return sequence
    messages = ({"role": "system", "content": prompt}, *sequence.messages)
    return replace(sequence, messages=messages, losses=(MessageLoss(), *sequence.losses))


def _similarity(sample: EmbeddingRow, loss: str) -> Numbers:
    """The label as numbers for the loss."""
    label = sample.label
    if loss == "infonce":
        if label not in (None, 1.0):
            raise BadRow("bad label", f"label is {label}; infonce takes only label 1; leave other rows out")
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
