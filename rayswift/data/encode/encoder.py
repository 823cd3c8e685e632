"""Rows -> token ids, the mask of trained tokens and their loss weights; pure, and in batches for speed.

The text is byte-equal to what `apply_chat_template` renders. It is rendered as a whole and tokenised once. The loss
mask is the character spans of its trained turns, mapped to tokens by the bytes of each token (`token_spans`), or by the
tokenizer's offsets if it does not work on bytes.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jinja2 import TemplateSyntaxError
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from rayswift.config.schema import LossScale
from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.masks import NO_FRAME, Masked, clipped, ids_within, masked, parts_of
from rayswift.data.encode.pretokenised import pretokenised, segmented, token_columns
from rayswift.data.encode.template import ChatTemplate, merged_turns
from rayswift.data.encode.token_spans import TokenBytes, byte_positions
from rayswift.data.encode.truncation import bound_of, kept
from rayswift.data.encode.turns import Document, Marking, Numbers, Span, documents, ended, joined
from rayswift.data.rows import BadRow, CausalRow, Conversation, Row, parse_row
from rayswift.data.rows.columns import named
from rayswift.data.tokenizer.folder import Frame, frame_of, read_chat_template
from rayswift.log import UserError

_BATCH_CHARS = 1 << 22
_MANY_MESSAGES = 64


@dataclass(frozen=True)
class EncodedRow:
    """One document of a raw row.

    input_ids [T] int32; trained [T] bool: whether each token is trained, never the first, because nothing predicts it;
    weights [T] float32: the loss weight of each trained token, None if all are 1; cut: its raw row lost tokens to
    `max_length`; numbers: as in `Document`; record: for prompts, the JSON object that rewards receive, else "".
    """

    input_ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    weights: NDArray[np.float32] | None = None
    cut: bool = False
    numbers: Numbers = ()
    record: str = ""


class LeftOut(BadRow):
    """A row that a setting leaves out; it is not bad."""


class TooLong(LeftOut):
    """A row longer than `max_length`."""


class Encoder:
    """Encodes batches of rows."""

    def __init__(self, config: EncodeConfig):
        self.config = config
        folder = Path(config.tokenizer_dir)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        source, special_tokens = read_chat_template(folder)
        try:
            self._template = ChatTemplate(source, special_tokens, config.template_date) if source else None
        except TemplateSyntaxError as error:
            raise UserError(
                f"the chat template does not compile, line {error.lineno}: {error}; see model.chat_template"
            ) from error
        self._eos = special_tokens.get("eos_token", "")
        self._frame = frame_of(self._tokenizer)
        self._token_columns = token_columns(config.columns)
        self._num_tokens = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        added = self._tokenizer.get_added_tokens_decoder().values()
        end_tokens = tuple(token.content for token in added if token.special)
        extra: tuple[LossScale, ...] = ("ignore_empty_think",) if config.ignore_empty_think else ()
        rules = tuple(dict.fromkeys((*config.loss_scale, *extra)))
        self._marking = Marking(config.loss_on, rules, config.keep_history, end_tokens)
        self._bound = bound_of(self._tokenizer)
        self._bytes = TokenBytes.of(self._tokenizer, json.loads(self._tokenizer.to_str()))

    def reading(self, columns: Mapping[str, str], system: str | None) -> "Encoder":
        """The same encoder for rows with other columns and another system prompt."""
        other = copy.copy(self)
        other.config = replace(self.config, columns=columns, system=system)
        other._token_columns = token_columns(columns)
        return other

    def encode(self, rows: Sequence[Row]) -> list[list[EncodedRow] | BadRow]:
        """One result per row, in order: its documents, or the error.

        A row has several documents if the template rewrites history (see `turns`) or if the row is split.
        """
        rendered = [self._documents_or_bad(row) for row in rows]
        tokens = self._tokenise([d for made in rendered if isinstance(made, list) for d in made])
        return [made if isinstance(made, BadRow) else self._all_fitted(made, tokens) for made in rendered]

    def _all_fitted(self, made: Sequence[Document], tokens: Iterator[EncodedRow]) -> list[EncodedRow] | BadRow:
        """The result for one row; `tokens` gives those of its documents next."""
        encoded = [next(tokens) for _ in made]
        try:
            fitted = [self._fitted(document, row) for document, row in zip(made, encoded, strict=True)]
        except TooLong as too_long:
            return too_long
        return self._assembled(made, fitted)

    def _assembled(self, made: Sequence[Document], fitted: list[list[EncodedRow]]) -> list[EncodedRow] | BadRow:
        """The result for one row, from the parts of each document that fit."""
        rows = [row for parts in fitted for row in parts]
        if not rows:
            return BadRow("no trainable token", "no token within data.max_length is trained")
        cut = any(row.cut for row in rows) or not all(fitted)
        return [replace(rows[0], cut=cut), *(replace(row, cut=False) for row in rows[1:])] if cut else rows

    def documents(self, row: Row) -> list[Document]:
        """The texts of a row and their trained spans.

        Raises:
            BadRow: the row is bad, has nothing to train, or the chat template cannot be trained on it.
        """
        if isinstance(row, Mapping) and not self._token_columns.isdisjoint(row):
            return [pretokenised(named(row, self.config.columns).columns, self._num_tokens)]
        sample = parse_row(row, "causal", self.config.columns, self.config.system)
        assert isinstance(sample, CausalRow)
        if sample.segments is not None:
            self._refuse("".join(text for text, _ in sample.segments), all(one for _, one in sample.segments), 1)
            return [segmented(sample.segments, self._tokenizer)]
        if sample.conversation is None:
            text = ended(sample.text or "", self._eos)
            self._refuse(text, True, 1)
            return [Document(text, (Span(0, len(text)),), framed=True)]
        if not self.config.use_chat_template:
            document = joined(sample.conversation, self._marking, self._eos)
            self._refuse(document.text, document.whole, 1)
            return [document]
        return documents(self.template, self._with_kwargs(sample.conversation), self._marking, self._refuse)

    @property
    def template(self) -> ChatTemplate:
        """The chat template."""
        if self._template is None:
            raise UserError(
                f"the tokenizer in {self.config.tokenizer_dir} has no chat template; give one with model.chat_template"
            )
        return self._template

    def _rendered(self, row: Conversation, generate: bool = False) -> str:
        """A conversation as the chat template renders it; `generate` adds the generation prompt."""
        row = self._with_kwargs(row)
        given = self.config.template_kwargs.get("tools") or row.tools  # those of a run, or of the row
        tools = list(given) if given else None
        try:
            return self.template.conversation(row.messages, tools, generate, row.template_kwargs)
        except BadRow as bad:
            messages = merged_turns(row, bad).messages
            return self.template.conversation(messages, tools, generate, row.template_kwargs)

    def _with_kwargs(self, row: Conversation) -> Conversation:
        """A conversation with the config's template variables; its own variables have priority."""
        if not self.config.template_kwargs:
            return row
        return replace(row, template_kwargs={**self.config.template_kwargs, **row.template_kwargs})

    def _documents_or_bad(self, row: Row) -> list[Document] | BadRow:
        try:
            return self.documents(row)
        except UnicodeEncodeError as error:
            return BadRow("invalid UTF-8", f"a lone surrogate at character {error.start}")
        except BadRow as bad:
            return bad

    def _refuse(self, text: str, whole: bool, num_messages: int) -> None:
        """Raise early for a text that cannot be tokenised or is too long and not cut."""
        text.encode()
        if self._may_cut(whole):
            return
        least = self._bound.min_tokens(text)
        if least <= self.config.max_length and num_messages > _MANY_MESSAGES:
            least = len(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0])
        if least > self.config.max_length:
            raise self._too_long(f"at least {least}")

    def _may_cut(self, whole: bool) -> bool:
        # A conversation is not split: its second piece would lack the question.
        return self.config.truncation in ("left", "right") or (self.config.truncation == "split" and whole)

    def _too_long(self, num_tokens: str) -> TooLong:
        hint = "; only rows trained whole are split" if self.config.truncation == "split" else ""
        return TooLong(
            "longer than data.max_length", f"{num_tokens} tokens, the limit is {self.config.max_length}{hint}"
        )

    def _excerpts(self, document: Document) -> list[tuple[int, str]]:
        """The parts of a text to tokenise, as `Bound.excerpts` returns them."""
        return self._bound.excerpts(document.text, self.config.max_length, self.config.truncation)

    def _tokenise(self, made: Sequence[Document]) -> Iterator[EncodedRow]:
        """The tokens of each document, in order; of a document that is too long, only what may be kept."""
        excerpts = [self._excerpts(document) for document in made]
        pairs = list(zip(made, excerpts, strict=True))
        texts = [pair for pair in pairs if pair[0].tokens is None]
        # Offsets cost time; they are needed only if some tokens are trained and others are not.
        marked_texts = [text for document, parts in texts if not document.whole for _, text in parts]
        marked = self._encodings(marked_texts, self._bytes is not None)
        whole = self._encodings([text for document, parts in texts if document.whole for _, text in parts], True)
        for document, parts in pairs:
            frame = self._frame if document.framed else NO_FRAME
            if document.tokens is not None:
                yield EncodedRow(document.tokens.ids, document.tokens.trained)
            elif document.whole:
                ids = ids_within(frame, [next(whole).ids for _ in parts])
                yield EncodedRow(ids, np.arange(len(ids)) > 0)
            else:
                ((begin, text),) = parts
                spans = [clipped(span, begin, begin + len(text)) for span in document.spans]
                yield EncodedRow(*self._masked(text, next(marked), spans, frame))

    def _masked(self, text: str, encoding: Encoding, spans: Sequence[Span], frame: Frame) -> Masked:
        """The tokens of an excerpt; if the encoding has no offsets, the bytes of its tokens locate the spans."""
        listed = encoding.ids
        ids = np.array(listed, np.int32)
        if self._bytes is None:
            return masked(ids, parts_of(encoding, spans), frame)
        begins = self._bytes.begins(ids, listed, text.encode())
        if begins is None:  # the tokenizer normalised the text
            return masked(ids, parts_of(self._tokenizer.encode(text, add_special_tokens=False), spans), frame)
        edges = sorted({edge for span in spans for edge in (span.begin, span.end)})
        tokens = np.searchsorted(begins, byte_positions(text, edges)).tolist()
        # A token across the border of a span belongs to the text before the border.
        token_at = dict(zip(edges, tokens, strict=True))
        return masked(ids, [(slice(token_at[span.begin], token_at[span.end]), span.weight) for span in spans], frame)

    def _encodings(self, texts: Sequence[str], fast: bool) -> Iterator[Encoding]:
        """Encodings of texts, made for a bounded number of characters at a time: each takes 100 bytes per token."""
        encode_batch = self._tokenizer.encode_batch_fast if fast else self._tokenizer.encode_batch
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        begin = 0
        while begin < len(texts):
            done = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, done + _BATCH_CHARS, side="right")))
            yield from encode_batch(texts[begin:end], add_special_tokens=False)
            begin = end

    def _fitted(self, document: Document, row: EncodedRow) -> list[EncodedRow]:
        """The parts of a document's tokens within `max_length` that hold a trained token."""
        if len(row.input_ids) <= self.config.max_length:
            return [row] if row.trained.any() else []
        if not self._may_cut(document.whole):
            raise self._too_long(str(len(row.input_ids)))
        fitted = []
        for part in kept(len(row.input_ids), self.config.max_length, self.config.truncation):
            trained = row.trained[part].copy()
            trained[:1] = False
            if trained.any():
                weights = None if row.weights is None else row.weights[part]
                fitted.append(EncodedRow(row.input_ids[part], trained, weights, self.config.truncation != "split"))
        return fitted
