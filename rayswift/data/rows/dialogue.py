"""A row in one of the causal formats -> its conversation."""

import re
from collections.abc import Mapping
from typing import Any

from rayswift.data.canonical_rows import Conversation
from rayswift.data.rows.columns import QUERY, BadRow, NamedRow, Row, messages_column, one_of
from rayswift.data.rows.formats import CAUSAL_WANTED, answer_column, causal_format, is_instruction
from rayswift.data.rows.hints import unknown
from rayswift.data.rows.messages import conversation, role_of, turns
from rayswift.data.rows.values import as_list, as_text, is_list, parsed_list

_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def dialogue(given: NamedRow, form: str | None = None) -> Conversation:
    """The conversation of a row in one of the causal formats; `form` is which, if that is known.

    Raises:
        BadRow: it is in none of them, or something in it is wrong.
    """
    row = given.columns
    form = form or causal_format(row)
    if form in ("messages", "sharegpt"):
        return conversation(row[messages_column(row) or ""], given)
    if form == "prompt_completion":
        return continued(question(row["prompt"]), row["completion"], given)
    if form not in ("alpaca", "query_response"):
        raise unknown(row, CAUSAL_WANTED, ("messages", "query", "response", "text"))
    return continued(asked(given), row[answer_column(row) or ""], given)


def asked(given: NamedRow) -> list[Any]:
    """The messages before the answer of a row whose question is a column of its own: history and question.

    Raises:
        BadRow: there is no such column, several could be it, or the history is none.
    """
    row = given.columns
    made: list[Any] = []
    history = row.get("history")
    for pair in parsed_list(history, "history") if history not in (None, "") else ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow("bad history", "history is a list of [query, response] pairs")
        made += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    if is_instruction(row):
        return [*made, {"role": "user", "content": _instruction(row)}]
    return [*made, *question(row[one_of(row, QUERY) or ""])]


def used_by_question(row: Row) -> set[str]:
    """The columns that `asked` reads."""
    if is_instruction(row):
        return {"instruction", "history", _more(row)}
    return {one_of(row, QUERY) or "", "history"}


def _instruction(row: Row) -> str:
    """Instruction and input (Alpaca), or context (Dolly), a line each."""
    more = _more(row)
    parts = [as_text(row[name], name) for name in ("instruction", more) if row.get(name) not in (None, "")]
    return "\n".join(parts)


def _more(row: Row) -> str:
    return "input" if "input" in row else "context"


def question(prompt: Any) -> list[Any]:
    """A question: a list of messages, or the text of the user's."""
    if is_list(prompt):
        return as_list(prompt, "prompt")
    if isinstance(prompt, Mapping):
        return [prompt]
    return messages_in(prompt) or [{"role": "user", "content": prompt}]


def answer(response: Any) -> list[Any]:
    """An answer: a message, a list of them, the text of the assistant's, or a list of one text.

    Raises:
        BadRow: it is several texts.
    """
    if isinstance(response, Mapping) and ("role" in response or "from" in response or "content" in response):
        return [response]
    if not is_list(response):
        return messages_in(response) or [{"role": "assistant", "content": response}]
    items = as_list(response, "the answer")
    if not items or not all(isinstance(item, str) for item in items):
        return items
    if len(items) != 1:
        raise BadRow("several answers", f"{len(items)} texts where one is asked; keep one, or make a row of each")
    return [{"role": "assistant", "content": items[0]}]


def messages_in(value: Any) -> list[Any] | None:
    """The messages that a text holds as JSON; None if it holds none."""
    if not isinstance(value, str) or not value.startswith("[{"):
        return None
    try:
        items = parsed_list(value, "messages")
    except BadRow:
        return None
    are = all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in items)
    return items if are else None


def continued(prompt: list[Any], response: Any, given: NamedRow) -> Conversation:
    """A question and its answer as one conversation; an answer that begins with the question is the whole of it.

    Raises:
        BadRow: the answer begins with another question.
    """
    behind = answer(response)
    if not behind or not prompt or role_of(behind[0], given.names) in ("assistant", "tool_call"):
        return conversation([*prompt, *behind], given)
    whole, before = conversation(behind, given), conversation(prompt, given)
    asked_of = [message for message in before.messages if message["role"] not in ("system", "developer")]
    told = [message for message in whole.messages if message["role"] not in ("system", "developer")]
    if told[: len(asked_of)] == asked_of or _asks_last(told, asked_of):
        return whole
    if asked_of and asked_of[-1]["role"] == "assistant":
        return conversation([*prompt, *behind], given)
    raise BadRow(
        "ambiguous prompt",
        "the answer is a conversation that begins with another question than the prompt; leave one of them out with "
        "data.columns, as in {prompt: unused}",
    )


def _asks_last(told: list[dict[str, Any]], asked_of: list[dict[str, Any]]) -> bool:
    """Whether the prompt is the text of one of the questions, as where it names the last of several."""
    texts = [message["content"].strip() for message in told if message["role"] == "user"]
    return len(asked_of) == 1 and asked_of[0]["content"].strip() in texts


def written_dialogue(text: Any) -> list[Any] | None:
    """The messages of a text such as hh-rlhf's, "\\n\\nHuman: ...\\n\\nAssistant: ..."; None if it is none."""
    if not isinstance(text, str) or not _HH_TURN.match(text.lstrip()):
        return None
    parts = _HH_TURN.split(text.lstrip())[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": "user" if who == "Human" else "assistant", "content": said.strip()} for who, said in pairs]


def ends_with_answer(messages: Any, given: NamedRow) -> bool:
    """Whether the last of a list of messages is the assistant's."""
    items = turns(messages, given.names)
    return bool(items) and role_of(items[-1], given.names) in ("assistant", "tool_call")


def names_question(row: Row) -> bool:
    """Whether a row has a question in a column of its own."""
    return is_instruction(row) or one_of(row, QUERY) is not None
