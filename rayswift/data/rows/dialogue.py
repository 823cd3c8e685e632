"""A row in one of the causal formats -> its conversation."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rayswift.data.canonical_rows import Conversation
from rayswift.data.rows.columns import QUERY, BadRow, NamedRow, Row, messages_column, one_of
from rayswift.data.rows.formats import CAUSAL_WANTED, answer_column, causal_format, is_instruction
from rayswift.data.rows.hints import unknown
from rayswift.data.rows.messages import conversation, role_of, turns
from rayswift.data.rows.values import as_list, as_text, is_list, parsed_list

_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def dialogue(given: NamedRow, form: str | None = None) -> Conversation:
    """The conversation of a row in one of the causal formats; `form` names the format if the caller knows it."""
    row = given.columns
    form = form or causal_format(row)
    if form in ("messages", "sharegpt"):
        return conversation(row[messages_column(row) or ""], given)
    if form == "prompt_completion":
        return _completed(question(row["prompt"]), continued(question(row["prompt"]), row["completion"], given), given)
    if form not in ("alpaca", "query_response"):
        raise unknown(row, CAUSAL_WANTED, ("messages", "query", "response", "text"))
    return continued(asked(given), row[answer_column(row) or ""], given)


def _completed(prompt: list[Any], made: Conversation, given: NamedRow) -> Conversation:
    """A conversation whose prompt is marked as asked: as in TRL, answers in a prompt are not trained."""
    if len(prompt) < 2:
        return made
    before = conversation(prompt, given).messages
    if made.messages[: len(before)] != before:
        return made
    losses = [replace(loss, asked=place < len(before)) for place, loss in enumerate(made.losses)]
    return replace(made, losses=tuple(losses))


def asked(given: NamedRow) -> list[Any]:
    """The messages before the answer, for a row with a question column: the history, then the question."""
    row = given.columns
    made: list[Any] = []
    history = row.get("history")
    for pair in parsed_list(history, "history") if history not in (None, "") else ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow("bad history", "history is a list of [query, response] pairs")
        made += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    if is_instruction(row):  # instruction, then input (Alpaca) or context (Dolly), on lines of their own
        names = [name for name in ("instruction", _more(row)) if row.get(name) not in (None, "")]
        return [*made, {"role": "user", "content": "\n".join(as_text(row[name], name) for name in names)}]
    return [*made, *question(row[one_of(row, QUERY) or ""])]


def used_by_question(row: Row) -> set[str]:
    """The columns that `asked` reads."""
    if is_instruction(row):
        return {"instruction", "history", _more(row)}
    return {one_of(row, QUERY) or "", "history"}


def _more(row: Row) -> str:
    return "input" if "input" in row else "context"


def question(prompt: Any) -> list[Any]:
    """The messages of a question: a list of messages, one message, or the text of a user message."""
    if is_list(prompt):
        return as_list(prompt, "prompt")
    if isinstance(prompt, Mapping):
        return [prompt]
    return messages_in(prompt) or _written_question(prompt) or [{"role": "user", "content": prompt}]


def _written_question(prompt: Any) -> list[Any] | None:
    """The messages of a prompt in the style of hh-rlhf, which ends with "Assistant:"; None for another text."""
    messages = written_dialogue(prompt)
    opens_answer = messages and messages[-1] == {"role": "assistant", "content": ""}
    return messages[:-1] if messages and opens_answer else None


def answer(response: Any) -> list[Any]:
    """The messages of an answer: a list of messages, one message, the text of an answer, or a list of one text."""
    if isinstance(response, Mapping) and ("role" in response or "from" in response or "content" in response):
        return [response]
    if not is_list(response):
        return messages_in(response) or [{"role": "assistant", "content": response}]
    items = as_list(response, "the answer")
    if not items or not all(isinstance(item, str) for item in items):
        return items
    if len(items) != 1:
        raise BadRow("several answers", f"{len(items)} texts where one is expected; keep one, or make a row of each")
    return [{"role": "assistant", "content": items[0]}]


def messages_in(value: Any) -> list[Any] | None:
    """The messages that a JSON text holds; None if it is no JSON text of messages."""
    if not isinstance(value, str) or not value.startswith("[{"):
        return None
    try:
        items = parsed_list(value, "messages")
    except BadRow:
        return None
    are = all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in items)
    return items if are else None


def continued(prompt: list[Any], response: Any, given: NamedRow) -> Conversation:
    """A question and its answer as one conversation; an answer that begins with the question is the conversation."""
    behind = answer(response)
    if not behind or not prompt or role_of(behind[0], given.names) in ("assistant", "tool_call"):
        return conversation([*prompt, *behind], given)
    whole, before = conversation(behind, given), conversation(prompt, given)
    asked_of = [message for message in before.messages if message["role"] not in ("system", "developer")]
    without_system = [message for message in whole.messages if message["role"] not in ("system", "developer")]
    # The prompt may also be the text of one question of several.
    questions = [message["content"].strip() for message in without_system if message["role"] == "user"]
    is_one_of_them = len(asked_of) == 1 and asked_of[0]["content"].strip() in questions
    if without_system[: len(asked_of)] == asked_of or is_one_of_them:
        return whole
    if asked_of and asked_of[-1]["role"] == "assistant":
        return conversation([*prompt, *behind], given)
    raise BadRow(
        "ambiguous prompt",
        "the answer is a conversation that begins with another question than the prompt; leave one of them out with "
        "data.columns, as in {prompt: unused}",
    )


def written_dialogue(text: Any) -> list[Any] | None:
    """The messages of a text in the style of hh-rlhf, "\\n\\nHuman: ...\\n\\nAssistant: ..."; None for another text."""
    if not isinstance(text, str) or not _HH_TURN.match(text.lstrip()):
        return None
    parts = _HH_TURN.split(text.lstrip())[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": "user" if who == "Human" else "assistant", "content": said.strip()} for who, said in pairs]


def ends_with_answer(messages: Any, given: NamedRow) -> bool:
    """Whether the last message of a list is from the assistant."""
    items = turns(messages, given.names)
    return bool(items) and role_of(items[-1], given.names) in ("assistant", "tool_call")


def names_question(row: Row) -> bool:
    """Whether a row has a question column."""
    return is_instruction(row) or one_of(row, QUERY) is not None
