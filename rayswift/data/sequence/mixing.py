"""Sources mixed by weights: the source of the row at each position of an epoch; pure.

If an epoch draws c rows from a source, draw j is at time (j + 1/2) / c. The epoch is all draws sorted by time. So every
part of it holds the sources in proportion, to within a row or two, and any part can be computed without the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, inf

import numpy as np
from numpy.typing import NDArray

from rayswift.config.fields.source import SourceConfig
from rayswift.config.schema import MixUntil
from rayswift.data.sources import Source, parse_source
from rayswift.log import UserError


@dataclass(frozen=True)
class Mix:
    """The number of rows that an epoch draws from each source; if the source has fewer, its rows repeat."""

    draws: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return sum(self.draws)

    def at(self, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source, and the number of the draw from it, at positions [begin, end): int64 [end - begin] each."""
        slack = len(self.draws) + 1  # the most rows by which a part differs from the proportions
        low, high = (begin - slack) / self.num_rows, (end + slack) / self.num_rows
        first = [self._draws_before(source, low) for source in range(len(self.draws))]
        after = [self._draws_before(source, high) for source in range(len(self.draws))]
        sources = np.repeat(np.arange(len(self.draws)), np.subtract(after, first))
        numbers = np.concatenate([np.arange(a, b) for a, b in zip(first, after, strict=True)])
        times = (2 * numbers + 1) / (2 * np.asarray(self.draws)[sources])
        order = np.lexsort((sources, times))[begin - sum(first) : end - sum(first)]
        return sources[order].astype(np.int64), numbers[order].astype(np.int64)

    def _draws_before(self, source: int, time: float) -> int:
        """The number of draws from a source before a time."""
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
    """The weight of each source, from `data.mix` or the sources themselves; None if there are no weights.

    `data.mix` names a source as in `data.dataset`, or by its last part without suffixes.
    """
    sources = [parse_source(each) for each in given]
    own = [source.weight for source in sources]
    if any(weight is not None for weight in own):
        missing = [source.written for source in sources if source.weight is None]
        if missing:
            raise UserError(f"data.dataset: {', '.join(missing)} has no weight, but others have; give each one")
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
