"""Turns as tokens: the answer of a tool or an environment, and the opening of the next turn; pure.

Only new messages are rendered and tokenised. The chat template renders them after a made-up turn of the model, and the
text after the end of that turn is the answer; so sampled tokens never change. (TRL's GRPOTrainer takes the tokens of an
answer from a made-up conversation too, `_get_tool_suffix_ids`.)
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rayswift.data.encode.template import ChatTemplate
from rayswift.data.rows import BadRow, Message
from rayswift.data.tokenizer.folder import read_chat_template
from rayswift.engines.vllm.end_tokens import end_tokens
from rayswift.log import UserError
from rayswift.rollout.episodes.calls import CallFormat, format_of

_MARK = "zzmadeupzz"
_CALL_IDS = "call{:05d}"  # nine letters and digits, as Mistral's templates want them
_FIX = "set model.chat_template to one that renders tools, calls (tool_calls) and their answers (role tool)"


class Turns:
    """Converts the turns of one model.

    Args:
        tokenizer_dir: Folder of its tokenizer.
        tools: JSON schemas of the tools.
        template_kwargs: Variables for the chat template.
        date: See `ChatTemplate`.

    Raises:
        UserError: its chat template cannot render tools, or there is none.
    """

    def __init__(
        self, tokenizer_dir: Path, tools: Sequence[Any], template_kwargs: Mapping[str, Any], date: str | None = None
    ):
        source, special_tokens = read_chat_template(tokenizer_dir)
        if not source:
            raise UserError("the tokenizer has no chat template, so that tools cannot answer; set model.chat_template")
        self._template = ChatTemplate(source, special_tokens, date)
        self._tools, self._kwargs = list(tools) or None, template_kwargs
        self._tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
        self.end_ids = frozenset(end_tokens(tokenizer_dir))
        ends = [self._tokenizer.id_to_token(token) for token in self.end_ids]
        self._ends = [text for text in ends if text]
        self.call_format: CallFormat | None = None
        self._encoded = lru_cache(256)(self._encode)
        self._check()

    def _check(self) -> None:
        """Check that the template renders all that tools need."""
        if self._tools is None:
            self.answer([{"role": "user", "content": "r"}], True)
            return
        try:
            text = self._template.render([{"role": "user", "content": "q"}], self._tools, True, self._kwargs)
        except BadRow as bad:
            raise UserError(f"the chat template refuses tools: {bad}; {_FIX}") from bad
        unseen = [name for name in (tool["function"]["name"] for tool in self._tools) if name not in text]
        if unseen:
            raise UserError(f"the chat template does not show the model the tool {unseen[0]}; {_FIX}")
        self.call_format = format_of(self._template, self._tools)
        if self.call_format is None:
            raise UserError(
                "the chat template writes tool calls in no known format, between <tool_call> tags (Hermes, Qwen), as "
                f"JSON with `parameters` (Llama 3) or after [TOOL_CALLS] (Mistral); {_FIX}"
            )
        answer = self._text([{"role": "tool", "name": "t", "content": "rrr"}])
        if "rrr" not in answer:
            raise UserError(f"the chat template leaves out what a tool answers; {_FIX}")

    def prompt(self, messages: Sequence[Message]) -> NDArray[np.int32]:
        """Return the tokens of a conversation with the opening of the answer, [P].

        Raises:
            BadRow: the template cannot render it.
        """
        return self._encoded(self._template.conversation(messages, self._tools, True, self._kwargs))

    def answer(self, messages: Sequence[Message], ended: bool) -> NDArray[np.int32]:
        """Return the tokens of the answers to a turn and of the opening of the next turn, [T].

        Args:
            messages: Of role tool, or others.
            ended: Whether the turn's own last token ends it; if not, the end is written too.

        Raises:
            UserError: the template does not render the answer after the turn.
        """
        text = self._text(messages)
        if ended:
            text = text[max(len(end) for end in ("", *self._ends) if text.startswith(end)) :]
        return self._encode(text)

    def raw(self, text: str) -> NDArray[np.int32]:
        """Return the tokens of an unchanged text, [T]."""
        return self._encode(text)

    def _text(self, messages: Sequence[Message]) -> str:
        """Return what the template renders after a made-up turn, from the end token of that turn on.

        Some templates take one call in a turn (Llama 3.1): then all answers follow a turn with one.
        """
        num_calls = len(messages)
        try:
            text = self._rendered(messages, num_calls)
        except BadRow:
            num_calls = 1
            try:
                text = self._rendered(messages, num_calls)
            except BadRow as bad:
                who = messages[0]["role"]
                raise UserError(f"the chat template refuses the answer of a {who}: {bad}; {_FIX}") from bad
        begin = 0
        for _ in range(num_calls if messages[0]["role"] == "tool" else 1):
            begin = text.find(_MARK, begin) + len(_MARK)
        found = [at for end in self._ends if (at := text.find(end, begin)) >= 0]
        if begin < len(_MARK) or not found:
            raise UserError(f"the chat template does not end the model's turn before an answer; {_FIX}")
        return text[min(found) :]

    def _rendered(self, messages: Sequence[Message], num_calls: int) -> str:
        """Render a made-up question and turn of the model, and the answers to it; if tools answer, the turn calls as
        many.

        Raises:
            BadRow: the template refuses them.
        """
        made_up = self._made_up(messages, num_calls)
        return self._template.render(self._template.adapted(made_up), self._tools, True, self._kwargs)

    def _made_up(self, messages: Sequence[Message], num_calls: int) -> list[Message]:
        asked: Message = {"role": "user", "content": "q"}
        if messages[0]["role"] != "tool":
            return [asked, {"role": "assistant", "content": _MARK}, *messages]
        called = [
            {
                "type": "function",
                "id": _CALL_IDS.format(number),
                "function": {"name": message["name"], "arguments": {"mark": _MARK}},
            }
            for number, message in enumerate(messages[:num_calls])
        ]
        answers = [
            message | {"tool_call_id": call["id"]} for message, call in zip(messages, cycle(called), strict=False)
        ]
        return [asked, {"role": "assistant", "content": "", "tool_calls": called}, *answers]

    def _encode(self, text: str) -> NDArray[np.int32]:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def num_tokens(self, token_ids: NDArray[np.int32], num_chars: int) -> int:
        """Return the number of tokens that hold the first characters of a turn; a token across the border counts."""
        return bisect_left(range(len(token_ids)), num_chars, key=lambda number: len(self.text(token_ids[:number])))

    def text(self, token_ids: NDArray[np.int32]) -> str:
        """Return the text of a turn without its end token; other special tokens stay, because some open a call."""
        return self.whole(token_ids[:-1] if self._has_end(token_ids) else token_ids)

    def end(self, token_ids: NDArray[np.int32]) -> str:
        """Return the text of a turn's end token, "" if it has none."""
        return self.whole(token_ids[-1:]) if self._has_end(token_ids) else ""

    def whole(self, token_ids: NDArray[np.int32]) -> str:
        """Return the text of tokens, special ones included."""
        return str(self._tokenizer.decode(token_ids.tolist(), skip_special_tokens=False))

    def _has_end(self, token_ids: NDArray[np.int32]) -> bool:
        return len(token_ids) > 0 and int(token_ids[-1]) in self.end_ids
