"""Rows for preference tasks (a chosen and a rejected conversation) and for KTO (a conversation with a label)."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from rayswift.data.canonical_rows import Conversation, KtoRow, PreferenceRow
from rayswift.data.rows.columns import (
    CHOSEN,
    KTO_LABEL,
    REJECTED,
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
    ends_with_answer,
    messages_in,
    names_question,
    written_dialogue,
)
from rayswift.data.rows.formats import causal_format
from rayswift.data.rows.hints import unknown, without_label
from rayswift.data.rows.messages import conversation, role_of, turns
from rayswift.data.rows.values import as_cell_number, as_list, is_list, shown

_WANTED = (
    "chosen + rejected as lists of messages, as dialogues in text, or after prompt | query | question | instruction | "
    "messages; a conversation + one of rejected_response, rejected_messages"
)
_KTO_WANTED = "a conversation in any format of sft + label | kto_tag; or pairs: chosen + rejected"
_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def preference(given: NamedRow) -> PreferenceRow:
    """A row for dpo, orpo, cpo, simpo and rm."""
    given = _with_input(given)
    row = given.columns
    better = one_of(row, CHOSEN)
    worse = _rejected_column(row, better)
    if better:
        prompt = _prompt(given)
        (chosen,) = _sides(row[better], prompt, given, several=False)
        rejected = _sides(row[worse], prompt, given, several=True)
    else:
        chosen = dialogue(given)
        value = row[worse]
        # A list of texts is several answers, a list of messages is one.
        several = is_list(value) and len(value) > 0 and not isinstance(next(iter(value)), Mapping)
        before = list(chosen.messages[:-1])
        if worse == "rejected_messages":
            messages = turns(value, given.names)
            # They may be the answer alone.
            is_answer = role_of(next(iter(messages), None), given.names) in ("assistant", "tool_call")
            rejected = [conversation([*before, *messages] if is_answer else messages, given)]
        else:
            rejected = [continued(before, one, given) for one in (as_list(value, worse) if several else [value])]
    if chosen.messages[-1]["role"] != "assistant":
        raise BadRow("no answer", "the chosen conversation does not end with the assistant's answer")
    if any(one.messages == chosen.messages for one in rejected):
        raise BadRow("no preference", "the chosen and the rejected conversation are equal")
    margin = row.get("margin")
    return PreferenceRow(chosen, tuple(rejected), None if margin in (None, "") else as_cell_number(margin, "margin"))


def _with_input(given: NamedRow) -> NamedRow:
    """The row with `messages` and `tools` as columns; OpenAI's pairs hold them inside `input`."""
    inside = given.columns.get("input")
    if "preferred_output" not in given.columns or not isinstance(inside, Mapping):
        return given
    outside = {key: value for key, value in given.columns.items() if key != "input"}
    found = {key: inside[key] for key in ("messages", "tools") if inside.get(key) is not None}
    return replace(given, columns=outside | found)


def _rejected_column(row: Row, better: str | None) -> str:
    found = [name for name in REJECTED if name in row]
    twin = REJECTED[CHOSEN.index(better)] if better else None
    if twin in found:
        return str(twin)
    if len(found) > 1:
        raise BadRow("ambiguous columns", f"{' and '.join(found)}; wanted: {_WANTED}")
    if not found:
        raise unknown(row, _WANTED, ("query", "chosen", "rejected"))
    return found[0]


def _prompt(given: NamedRow) -> list[Any] | None:
    """The messages before both answers; None if the row has no such column."""
    row = given.columns
    column = messages_column(row)
    if column:
        return turns(row[column], given.names)
    return asked(given) if names_question(row) else None


def _sides(value: Any, prompt: list[Any] | None, given: NamedRow, several: bool) -> list[Conversation]:
    """One conversation for each answer in a column of chosen or rejected answers."""
    if several and is_list(value) and (items := as_list(value, "rejected")) and all(isinstance(i, str) for i in items):
        return [side for item in items for side in _sides(item, prompt, given, several=False)]
    if prompt is None:
        messages = messages_in(value) or written_dialogue(value) or value
        if isinstance(messages, str) or not (is_list(messages) or isinstance(messages, Mapping)):
            raise unknown(given.columns, _WANTED, ("query",))
        return [conversation(messages, given)]
    is_whole = is_list(value) and role_of(next(iter(value), None), given.names) not in (None, "assistant", "tool_call")
    if messages_column(given.columns) and is_whole:
        return [conversation(value, given)]  # the whole conversation, `messages` is one of the two
    if messages_column(given.columns) and ends_with_answer(prompt, given):
        raise BadRow("ambiguous prompt", "the conversation before chosen and rejected ends with an answer already")
    return [continued(prompt, value, given)]


def kto(given: NamedRow) -> KtoRow:
    """A row for kto; a preference pair gives two conversations, the chosen with label True, the other with False."""
    row = given.columns
    column = one_of(row, KTO_LABEL)
    if column is None:
        if not any(name in row for name in REJECTED):
            if "chosen" not in row and causal_format(row):
                detail = unknown(row, _KTO_WANTED, ("label",)).detail
                raise without_label(given, KTO_LABEL) or BadRow("bad label", detail)
            raise unknown(row, _KTO_WANTED, ("query", "response", "label", "chosen", "rejected"))
        pair = preference(given)
        return KtoRow(((pair.chosen, True), *((worse, False) for worse in pair.rejected)))
    label = _label(row[column], column)
    made = dialogue(given)
    if made.messages[-1]["role"] != "assistant":
        raise BadRow("no answer", "the conversation does not end with the assistant's answer")
    return KtoRow(((made, label),))


def kto_remarks(rows: Iterable[tuple[Any, Mapping[str, str]]]) -> list[str]:
    """Warnings about the first rows of a data set for kto, each row with its `data.columns`: the rows are pairs, or all
    have the same label."""
    labels: Counter[bool] = Counter()
    num_pairs = 0
    for row, columns in rows:
        try:
            judged = kto(named(row, columns)).judged
        except BadRow:
            continue
        labels.update(label for _, label in judged)
        num_pairs += len(judged) > 1
    said = []
    if num_pairs:
        said.append(
            f"{num_pairs} of the first rows are pairs of a chosen and a rejected answer: each pair trains as two rows"
        )
    if len(labels) == 1:
        ((label, count),) = labels.items()
        said.append(
            f"all of the first {count} labels are {str(label).lower()}: kto needs answers with label true and answers "
            f"with label false; with one label alone the model only moves away from its reference"
        )
    return said


def _label(value: Any, column: str) -> bool:
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and (word := value.strip().lower()) in _WORDS:
        return _WORDS[word]
    raise BadRow("bad label", f"{column} is {shown(value)}, expected true or false")
