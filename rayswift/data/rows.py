"""One row of any supported format -> one canonical `Sample`.

Formats, by column: messages | conversations or conversation (ShareGPT) | prompt + completion (TRL) | instruction (+
input) + output (Alpaca) | query + response (+ history) | text. `columns` renames a user's columns first. The first
of these that a row has all columns of is its format; a row that fits none, or has two columns for one part of its
format, is an error that names them: never a guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Message = dict[str, Any]

_QUERY = ("query", "question", "problem", "prompt")
_RESPONSE = ("response", "answer", "output", "target", "completion", "solution")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "observation": "tool", "tool_response": "tool"}
_KNOWN_ROLES = {"system", "developer", "user", "assistant", "tool"}
WANTED = (
    "messages; conversations; prompt + completion; instruction (+ input) + output; "
    "query | question + response | answer (+ history, system); text"
)


class BadRow(Exception):
    """A row that cannot be trained: `reason` groups it in the accounting, `detail` says what is wrong with this one."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Sample:
    """A canonical row for causal language modelling.

    Either `messages` (each with role and content, as chat templates take them) or `text` is set. `loss` holds, per
    message, whether its author asked for it to be trained (True), left out (False), or said nothing (None).
    """

    messages: tuple[Message, ...] = ()
    loss: tuple[bool | None, ...] = ()
    text: str | None = None
    tools: tuple[Any, ...] | None = None


def to_sample(row: Row, columns: Mapping[str, str], system: str | None = None) -> Sample:
    """Canonicalise one row.

    Raises:
        BadRow: the row is no object, fits no format, or its values do not fit its format.
    """
    if not isinstance(row, Mapping):
        raise BadRow("not an object", f"a row is a JSON object, this is {type(row).__name__}")
    row = _rename({k: v for k, v in row.items() if v is not None}, columns)
    for key in ("messages", "conversations", "conversation"):
        if key in row:
            return _conversation(row[key], row, system)
    if "prompt" in row and "completion" in row:
        if isinstance(row["prompt"], list):
            return _conversation([*row["prompt"], *_as_list(row["completion"])], row, system)
        return _dialogue(row, row["prompt"], row["completion"], system)
    if "instruction" in row and "output" in row:
        question = "\n".join(str(row[k]) for k in ("instruction", "input") if row.get(k))
        return _dialogue(row, question, row["output"], system)
    query, response = _one_of(row, _QUERY, "query"), _one_of(row, _RESPONSE, "response")
    if query and response:
        return _dialogue(row, row[query], row[response], system)
    if "text" in row:
        return Sample(text=_string(row["text"], "text"))
    seen = ", ".join(sorted(map(str, row))) or "none"
    raise BadRow("no known columns", f"columns are {seen}; wanted: {WANTED}; map yours with data.columns")


def _rename(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for key, value in row.items():
        name = columns.get(key, key)
        # The user's own mapping wins over a column that has the name by chance.
        if name not in renamed or key in columns:
            renamed[name] = value
    return renamed


def _one_of(row: Mapping[str, Any], names: tuple[str, ...], target: str) -> str | None:
    if target in row:
        return target
    found = [name for name in names if name in row]
    if len(found) > 1:
        raise BadRow("ambiguous columns", f"{' and '.join(found)} could both be {target}; say which with data.columns")
    return found[0] if found else None


def _dialogue(row: Mapping[str, Any], query: Any, response: Any, system: str | None) -> Sample:
    messages = []
    for turn in _as_list(row.get("history", [])):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise BadRow("bad history", "history is a list of [query, response] pairs")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    messages += [{"role": "user", "content": query}, {"role": "assistant", "content": response}]
    return _conversation(messages, row, system)


def _conversation(messages: Any, row: Mapping[str, Any], system: str | None) -> Sample:
    messages = _as_list(messages)
    canonical, loss = [], []
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise BadRow("bad message", f"message {position} is {type(message).__name__}, not an object")
        canonical.append(_message(message, position))
        loss.append(_loss(message, position))
    if not canonical:
        raise BadRow("no messages", "the list of messages is empty")
    own_system = row.get("system") or system
    if own_system and canonical[0]["role"] not in ("system", "developer"):
        canonical.insert(0, {"role": "system", "content": _string(own_system, "system")})
        loss.insert(0, None)
    tools = row.get("tools")
    return Sample(tuple(canonical), tuple(loss), tools=tuple(_as_list(tools)) if tools else None)


def _message(message: Mapping[str, Any], position: int) -> Message:
    role = message.get("role", message.get("from"))
    role = _ROLES.get(role, role) if isinstance(role, str) else role
    if not isinstance(role, str) or role not in _KNOWN_ROLES:
        raise BadRow("unknown role", f"message {position} has role {role!r}; known: {', '.join(sorted(_KNOWN_ROLES))}")
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = "".join(_text_block(block, position) for block in content)
    if content is None and not message.get("tool_calls"):
        raise BadRow("no content", f"message {position} ({role}) has no content")
    extra = {k: v for k, v in message.items() if k in ("name", "tool_calls", "tool_call_id", "reasoning_content") and v}
    return {
        "role": role,
        "content": _string("" if content is None else content, f"content of message {position}"),
        **extra,
    }


def _text_block(block: Any, position: int) -> str:
    if isinstance(block, Mapping) and isinstance(block.get("text"), str):
        return str(block["text"])
    raise BadRow("unsupported content", f"message {position} holds a block that is not text")


def _loss(message: Mapping[str, Any], position: int) -> bool | None:
    loss = message.get("loss")
    if loss not in (None, True, False):
        raise BadRow("bad loss", f"message {position} has loss {loss!r}; it is true or false")
    if message.get("loss_scale") not in (None, 0, 1):
        raise BadRow("unsupported loss_scale", f"message {position}: weights other than 0 and 1 are not trained by sft")
    if loss is None:
        loss = message.get("loss_scale")
    return None if loss is None else bool(loss)


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    if hasattr(value, "tolist"):  # numpy, from Parquet
        return list(value.tolist())
    raise BadRow("wrong type", f"expected a list, got {type(value).__name__}")


def _string(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRow("wrong type", f"{what} is {type(value).__name__}, expected text")
