"""Measures the load and scales the pool to the size that the rule of `autoscale` wants."""

import asyncio

from rayswift.engines.pool.autoscale import Meter, Rule, Scale, Signals, look
from rayswift.engines.pool.pool import Pool
from rayswift.log import logger

_LOOK_EVERY_S = 1.0


class Scaler:
    """Looks once a second. If least and most are equal, the pool always has that size.

    Args:
        rule: The least and the most engines.
        pool: To be scaled.
        places: Requests that an engine holds at once.
    """

    def __init__(self, rule: Rule, pool: Pool, places: int):
        self._rule, self._pool, self._places = rule, pool, places
        self._scale = Scale(rule.least)
        self._clock = asyncio.get_running_loop().time
        now = self._clock()
        self._waits, self._idle = Meter(now), Meter(now)

    def trainer_waits(self, waits: bool) -> None:
        """Set whether a rank waits for completions from now on."""
        self._waits.set(float(waits), self._clock())

    async def run(self) -> None:
        """Scale the pool until the task is cancelled."""
        if self._rule.least == self._rule.most:
            return
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self._look(self._clock())

    def _look(self, now: float) -> None:
        counts = self._pool.statistics()
        under_way = counts.queued + counts.running
        self._idle.set(float(under_way == 0), now)
        # Engines that do not serve yet hold no requests; without any that serve there is nothing to measure.
        occupancy = under_way / (counts.serving * self._places) if counts.serving else None
        signals = Signals(self._waits.read(now), self._idle.read(now), occupancy, counts.joining)
        before, self._scale = self._scale.wanted, look(self._rule, self._scale, signals, now)
        if self._scale.wanted != before:
            logger.info(
                "engines: %d -> %d (the trainer waits %.0f %% of the time, engines are idle %.0f %%)",
                before,
                self._scale.wanted,
                100 * (signals.trainer_waits or 0),
                100 * (signals.engines_idle or 0),
            )
            self._pool.scale_to(self._scale.wanted)
