"""The documents of one row, and attention within each of them, computed on padded pieces of similar lengths."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayswift.data.collate.pieces import padded_pieces, ranges

_PIECE_TOKENS = 64
"""The cost of one more call of SDPA, in tokens."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Documents:
    """Documents of T tokens in all, one after the other in one row. A token attends to itself and to those before it in
    its document.

    Args:
        lengths: [n], tokens of each.
        num_uses: Number of layers whose attention used it.
    """

    lengths: NDArray[np.int64]
    num_uses: int = 0
    _slots: dict[torch.device, Tensor] = field(default_factory=dict)

    @cached_property
    def _pieces(self) -> tuple[list[tuple[int, int, int]], NDArray[np.int64], int]:
        """Return begin, number and padded length of the pieces, the slot of each token [T], and the number of slots."""
        order = np.argsort(-self.lengths, kind="stable")
        begins, pieces, end = np.empty_like(self.lengths), [], 0
        for cut in padded_pieces(self.lengths[order], _PIECE_TOKENS):
            chosen = order[cut]
            longest = int(self.lengths[chosen[0]])
            begins[chosen] = end + longest * np.arange(len(chosen))
            pieces.append((end, len(chosen), longest))
            end += longest * len(chosen)
        return pieces, ranges(begins, self.lengths), end

    def attention(self, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """Attention within each document.

        Args:
            query: [T, H, D]; key and value alike, with their own heads.
            attend: Causal attention: query, key, value [b, H, L, D] -> [b, L, H, D].

        Returns:
            [T, H, D].
        """
        self.num_uses += 1
        pieces, slot_of, num_slots = self._pieces
        if query.device not in self._slots:
            self._slots[query.device] = torch.from_numpy(slot_of).to(query.device)
        slots = self._slots[query.device]
        padded = [x.new_zeros(num_slots, *x.shape[1:]).index_copy(0, slots, x) for x in (query, key, value)]
        found = []
        for begin, number, longest in pieces:
            rows = (x[begin : begin + number * longest].view(number, longest, *x.shape[1:]) for x in padded)
            found.append(attend(*(x.transpose(1, 2) for x in rows)).flatten(0, 1))
        return torch.cat(found).index_select(0, slots)
