"""Rows for embeddings, rerankers and classification."""

import math
from collections.abc import Mapping
from typing import Any

from rayswift.data.canonical_rows import ClassificationRow, Conversation, EmbeddingRow, Label, RerankerRow
from rayswift.data.rows.columns import (
    ANCHOR,
    DOCUMENT,
    LABEL,
    NEGATIVE,
    POSITIVE,
    RESPONSE,
    SCORE,
    TEXT,
    TEXT_PAIR,
    BadRow,
    NamedRow,
    Row,
    messages_column,
    named,
    one_of,
)
from rayswift.data.rows.dialogue import (
    asked,
    continued,
    dialogue,
    messages_in,
    names_question,
    question,
    used_by_question,
)
from rayswift.data.rows.hints import unknown, without_label
from rayswift.data.rows.messages import conversation
from rayswift.data.rows.values import as_cell_number, as_list, as_number, is_list, parsed_list, shown

_EMBEDDING_WANTED = (
    "messages + positive_messages (+ negative_messages); anchor | query + positive (+ negative); sentence1 + sentence2 "
    "+ score; query + response (+ rejected_response)"
)
_RERANKER_WANTED = (
    "messages + positive_messages + negative_messages; query + positive + negative; query + documents + labels; "
    "query + response + rejected_response"
)
_CLASSES_WANTED = "a conversation, query or text (+ text_pair) + label"

Texts = tuple[Conversation, ...]


def embedding(given: NamedRow) -> EmbeddingRow:
    """A row for embedding."""
    row = given.columns
    anchor, positives, negatives = _triple(given, "user", _EMBEDDING_WANTED, ("anchor", "positive", "negative"))
    column = one_of(row, SCORE)
    label = row[column] if column else None
    if isinstance(label, bool):
        label = int(label)
    return EmbeddingRow(anchor, positives, negatives, None if label in (None, "") else as_cell_number(label, "label"))


def reranker(given: NamedRow) -> RerankerRow:
    """A row for reranker and generative_reranker."""
    row = given.columns
    column, labels = one_of(row, DOCUMENT), one_of(row, LABEL)
    if column and labels and names_question(row):
        documents = _texts(row[column], column, "assistant", given)
        _need_positive(documents)
        marks = as_list(row[labels], labels) if is_list(row[labels]) else [row[labels]]
        if len(marks) != len(documents):
            raise BadRow("bad label", f"{len(marks)} labels for {len(documents)} documents")
        fits = [as_cell_number(int(mark) if isinstance(mark, bool) else mark, "label") for mark in marks]
        if wrong := [mark for mark, fit in zip(marks, fits, strict=True) if fit not in (0, 1)]:
            raise BadRow("bad label", f"label is {shown(wrong[0])}; a document fits (1) or does not (0)")
        groups = [tuple(d for d, fit in zip(documents, fits, strict=True) if fit == wanted) for wanted in (1, 0)]
        return RerankerRow(conversation(asked(given), given), groups[0], groups[1])
    return RerankerRow(*_triple(given, "assistant", _RERANKER_WANTED, ("query", "positive", "negative")))


def _triple(given: NamedRow, role: str, wanted: str, parts: tuple[str, ...]) -> tuple[Conversation, Texts, Texts]:
    """Anchor or query, positives and negatives; a positive or negative that is text becomes a message of `role`."""
    row = given.columns
    positive: str | None
    column = messages_column(row)
    if column:
        anchor = conversation(row[column], given)
        positive = "positive_messages" if "positive_messages" in row else None
        negatives = ["negative_messages"] if "negative_messages" in row else []
    else:
        own = one_of(row, ANCHOR)
        if not own and not names_question(row):
            raise unknown(row, wanted, parts)
        anchor = conversation(question(row[own]) if own else asked(given), given)
        positive, negatives = one_of(row, POSITIVE), _negatives(row)
        # Older rows of ms-swift have the names of causal rows.
        if not positive and (positive := one_of(row, RESPONSE)) and "rejected_response" in row:
            negatives = ["rejected_response"]
    positives = _texts(row[positive], positive, role, given) if positive else ()
    _need_positive(positives)
    return anchor, positives, tuple(text for name in negatives for text in _texts(row[name], name, role, given))


def _negatives(row: Row) -> list[str]:
    """Columns of negatives: one, and numbered ones as in sentence-transformers (`negative_1`, ...)."""
    numbered = [name for name in row if name.startswith("negative_") and name.removeprefix("negative_").isdigit()]
    one = one_of(row, NEGATIVE)
    return ([one] if one else []) + sorted(numbered, key=lambda name: int(name.removeprefix("negative_")))


def _need_positive(positives: Texts) -> None:
    if not positives:
        raise BadRow("no positive", "the row has nothing that its anchor or query should match")


def _texts(value: Any, what: str, role: str, given: NamedRow) -> Texts:
    """The texts or lists of messages in a column, each as a conversation."""
    if isinstance(value, str) and what.endswith("_messages"):
        value = parsed_list(value, what)
    items = as_list(value, what) if is_list(value) else [value]
    if what.endswith("_messages") and any(isinstance(item, Mapping) for item in items):
        raise BadRow("wrong type", f"{what} is a list of messages, expected a list of such lists, one for each text")
    texts = [messages_in(item) or item for item in items]
    lists = [text if is_list(text) else [{"role": role, "content": text}] for text in texts]
    return tuple(conversation(messages, given.alone) for messages in lists)


def classification(given: NamedRow) -> ClassificationRow:
    """A row for seq_cls; a label in text is a number if it can be read as one, else the name of a class."""
    row = given.columns
    column = one_of(row, LABEL)
    if column is None:
        raise without_label(given, LABEL) or unknown(row, _CLASSES_WANTED, ("text", "label"))
    text = one_of(row, TEXT)
    if messages_column(row) or (names_question(row) and one_of(row, RESPONSE)):
        made = dialogue(given)
    elif names_question(row) and text:
        raise BadRow(
            "ambiguous columns",
            f"{' and '.join((*sorted(used_by_question(row) & row.keys()), text))} are both texts to classify; name the "
            f"pair with data.columns, as in {{{text}: response}}, or leave one out, as in {{{text}: unused}}",
        )
    elif names_question(row):
        made = conversation(asked(given), given)
    elif text and TEXT_PAIR in row:
        made = continued(question(row[text]), row[TEXT_PAIR], given)
    elif text:
        made = conversation(question(row[text]), given)
    else:
        raise unknown(row, _CLASSES_WANTED, ("text",))
    return ClassificationRow(made, label_of(row[column]))


def label_in(row: Any, columns: Mapping[str, str]) -> Label:
    """The label of a row for seq_cls; the other columns are not checked.

    Raises:
        BadRow: the row has no valid label.
    """
    given = named(row, columns).columns
    column = one_of(given, LABEL)
    if column is None:
        raise unknown(given, _CLASSES_WANTED, ("text", "label"))
    return label_of(given[column])


def label_of(value: Any) -> Label:
    """The label in a value of a row: numbers become int or float, names of classes stay text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parsed_list(value, "label")
    if not is_list(value):
        return _one_label(value)
    labels = [_one_label(one) for one in as_list(value, "label")]
    if all(isinstance(one, str) for one in labels):
        return tuple(str(one) for one in labels)
    if all(isinstance(one, int) for one in labels):
        return tuple(int(one) for one in labels)
    return tuple(as_number(one, "a label") for one in labels)


def _one_label(value: Any) -> int | float | str:
    if isinstance(value, bool | int):
        return int(value)
    if not isinstance(value, str):
        return as_number(value, "label")
    text = value.strip()
    if not text:
        raise BadRow("bad label", "the label is empty")
    if "_" in text:  # a name, where Python reads 1_2 as 12
        return text
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
