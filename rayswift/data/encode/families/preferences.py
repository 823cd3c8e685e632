"""Rows of tasks whose loss compares whole texts; pure.

The sequences of a row have a fixed order. A preference row has two, chosen and rejected; a raw row with
several rejected answers makes several such rows with the same chosen answer. A classification row and a KTO row have
one; the KTO row's mismatched completion comes from its global batch. An embedding or reranker row has all texts of its
raw row.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from rayswift.config.schema import LossOn
from rayswift.data.encode.encoder import EncodedRow, Encoder
from rayswift.data.encode.turns import Document, documents, joined
from rayswift.data.rows import BadRow, Conversation, KtoRow, MessageLoss, PreferenceRow, Row, parse_row


class SequencesEncoder(Encoder):
    """Encodes rows that need all their sequences: one document each, not split, and with a trained token."""

    def _may_cut(self, whole: bool) -> bool:
        return self.config.truncation in ("left", "right")

    def _assembled(self, made: Sequence[Document], fitted: list[list[EncodedRow]]) -> list[EncodedRow] | BadRow:
        if not all(fitted):
            return BadRow("no trainable token", "a sequence of the row has no trained token within data.max_length")
        rows = [replace(row, numbers=document.numbers) for document, (row,) in zip(made, fitted, strict=True)]
        cut = any(row.cut for row in rows)
        # The first sequence counts for the raw row in the accounting.
        return [replace(row, cut=cut and position == 0) for position, row in enumerate(rows)]

    def _judged(self, row: Conversation, loss_on: LossOn) -> Document:
        """A conversation as one text, with the turns of `loss_on` trained."""
        if any(loss.weight != 1 for loss in row.losses):
            raise BadRow("bad loss", f"{self.config.family} rows count whole answers: messages take no loss_scale")
        marking = replace(self._marking, loss_on=loss_on)
        if not self.config.use_chat_template:
            made = [joined(row, marking, self._eos)]
            self._refuse(made[0].text, made[0].whole, 1)
        else:
            made = documents(self.template, self._with_kwargs(row), marking, self._refuse)
        if len(made) > 1:
            raise BadRow(
                "chat template rewrites earlier turns",
                "so the answers of this row are not in one text; set data.loss_on last_turn, or data.keep_history true",
            )
        return made[0]


class PreferenceEncoder(SequencesEncoder):
    """Encodes preference rows; the messages that both conversations begin with are not trained."""

    def documents(self, row: Row) -> list[Document]:
        """Chosen and rejected, chosen and the next rejected, and so on."""
        sample = parse_row(row, "preference", self.config.columns, self.config.system)
        assert isinstance(sample, PreferenceRow)
        numbers = () if sample.margin is None else (("margin", sample.margin),)
        made: list[Document] = []
        for rejected in sample.rejected:
            pairs = zip(sample.chosen.messages, rejected.messages, strict=False)
            begin = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
            both = [self._answer(sequence, begin) for sequence in (sample.chosen, rejected)]
            if both[0].text == both[1].text:
                raise BadRow("no preference", "chosen and rejected are the same text once rendered")
            made += [replace(both[0], numbers=numbers), both[1]]
        return made

    def _answer(self, sequence: Conversation, begin: int) -> Document:
        """A conversation with the assistant's turns from message `begin` on trained."""
        losses = [loss if i >= begin else MessageLoss(False) for i, loss in enumerate(sequence.losses)]
        return self._judged(replace(sequence, losses=tuple(losses)), self.config.loss_on)

    def _assembled(self, made: Sequence[Document], fitted: list[list[EncodedRow]]) -> list[EncodedRow] | BadRow:
        rows = super()._assembled(made, fitted)
        if isinstance(rows, list):
            for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
                if chosen.input_ids.tobytes() == rejected.input_ids.tobytes():
                    return BadRow("no preference", "chosen and rejected are the same tokens within data.max_length")
        return rows


class KtoEncoder(SequencesEncoder):
    """Encodes conversations with a number `label`, 1 or 0; only the last answer is trained."""

    def documents(self, row: Row) -> list[Document]:
        """The conversation, or the two conversations of a pair."""
        sample = parse_row(row, "kto", self.config.columns, self.config.system)
        assert isinstance(sample, KtoRow)
        return [
            replace(self._judged(conversation, "last_turn"), numbers=(("label", float(label)),))
            for conversation, label in sample.judged
        ]
