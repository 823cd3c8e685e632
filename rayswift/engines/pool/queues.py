"""The requests that wait for an engine, and the choice of the engine.

A request goes to the engine with the fewest pending tokens among those whose weights are new enough. Requests of one
prompt go together if the load stays even, because an engine computes a prompt once.
"""

import heapq
import itertools
from collections.abc import Collection, Sequence

from rayswift.engines.pool.replica import Replica
from rayswift.engines.pool.work import Work


class Queues:
    """Requests without an engine, in their order, by the least number of rounds that their weights need."""

    def __init__(self) -> None:
        self._queues: dict[int, list[tuple[int, Work]]] = {}
        self._tries = itertools.count()

    @property
    def min_steps(self) -> Collection[int]:
        """Return the least numbers of rounds that waiting requests need."""
        return self._queues.keys()

    def put(self, work: Work) -> None:
        """Add a request, at its place in the order."""
        heapq.heappush(self._queues.setdefault(work.min_step, []), (work.order, work))

    def hand_out(self, replicas: Collection[Replica]) -> None:
        """Give requests to engines that can take them now."""
        for min_step in sorted(self._queues):
            queue = self._queues[min_step]
            takers = [replica for replica in replicas if replica.has_room and replica.status.takes(min_step)]
            if takers:
                self._assign(queue, takers)
            if not queue:
                del self._queues[min_step]

    def _assign(self, queue: list[tuple[int, Work]], replicas: Sequence[Replica]) -> None:
        """Assign requests in their order as long as an engine has room."""
        loads = [(replica.num_tokens_ahead, number, replica) for number, replica in enumerate(replicas)]
        heapq.heapify(loads)
        prompt, its_replica = None, None
        while queue and loads:
            ahead, number, least = loads[0]
            if not least.has_room:
                heapq.heappop(loads)
                continue
            if ahead != least.num_tokens_ahead:
                heapq.heapreplace(loads, (least.num_tokens_ahead, number, least))
                continue
            _, work = heapq.heappop(queue)
            if work.future.done():
                continue
            replica = least
            if its_replica is not None and work.request.prompt_ids is prompt and its_replica.has_room:
                # The remaining requests will balance a small excess of this engine.
                to_come = len(queue) * work.room / len(loads)
                if its_replica.num_tokens_ahead - ahead <= to_come:
                    replica = its_replica
            prompt, its_replica = work.request.prompt_ids, replica
            replica.give(work, f"{work.request.key}#{next(self._tries)}")
