"""A rank's completions -> micro-batches under a token budget, as many on every rank; pure.

Completions come by falling length, so those of a micro-batch are alike. In the layout `rows` each is a row of its own,
padded to the longest: without packing, attention is plainly causal, for which SDPA needs no mask. In the layout `flat`
they lie end to end, for variable-length flash attention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayswift.data.batches import IGNORED, Layout
from rayswift.rollout.rounds import Indices, RoundTable, Tokens

_MICRO_BATCH_TOKENS = 256
"""What one more forward and backward pass costs besides its tokens, in tokens."""
Place = tuple[int, int]
"""Of a micro-batch in a round: the optimizer step, and which of the step's it is."""


@dataclass(frozen=True)
class MicroBatch:
    """B completions with their prompts, n completion tokens in all.

    rows [B]: their lines in the round's table; totals, lengths [B] int64: tokens with the prompt, and without;
    sampling_logprobs [n] float32; inputs: what the model takes, with labels, -100 where not a completion token. B may
    be 0: then inputs are of one padding token.
    """

    rows: Indices
    totals: NDArray[np.int64]
    lengths: torch.Tensor
    sampling_logprobs: torch.Tensor
    inputs: Mapping[str, Any]

    @property
    def num_padded_tokens(self) -> int:
        """Tokens that the model computes, padding included."""
        return int(self.inputs["input_ids"].numel())

    @property
    def texts(self) -> list[list[int]]:
        """The tokens of each completion with its prompt."""
        if len(self.inputs["input_ids"]) == len(self.rows):
            return [ids[:total].tolist() for ids, total in zip(self.inputs["input_ids"], self.totals, strict=True)]
        pieces = self.inputs["input_ids"][0].split(self.totals.tolist()) if len(self.rows) else ()
        return [ids.tolist() for ids in pieces]


def cut(totals_of_ranks: Sequence[NDArray[np.int64]], budget: int, layout: Layout) -> list[list[slice]]:
    """Where each rank's completions are cut: the same number of micro-batches on all, at least one; some may be empty.

    Args:
        totals_of_ranks: Tokens of each rank's completions with their prompts, by falling length.
        budget: Most tokens of a micro-batch, padding included; a completion that is longer is a batch of its own.
        layout: Whether completions are padded to the longest of their batch.
    """
    pieces_of = _padded_pieces if layout == "rows" else _flat_pieces
    cuts = [pieces_of(totals, budget) for totals in totals_of_ranks]
    number = max(1, *map(len, cuts))
    return [_divided(pieces, number) for pieces in cuts]


def _padded_pieces(totals: NDArray[np.int64], budget: int) -> list[slice]:
    """The cut that computes least: padded tokens, and for each micro-batch what it costs besides.

    costs[j] is the least for the first j completions: the best of the cuts that end in a micro-batch [i, j), i < j.
    """
    number = len(totals)
    costs, begins = np.zeros(number + 1), np.zeros(number + 1, np.int64)
    for end in range(1, number + 1):
        padded = (end - np.arange(end)) * totals[:end]
        fits = padded <= budget
        fits[end - 1] = True  # a completion that is longer than the budget is a micro-batch of its own
        each = np.where(fits, costs[:end] + padded + _MICRO_BATCH_TOKENS, np.inf)
        begins[end] = np.argmin(each)
        costs[end] = each[begins[end]]
    pieces, end = [], number
    while end:
        pieces.append(slice(int(begins[end]), end))
        end = int(begins[end])
    return pieces[::-1]


def _flat_pieces(totals: NDArray[np.int64], budget: int) -> list[slice]:
    pieces, begin = [], 0
    while begin < len(totals):
        count = int(np.searchsorted(np.cumsum(totals[begin:]), budget, side="right"))
        end = min(len(totals), begin + max(1, count))
        pieces.append(slice(begin, end))
        begin = end
    return pieces


def _divided(pieces: list[slice], number: int) -> list[slice]:
    """As many pieces as asked for, by cutting the one with most completions in two, or by adding empty ones."""
    pieces = list(pieces)
    while len(pieces) < number:
        sizes = [piece.stop - piece.start for piece in pieces]
        if not sizes or max(sizes) < 2:
            end = pieces[-1].stop if pieces else 0
            pieces.append(slice(end, end))
            continue
        largest = int(np.argmax(sizes))
        piece = pieces[largest]
        middle = (piece.start + piece.stop + 1) // 2
        pieces[largest : largest + 1] = [slice(piece.start, middle), slice(middle, piece.stop)]
    return pieces


class Sequences:
    """A rank's prompts with their completions, end to end, to take micro-batches from."""

    def __init__(self, table: RoundTable, tokens: Tokens, pad_token_id: int, layout: Layout):
        prompts, lengths = table.prompt_lengths[tokens.rows], table.lengths[tokens.rows]
        self._place = {int(row): place for place, row in enumerate(tokens.rows)}
        self._prompts, self._lengths = prompts, lengths
        self._begins = _begins(prompts + lengths)
        self._logprob_begins, self._logprobs = _begins(lengths), tokens.logprobs
        self._pad_token_id, self._layout = pad_token_id, layout
        self._ids = np.empty(int((prompts + lengths).sum()), np.int64)
        is_prompt = np.repeat(np.tile([True, False], len(prompts)), np.stack([prompts, lengths], axis=1).ravel())
        self._ids[is_prompt], self._ids[~is_prompt] = tokens.prompt_ids, tokens.token_ids

    def batch(self, rows: Indices) -> MicroBatch:
        """The micro-batch of some lines of the table."""
        places = np.array([self._place[int(row)] for row in rows], np.int64)
        lengths = self._lengths[places]
        logprobs = self._logprobs[_ranges(self._logprob_begins[places], lengths)]
        inputs = self._rows(places) if self._layout == "rows" or not len(rows) else self._flat(places)
        totals = lengths + self._prompts[places]
        return MicroBatch(rows, totals, torch.from_numpy(lengths), torch.from_numpy(logprobs), inputs)

    def _rows(self, places: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """input_ids and labels [B, T]; without position ids, as no row holds two texts."""
        totals = (self._prompts + self._lengths)[places]
        columns = np.arange(int(totals.max()) if len(places) else 1)
        if not len(places):
            return {"input_ids": torch.full((1, 1), self._pad_token_id), "labels": torch.full((1, 1), IGNORED)}
        is_text = columns < totals[:, None]
        ids = np.full(is_text.shape, self._pad_token_id, np.int64)
        ids[is_text] = self._ids[_ranges(self._begins[places], totals)]
        is_trained = is_text & (columns >= self._prompts[places][:, None])
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(np.where(is_trained, ids, IGNORED))}

    def _flat(self, places: NDArray[np.int64]) -> dict[str, Any]:
        """input_ids, labels and position_ids [1, sum T], and the borders as flash attention takes them."""
        totals = (self._prompts + self._lengths)[places]
        ids = self._ids[_ranges(self._begins[places], totals)]
        positions = _ranges(np.zeros_like(totals), totals)
        labels = np.where(positions >= np.repeat(self._prompts[places], totals), ids, IGNORED)
        borders = torch.tensor([0, *np.cumsum(totals)], dtype=torch.int32)
        tensors = {"input_ids": ids, "labels": labels, "position_ids": positions}
        longest = int(totals.max())
        return {
            **{name: torch.from_numpy(values)[None] for name, values in tensors.items()},
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders,
            "max_length_q": longest,
            "max_length_k": longest,
        }


def _begins(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(lengths) - lengths


def _ranges(begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers from each begin on, `lengths` of them, end to end."""
    offsets = np.arange(int(lengths.sum())) - np.repeat(_begins(lengths), lengths)
    ranges: NDArray[np.int64] = np.repeat(begins, lengths) + offsets
    return ranges
