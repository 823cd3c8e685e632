"""Canonical rows -> token ids and the mask of trained tokens; pure, and in batches for speed.

What is trained is byte-equal to what `apply_chat_template` renders: a row is rendered once, tokenised once, and the
loss mask is the character spans of its trained turns, mapped through the tokenizer's offsets.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateSyntaxError
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from rayswift.config.schema import LossOn, TruncationMode
from rayswift.data.rows import BadRow, Row, Sample, to_sample
from rayswift.data.template import ChatTemplate
from rayswift.log import UserError

Span = tuple[int, int]


@dataclass(frozen=True)
class EncodeConfig:
    """What determines the tokens of a row.

    `tokenizer_dir` holds tokenizer.json, its config and the chat template; `tokenizer_hash` is the hash of those files.
    """

    tokenizer_dir: str
    tokenizer_hash: str
    max_length: int
    truncation: TruncationMode = "drop"
    loss_on: LossOn = "assistant"
    columns: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None


@dataclass(frozen=True)
class EncodedRow:
    """One document of a raw row, which may have several (see `Encoder.encode`).

    input_ids [T] int32; trained [T] bool: whether each is trained, the first never is as nothing predicts it; weights
    [T] float32: the loss weight of each trained token, None if all are 1; cut: its raw row lost tokens to `max_length`.
    """

    input_ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    weights: NDArray[np.float32] | None = None
    cut: bool = False


class TooLong(BadRow):
    """A row longer than `max_length`, left out by rule rather than for being bad."""


class Encoder:
    """Encodes batches of rows.

    Raises:
        UserError: the tokenizer folder has no chat template and a row needs one.
    """

    def __init__(self, config: EncodeConfig):
        self.config = config
        folder = Path(config.tokenizer_dir)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        source, special_tokens = read_chat_template(folder)
        try:
            self._template = ChatTemplate(source, special_tokens) if source else None
        except TemplateSyntaxError as error:
            raise UserError(
                f"the chat template does not compile, line {error.lineno}: {error}; see model.chat_template"
            ) from error
        self._eos = special_tokens.get("eos_token", "")
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._turn_ends = tuple(token.content for token in added if token.special)

    def encode(self, rows: Sequence[Row]) -> list[list[EncodedRow] | BadRow]:
        """One result per row, in order: its documents (one, or the pieces of a split row), or why it has none."""
        results: list[list[EncodedRow] | BadRow | None] = [None] * len(rows)
        texts: list[str] = []
        spans: list[list[Span]] = []
        rendered: list[int] = []
        for position, row in enumerate(rows):
            try:
                text, trained = self.render(to_sample(row, self.config.columns, self.config.system))
                text.encode()
            except UnicodeEncodeError as error:
                results[position] = BadRow("invalid UTF-8", f"half of a surrogate pair: {error}")
                continue
            except BadRow as bad:
                results[position] = bad
                continue
            texts.append(text)
            spans.append(trained)
            rendered.append(position)
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        for position, encoding, trained in zip(rendered, encodings, spans, strict=True):
            try:
                results[position] = [self._finish(encoding, trained)]
            except BadRow as bad:
                results[position] = bad
        return [result for result in results if result is not None]

    def render(self, sample: Sample) -> tuple[str, list[Span]]:
        """A sample's text and the character spans to train.

        Raises:
            BadRow: no turn to train, or a template that rewrites earlier turns.
        """
        if sample.text is not None:
            text = sample.text + self._eos
            return text, [(0, len(text))]
        if self._template is None:
            raise UserError(
                f"the tokenizer in {self.config.tokenizer_dir} has no chat template; give one with model.chat_template"
            )
        messages, tools = list(sample.messages), list(sample.tools) if sample.tools else None
        text = self._template.render(messages, tools)
        if self.config.loss_on == "all":
            return text, [(0, len(text))]
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if self.config.loss_on == "last_turn":
            turns = turns[-1:]
        turns = [i for i in turns if sample.loss[i] is not False]
        if not turns:
            raise BadRow("no trainable token", "the conversation has no assistant turn to train")
        return text, [self._turn_span(text, messages, tools, turn) for turn in turns]

    def _turn_span(self, text: str, messages: list[Any], tools: list[Any] | None, turn: int) -> Span:
        assert self._template is not None
        before = self._template.render(messages[:turn], tools, generate=True)
        until = text if turn == len(messages) - 1 else self._template.render(messages[: turn + 1], tools)
        if not text.startswith(before) or not text.startswith(until):
            raise BadRow(
                "chat template rewrites earlier turns",
                f"turn {turn} renders differently once others follow it; train with data.loss_on last_turn",
            )
        # White space behind the end-of-turn token is never generated, so never trained.
        end = len(until)
        stripped = until.rstrip()
        if len(stripped) >= len(before) and stripped.endswith(self._turn_ends):
            end = len(stripped)
        return len(before), end

    def _finish(self, encoding: Encoding, spans: list[Span]) -> EncodedRow:
        ids = np.asarray(encoding.ids, dtype=np.int32)
        trained = np.zeros(len(ids), dtype=np.bool_)
        for start, end in spans:
            trained[_token_at(encoding, start, end, len(ids)) : _token_after(encoding, start, end)] = True
        trained[:1] = False
        limit = self.config.max_length
        cut = len(ids) > limit
        if cut:
            if self.config.truncation == "drop":
                raise TooLong("longer than data.max_length", f"{len(ids)} tokens, the limit is {limit}")
            keep = slice(-limit, None) if self.config.truncation == "left" else slice(0, limit)
            ids, trained = ids[keep], trained[keep].copy()
            trained[:1] = False
        if not trained.any():
            raise BadRow("no trainable token", f"none of its {len(ids)} tokens is trained")
        return EncodedRow(ids, trained, cut=cut)


def _token_at(encoding: Encoding, start: int, end: int, none: int) -> int:
    """The first token that begins inside [start, end)."""
    for position in range(start, end):
        token = encoding.char_to_token(position)
        if token is not None:
            begins = encoding.token_to_chars(token)
            assert begins is not None
            # A token that straddles the border belongs to the prompt.
            return int(token) if begins[0] >= start else int(token) + 1
    return none


def _token_after(encoding: Encoding, start: int, end: int) -> int:
    """One past the last token of [start, end)."""
    for position in range(end - 1, start - 1, -1):
        token = encoding.char_to_token(position)
        if token is not None:
            # One character may be several tokens, all with its span; `char_to_token` names the first.
            span = encoding.token_to_chars(token)
            after = int(token) + 1
            while after < len(encoding.ids) and encoding.token_to_chars(after) == span:
                after += 1
            return after
    return 0


def read_chat_template(folder: Path) -> tuple[str | None, dict[str, str]]:
    """The chat template and the named special tokens of a tokenizer folder."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    source = config.get("chat_template")
    if (folder / "chat_template.jinja").exists():
        source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(source, list):  # several named templates
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    tokens = {}
    for name, value in config.items():
        if name.endswith("_token") and value:
            tokens[name] = value["content"] if isinstance(value, dict) else value
    return source, {name: value for name, value in tokens.items() if isinstance(value, str)}


@cache
def cached_encoder(config_json: str) -> Encoder:
    """The process's encoder for a config given as JSON: a data task encodes many windows with one."""
    return Encoder(EncodeConfig(**json.loads(config_json)))
