"""Several sources mixed by weights: which source gives the row at each position of an epoch; pure.

Draw j of the c rows that a source gives in an epoch stands at time (j + 1/2) / c, and the epoch is all draws by time.
So every stretch of it holds the sources in their proportions, to within a row or two, and any stretch is computed by
itself: nothing is stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, inf

import numpy as np
from numpy.typing import NDArray

from rayswift.config.schema import MixUntil
from rayswift.config.source import SourceConfig
from rayswift.data.sources import Source, parse_source
from rayswift.log import UserError


@dataclass(frozen=True)
class Mix:
    """How many rows an epoch draws from each source; more than it has means that its rows come again."""

    draws: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return sum(self.draws)

    def at(self, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source, and number of the draw from it, at positions [begin, end)."""
        slack = len(self.draws) + 1  # so many rows, at most, is a stretch off its proportions
        low, high = (begin - slack) / self.num_rows, (end + slack) / self.num_rows
        first = [self._draws_before(source, low) for source in range(len(self.draws))]
        after = [self._draws_before(source, high) for source in range(len(self.draws))]
        sources = np.repeat(np.arange(len(self.draws)), np.subtract(after, first))
        numbers = np.concatenate([np.arange(a, b) for a, b in zip(first, after, strict=True)])
        times = (2 * numbers + 1) / (2 * np.asarray(self.draws)[sources])
        order = np.lexsort((sources, times))[begin - sum(first) : end - sum(first)]
        return sources[order].astype(np.int64), numbers[order].astype(np.int64)

    def _draws_before(self, source: int, time: float) -> int:
        """How many draws from a source stand before a time."""
        draws = self.draws[source]
        return min(max(ceil(time * draws - 0.5), 0), draws)


def mix(sizes: Sequence[int], weights: Sequence[float], until: MixUntil) -> Mix:
    """The mix of sources of these sizes.

    An epoch ends just before the first source would have to repeat (`first_exhausted`), or as soon as every row of
    every source was drawn (`all_exhausted`).
    """
    exact = [Fraction(repr(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    lengths = [size / share for size, share in zip(sizes, shares, strict=True)]
    total = floor(min(lengths)) if until == "first_exhausted" else ceil(max(lengths))
    draws = [floor(total * share) for share in shares]
    by_remainder = sorted(range(len(draws)), key=lambda i: draws[i] - total * shares[i])
    for source in by_remainder[: total - sum(draws)]:
        draws[source] += 1
    return Mix(tuple(draws))


def weights_of(given: Sequence[str | SourceConfig], weights: Mapping[str, float]) -> tuple[float, ...] | None:
    """The weight of each source, from `data.mix` or the sources themselves; None: there are none.

    `data.mix` calls a source as `data.dataset` does, or by its last part without suffixes.
    """
    sources = [parse_source(each) for each in given]
    own = [source.weight for source in sources]
    if any(weight is not None for weight in own):
        missing = [source.written for source in sources if source.weight is None]
        if missing:
            raise UserError(f"data.dataset: {', '.join(missing)} has no weight, and others have; give one to each")
        if weights:
            raise UserError("data.mix and the weights in data.dataset both say how sources are mixed; keep one")
        return tuple(weight for weight in own if weight is not None)
    return _named_weights(sources, weights) if weights else None


def _named_weights(sources: Sequence[Source], weights: Mapping[str, float]) -> tuple[float, ...]:
    found: dict[int, float] = {}
    for name, weight in weights.items():
        fitting = [i for i, source in enumerate(sources) if name in (source.written, source.path)]
        fitting = fitting or [i for i, source in enumerate(sources) if source.short == name]
        if len(fitting) != 1 or fitting[0] in found:
            what = "fits no source" if not fitting else "names a source that is named already"
            what = f"fits {len(fitting)} sources" if len(fitting) > 1 else what
            known = ", ".join(source.written for source in sources)
            raise UserError(f"data.mix: {name} {what}; write each as in data.dataset: {known}")
        if not 0 < weight < inf:
            raise UserError(f"data.mix: {name} has the weight {weight}; a weight is above 0 and finite")
        found[fitting[0]] = weight
    missing = [source.written for i, source in enumerate(sources) if i not in found]
    if missing:
        raise UserError(f"data.mix: {', '.join(missing)} has no weight; give one, or leave it out of data.dataset")
    return tuple(found[i] for i in range(len(sources)))
