"""Rows -> canonical rows, a function for each family. Columns that a family does not know are left alone."""

from collections.abc import Callable, Mapping
from typing import Any

from rayswift.data.rows.columns import (
    QUERY,
    RESPONSE,
    BadRow,
    Row,
    as_list,
    as_number,
    as_text,
    messages_column,
    one_of,
    renamed,
    shown,
)
from rayswift.data.rows.families import (
    CausalRow,
    ClassificationRow,
    Conversation,
    EmbeddingRow,
    Family,
    KtoRow,
    PreferenceRow,
    PromptRow,
    RerankerRow,
)
from rayswift.data.rows.formats import ANCHOR, NEGATIVE, POSITIVE, REJECTED, WANTED, causal_format
from rayswift.data.rows.messages import conversation

AnyRow = CausalRow | PreferenceRow | KtoRow | EmbeddingRow | RerankerRow | ClassificationRow | PromptRow


def parse_row(row: Any, family: Family, columns: Mapping[str, str], system: str | None = None) -> AnyRow:
    """Canonicalise one row for a family of tasks.

    Args:
        row: As it was read.
        family: Which type comes out.
        columns: User's column name -> ours.
        system: The system prompt of conversations that bring none.

    Raises:
        BadRow: the row is no object, fits no format of the family, its columns are ambiguous, or a value is wrong.
    """
    return _PARSERS[family](renamed(row, columns), system)


def _causal(row: Row, system: str | None) -> CausalRow:
    if causal_format(row) == "text":
        return CausalRow(text=as_text(row["text"], "text"))
    return CausalRow(_dialogue(row, system))


def _dialogue(row: Row, system: str | None) -> Conversation:
    """The conversation of a row in one of the causal formats."""
    form = causal_format(row)
    if form in ("messages", "sharegpt"):
        return conversation(row[messages_column(row) or ""], row, system)
    if form == "prompt_completion":
        return conversation([*_question(row["prompt"]), *_answer(row["completion"])], row, system)
    if form == "alpaca":
        parts = [as_text(row[k], k) for k in ("instruction", "input") if row.get(k) not in (None, "")]
        asked, response = _asked(row, "\n".join(parts)), row["output"]
    elif form == "query_response":
        asked, response = _asked(row, row[one_of(row, QUERY) or ""]), row[one_of(row, RESPONSE) or ""]
    else:
        raise _unknown(row, WANTED)
    return conversation([*asked, *_answer(response)], row, system)


def _asked(row: Row, query: Any) -> list[Any]:
    turns: list[Any] = []
    for pair in as_list(row.get("history", []), "history"):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow("bad history", "history is a list of [query, response] pairs")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return [*turns, *_question(query)]


def _question(prompt: Any) -> list[Any]:
    return prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]


def _answer(response: Any) -> list[Any]:
    return response if isinstance(response, list) else [{"role": "assistant", "content": response}]


def _preference(row: Row, system: str | None) -> PreferenceRow:
    if "chosen" in row and "rejected" in row:
        prompt = one_of(row, QUERY)
        asked = _asked(row, row[prompt]) if prompt else []
        if not prompt and not isinstance(row["chosen"], list):
            raise _unknown(row, "prompt beside chosen and rejected texts, or chosen and rejected as lists of messages")
        chosen = conversation([*asked, *_answer(row["chosen"])], row, system)
        rejected = [conversation([*asked, *_answer(row["rejected"])], row, system)]
    else:
        chosen = _dialogue(row, system)
        rejected = _rejected(row, chosen, system)
    if chosen.messages[-1]["role"] != "assistant":
        raise BadRow("no answer", "the chosen conversation does not end with the assistant's answer")
    if any(worse.messages == chosen.messages for worse in rejected):
        raise BadRow("no preference", "the chosen and the rejected conversation are equal")
    margin = row.get("margin")
    return PreferenceRow(chosen, tuple(rejected), None if margin is None else as_number(margin, "margin"))


def _rejected(row: Row, chosen: Conversation, system: str | None) -> list[Conversation]:
    given = [name for name in REJECTED if name in row]
    if len(given) != 1:
        wanted = "chosen + rejected; or a conversation + one of rejected_response, rejected_messages"
        if given:
            raise BadRow("ambiguous columns", f"{' and '.join(given)}; wanted: {wanted}")
        raise _unknown(row, wanted)
    value = row[given[0]]
    if given[0] == "rejected_messages":
        return [conversation(value, row, system)]
    # A list of texts is several answers, a list of messages is one.
    several = isinstance(value, list) and value and not isinstance(value[0], Mapping)
    asked = list(chosen.messages[:-1])
    return [conversation([*asked, *_answer(answer)], row, system) for answer in (value if several else [value])]


def _kto(row: Row, system: str | None) -> KtoRow:
    label = row.get("label")
    if not (isinstance(label, bool) or (isinstance(label, int) and label in (0, 1))):
        raise BadRow("bad label", f"label is {shown(label)}, expected true or false")
    made = _dialogue(row, system)
    if made.messages[-1]["role"] != "assistant":
        raise BadRow("no answer", "the conversation does not end with the assistant's answer")
    return KtoRow(made, bool(label))


def _embedding(row: Row, system: str | None) -> EmbeddingRow:
    anchor, positives, negatives = _triple(row, system, "user")
    label = row.get("label", row.get("score"))
    if isinstance(label, bool):
        label = int(label)
    return EmbeddingRow(anchor, positives, negatives, None if label is None else as_number(label, "label"))


def _reranker(row: Row, system: str | None) -> RerankerRow:
    return RerankerRow(*_triple(row, system, "assistant"))


def _triple(
    row: Row, system: str | None, role: str
) -> tuple[Conversation, tuple[Conversation, ...], tuple[Conversation, ...]]:
    """Anchor or query, positives, negatives; texts among the latter two become a message of `role`."""

    def conversations(value: Any, what: str) -> tuple[Conversation, ...]:
        items = [value] if isinstance(value, str) else as_list(value, what)
        lists = [item if isinstance(item, list) else [{"role": role, "content": item}] for item in items]
        return tuple(conversation(messages, {}) for messages in lists)

    column = messages_column(row)
    if column:
        anchor = conversation(row[column], row, system)
        positive, negative = (name if name in row else None for name in ("positive_messages", "negative_messages"))
    else:
        text = one_of(row, ANCHOR) or one_of(row, QUERY)
        if not text:
            raise _unknown(row, "messages + positive_messages (+ negative_messages); anchor | query + positive")
        anchor = conversation(_question(row[text]), row, system)
        positive, negative = one_of(row, POSITIVE), one_of(row, NEGATIVE)
    positives = conversations(row[positive], positive) if positive else ()
    if not positives:
        raise BadRow("no positive", "the row has nothing that its anchor or query should match")
    return anchor, positives, conversations(row[negative], negative) if negative else ()


def _classification(row: Row, system: str | None) -> ClassificationRow:
    if "label" not in row:
        raise _unknown(row, "a conversation, query or text + label")
    prompt = one_of(row, QUERY)
    if messages_column(row) or (prompt and one_of(row, RESPONSE)):
        made = _dialogue(row, system)
    elif prompt or "text" in row:
        made = conversation(_question(row[prompt or "text"]), row, system)
    else:
        raise _unknown(row, "a conversation, query or text + label")
    label = row["label"]
    if isinstance(label, bool | int):
        return ClassificationRow(made, int(label))
    if not isinstance(label, list | tuple) and not hasattr(label, "tolist"):
        return ClassificationRow(made, as_number(label, "label"))
    labels = as_list(label, "label")
    if labels and all(isinstance(one, int) for one in labels):
        return ClassificationRow(made, tuple(int(one) for one in labels))
    if not labels:
        raise BadRow("bad label", "the list of labels is empty")
    return ClassificationRow(made, tuple(as_number(one, "a label") for one in labels))


def _prompt(row: Row, system: str | None) -> PromptRow:
    column = messages_column(row)
    source = column or one_of(row, QUERY) or ("instruction" if "instruction" in row else None)
    if source is None:
        raise _unknown(row, "messages, or a prompt | query | question | problem")
    used = {source, "system", "tools", "history", "chat_template_kwargs"}
    if column:
        asked = row[column]
    elif source == "instruction":
        asked = _asked(row, "\n".join(as_text(row[k], k) for k in (source, "input") if row.get(k) not in (None, "")))
        used.add("input")
    else:
        asked = _asked(row, row[source])
    made = conversation(asked, row, system)
    answer = None
    if made.messages[-1]["role"] == "assistant":
        answer = made.messages[-1]["content"]
        made = Conversation(made.messages[:-1], made.losses[:-1], made.tools, made.template_kwargs)
    if not any(message["role"] == "user" for message in made.messages):
        raise BadRow("no prompt", "the conversation has no user message to answer")
    return PromptRow(made, answer, {key: value for key, value in row.items() if key not in used})


def _unknown(row: Row, wanted: str) -> BadRow:
    seen = ", ".join(sorted(map(str, row))) or "none"
    return BadRow("no known columns", f"columns are {seen[:400]}; wanted: {wanted}; map yours with data.columns")


_PARSERS: dict[Family, Callable[[Row, str | None], AnyRow]] = {
    "causal": _causal,
    "preference": _preference,
    "kto": _kto,
    "embedding": _embedding,
    "reranker": _reranker,
    "classification": _classification,
    "prompt": _prompt,
}
