"""How many engines a run wants: the least number that keeps the trainer busy; pure.

    more, if the trainer waits for completions and the engines are full
    fewer, if engines are idle while the trainer never waits, or if they are almost empty

Each look adds the measurements since the last one. The rule judges means over a window, which begins again with every
change of the number. Growth follows the need: a trainer that waits half of its time wants twice the engines. A missing
measurement does not count as idleness. The number does not grow while engines are still joining, so a cluster without
room is asked once. The pool itself replaces dead engines.
"""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Signals:
    """Measurements since the last look; None: not measured.

    trainer_waits: share of the time that the trainer waited for completions; engines_idle: share of the time that no
    request was there; occupancy: mean requests per place in the serving engines, those queued included; joining:
    engines that do not serve yet.
    """

    trainer_waits: float | None
    engines_idle: float | None
    occupancy: float | None
    joining: int


@dataclass(frozen=True)
class Rule:
    """least, most: engines; window_s: of the means; up_after_s, down_after_s: observation that a change takes.

    up_waits: share of waiting that wants more engines, if these are filled to `up_occupancy`; down_waits: share up to
    which the trainer is kept busy; down_idle, down_occupancy: what wants fewer.
    """

    least: int
    most: int
    window_s: float = 60.0
    up_after_s: float = 15.0
    down_after_s: float = 120.0
    up_waits: float = 0.2
    up_occupancy: float = 0.5
    down_waits: float = 0.05
    down_idle: float = 0.3
    down_occupancy: float = 0.2


@dataclass(frozen=True)
class Scale:
    """wanted: engines; the means, and how long they have been observed since the last change."""

    wanted: int
    trainer_waits: float = 0.0
    engines_idle: float = 0.0
    occupancy: float = 0.0
    observed_s: float = 0.0
    looked_at: float | None = None
    joining: int = 0


_MOST_GROWTH = 2.0
# Engines kept beyond the present load, for the next wave.
_SPARE = 1.2


def look(rule: Rule, scale: Scale, signals: Signals, now: float) -> Scale:
    """Return the next state; its `wanted` is within `rule.least` and `rule.most`.

    Args:
        rule: Of the run.
        scale: Result of the last look, or `Scale(rule.least)`.
        signals: Measurements since then.
        now: Seconds, of any clock that does not go back.
    """
    measured = (signals.trainer_waits, signals.engines_idle, signals.occupancy)
    joined = scale.joining > 0 and signals.joining == 0
    seen = replace(scale, looked_at=now, joining=signals.joining)
    if None in measured or joined or scale.looked_at is None:
        return replace(seen, observed_s=0.0)
    seen = _averaged(rule, seen, signals, now - scale.looked_at)
    wanted = min(rule.most, max(rule.least, _wanted(rule, seen)))
    return seen if wanted == scale.wanted else replace(seen, wanted=wanted, observed_s=0.0)


def _averaged(rule: Rule, scale: Scale, signals: Signals, passed_s: float) -> Scale:
    assert signals.trainer_waits is not None and signals.engines_idle is not None and signals.occupancy is not None
    # Plain means at first, then means that forget what is older than the window.
    observed_s = scale.observed_s + passed_s
    weight = passed_s / min(observed_s, rule.window_s) if passed_s > 0 else 0.0
    weight = min(1.0, weight)
    return replace(
        scale,
        trainer_waits=scale.trainer_waits + weight * (signals.trainer_waits - scale.trainer_waits),
        engines_idle=scale.engines_idle + weight * (signals.engines_idle - scale.engines_idle),
        occupancy=scale.occupancy + weight * (signals.occupancy - scale.occupancy),
        observed_s=observed_s,
    )


def _wanted(rule: Rule, scale: Scale) -> int:
    starved = scale.trainer_waits >= rule.up_waits and scale.occupancy >= rule.up_occupancy
    if starved and scale.joining == 0 and scale.observed_s >= rule.up_after_s:
        factor = min(_MOST_GROWTH, 1 / max(1 - scale.trainer_waits, 1 / _MOST_GROWTH))
        return max(scale.wanted + 1, math.ceil(scale.wanted * factor))
    if scale.observed_s < rule.down_after_s:
        return scale.wanted
    if scale.trainer_waits <= rule.down_waits and scale.engines_idle >= rule.down_idle:
        needed = math.ceil(scale.wanted * (1 - scale.engines_idle) * _SPARE)
    elif scale.occupancy <= rule.down_occupancy:
        needed = math.ceil(scale.wanted * scale.occupancy / rule.up_occupancy * _SPARE)
    else:
        return scale.wanted
    return max(math.ceil(scale.wanted / _MOST_GROWTH), min(scale.wanted - 1, needed))


class Meter:
    """Time average of a value since the last reading; the value is constant between two calls of `set`."""

    def __init__(self, now: float):
        self._value, self._area = 0.0, 0.0
        self._since = self._read_at = now

    def set(self, value: float, now: float) -> None:
        """Set the value from now on."""
        self._area += self._value * (now - self._since)
        self._value, self._since = value, now

    def read(self, now: float) -> float | None:
        """Return the mean since the last call; None if no time has passed."""
        self.set(self._value, now)
        passed_s = now - self._read_at
        mean = self._area / passed_s if passed_s > 0 else None
        self._area, self._read_at = 0.0, now
        return mean
