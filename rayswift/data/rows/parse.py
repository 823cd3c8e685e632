"""Rows -> canonical rows, with one function for each family. Columns that a family does not know are ignored."""

from collections.abc import Callable, Mapping
from typing import Any

from rayswift.config.tasks import Family
from rayswift.data.canonical_rows import (
    CausalRow,
    ClassificationRow,
    Conversation,
    EmbeddingRow,
    KtoRow,
    PreferenceRow,
    PromptRow,
    RerankerRow,
)
from rayswift.data.rows.columns import MESSAGES, QUERY, TEXT_PAIR, BadRow, NamedRow, lower_cased, messages_column, named
from rayswift.data.rows.dialogue import asked, dialogue, names_question, used_by_question
from rayswift.data.rows.formats import answer_column, causal_format
from rayswift.data.rows.hints import unknown
from rayswift.data.rows.media import refuse_media
from rayswift.data.rows.messages import conversation
from rayswift.data.rows.pairs import kto, preference
from rayswift.data.rows.texts import classification, embedding, reranker
from rayswift.data.rows.values import as_text, parsed_list, shown

AnyRow = CausalRow | PreferenceRow | KtoRow | EmbeddingRow | RerankerRow | ClassificationRow | PromptRow


def parse_row(row: Any, family: Family, columns: Mapping[str, str], system: str | None = None) -> AnyRow:
    """The canonical row of a family of tasks; `columns` and `system` as in `columns.named`.

    Raises:
        BadRow: the row has no known columns, is ambiguous, or a value is wrong.
    """
    given = named(row, columns, system)
    refuse_media(given.columns)
    try:
        return _PARSERS[family](given)
    except BadRow as bad:
        # Column names in capitals are accepted if the row has none in small letters.
        lowered = lower_cased(given) if bad.reason == "no known columns" else None
        if lowered is None:
            raise
        refuse_media(lowered.columns)
        return _PARSERS[family](lowered)


def _causal(given: NamedRow) -> CausalRow:
    row = given.columns
    form = causal_format(row)
    if form == "text" and TEXT_PAIR in row:
        raise BadRow(
            "ambiguous columns",
            f"text and {TEXT_PAIR} are two texts, and one is trained as it stands; train the second as the answer to "
            f"the first with data.columns {{text: query, {TEXT_PAIR}: response}}, or leave it out: "
            f"{{{TEXT_PAIR}: unused}}",
        )
    if form == "text":
        return CausalRow(text=as_text(row["text"], "text"))
    if form == "response" and given.nulls.isdisjoint((*MESSAGES, *QUERY)):
        return CausalRow(text=as_text(row[answer_column(row) or ""], "response"))
    if form == "segments":
        return CausalRow(segments=_segments(row["segments"]))
    return CausalRow(dialogue(given, form))


def _segments(value: Any) -> tuple[tuple[str, bool], ...]:
    """The segments of axolotl's `input_output`: texts, each with whether it is trained."""
    made = []
    for segment in parsed_list(value, "segments"):
        if not isinstance(segment, Mapping):
            raise BadRow("bad segment", f"a segment is {type(segment).__name__}, not an object")
        label = segment.get("label")
        if label not in (True, False):
            raise BadRow("bad segment", f"a segment has label {shown(label)}; it is true or false")
        made.append((as_text(segment.get("text"), "text of a segment"), bool(label)))
    return tuple(made)


def _prompt(given: NamedRow) -> PromptRow:
    row = given.columns
    column = messages_column(row)
    if column is None and not names_question(row):
        raise unknown(row, "messages, or a prompt | query | question | problem | instruction", ("messages", "query"))
    used = {column} if column else used_by_question(row)
    used |= {"system", "system_prompt", "tools", "history", "chat_template_kwargs"}
    made = conversation(row[column] if column else asked(given), given)
    answer = reply = None
    if made.messages[-1]["role"] == "assistant":
        reply = made.messages[-1]
        answer = reply["content"]
        made = Conversation(made.messages[:-1], made.losses[:-1], made.tools, made.template_kwargs)
    if not any(message["role"] == "user" for message in made.messages):
        raise BadRow("no prompt", "the conversation has no user message to answer")
    return PromptRow(made, answer, {key: value for key, value in row.items() if key not in used}, reply)


_PARSERS: dict[Family, Callable[[NamedRow], AnyRow]] = {
    "causal": _causal,
    "preference": preference,
    "kto": kto,
    "embedding": embedding,
    "reranker": reranker,
    "classification": classification,
    "prompt": _prompt,
}
