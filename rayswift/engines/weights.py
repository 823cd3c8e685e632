"""Published weights: their format, the store that keeps them for later engines, and the transfer of their bytes.

A version is a list of buckets; a bucket is one object of raw tensors, so that the number of remote calls follows the
bytes, not the tensors. Every tensor has a checksum of its bytes, which each engine compares before it uses them. The
trainer puts the buckets (one copy). The `WeightStore` then copies them into objects of its own, because Ray's objects
die with the process that put them, and an engine may start after the death of the trainer.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rayswift.data.feed.feed import StaleAttempt
from rayswift.engines.samples import PolicyVersion
from rayswift.log import UserError, logger

Bytes = NDArray[np.uint8]
BUCKET_BYTES = 256 << 20


@dataclass(frozen=True)
class TensorInfo:
    """A published tensor: name as in a Hugging Face checkpoint, torch's name of its number format, checksum of its
    bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    checksum: int


@dataclass(frozen=True)
class Bucket:
    """Tensors that are sent together; `handle` is the transport's reference to their bytes."""

    tensors: tuple[TensorInfo, ...]
    handle: Any


@dataclass(frozen=True)
class Published:
    """A version of the weights, and where its bytes are.

    adapter: PEFT's config, if the tensors are a LoRA for weights that the engines have; None: they are the model.
    """

    version: PolicyVersion
    buckets: tuple[Bucket, ...]
    num_bytes: int
    adapter: Mapping[str, Any] | None = None


class Transport(Protocol):
    """Transfers the bytes of a bucket from a trainer to engines; Ray's object store serves any set of engines."""

    def send(self, tensors: Sequence[Bytes]) -> Any:
        """Send a bucket and return a picklable handle; the tensors may change after that."""

    async def receive(self, handle: Any) -> Sequence[Bytes]:
        """Return the bytes of a handle, read-only, in the order they were sent."""


class ObjectStore:
    """Ray's object store: one copy to send, none to receive on the same machine."""

    def send(self, tensors: Sequence[Bytes]) -> Any:
        """See Transport."""
        import ray

        # In a list of its own: Ray would otherwise fetch the object wherever the manifest goes.
        return [ray.put(tuple(tensors))]

    async def receive(self, handle: Any) -> Sequence[Bytes]:
        """See Transport."""
        [reference] = handle
        received: Sequence[Bytes] = await reference
        return received


def checksum(tensor: Bytes) -> int:
    """Return the sum of the bytes as 64-bit words, modulo 2^64; about as fast as reading memory."""
    flat = tensor.reshape(-1)
    whole = flat.size // 8 * 8
    total = int(np.sum(flat[:whole].view(np.uint64), dtype=np.uint64)) if whole else 0
    return (total + int.from_bytes(flat[whole:].tobytes(), "little")) % 2**64


async def fetch(published: Published, transport: Transport, timeout_s: float) -> list[tuple[TensorInfo, Bytes]]:
    """Return all tensors of a version, each compared with its checksum.

    Raises:
        TimeoutError: they did not arrive in time.
        UserError: the bytes differ from those published.
    """
    async with asyncio.timeout(timeout_s):
        received = await asyncio.gather(*(transport.receive(bucket.handle) for bucket in published.buckets))
    tensors: list[tuple[TensorInfo, Bytes]] = []
    for bucket, data in zip(published.buckets, received, strict=True):
        tensors += zip(bucket.tensors, data, strict=True)
    await asyncio.to_thread(_verify, published.version, tensors)
    return tensors


def _verify(version: PolicyVersion, tensors: Iterable[tuple[TensorInfo, Bytes]]) -> None:
    wrong = [info.name for info, data in tensors if checksum(data) != info.checksum]
    if wrong:
        raise UserError(
            f"weights of version {version} arrived damaged: the checksum of {', '.join(wrong[:3])} differs "
            f"({len(wrong)} tensors in all)",
            exit_code=1,
        )


class WeightStore:
    """Keeps the newest version, even if the trainer dies; runs as a named actor.

    Args:
        timeout_s: Longest time that copying a version may take.
        transport: How the bytes travel; None: through Ray's object store.
    """

    def __init__(self, timeout_s: float, transport: Transport | None = None):
        self._timeout_s = timeout_s
        self._transport: Transport = transport or ObjectStore()
        self._current: Published | None = None
        self._copying: asyncio.Task[None] | None = None

    async def publish(self, published: Published) -> None:
        """Accept a version; its bytes are copied in the background.

        Raises:
            StaleAttempt: a newer version was published by a later worker group.
        """
        if self._current and published.version < self._current.version:
            raise StaleAttempt(f"weights {published.version} come after {self._current.version}")
        if self._copying:
            self._copying.cancel()
        self._current = published
        self._copying = asyncio.create_task(self._adopt(published))

    async def current(self) -> Published | None:
        """Return the newest version, in the store's own objects once they are copied; None: nothing was published."""
        return self._current

    async def settled(self) -> bool:
        """Wait until the newest version is copied; False: its bytes were lost before."""
        if self._copying:
            await asyncio.wait([self._copying], timeout=self._timeout_s)
            return self._copying.done() and not self._copying.cancelled() and self._copying.exception() is None
        return False

    async def _adopt(self, published: Published) -> None:
        """Copy every bucket into an object that this process owns."""
        buckets = []
        try:
            async with asyncio.timeout(self._timeout_s):
                for bucket in published.buckets:
                    data = await self._transport.receive(bucket.handle)
                    handle = await asyncio.to_thread(self._transport.send, data)
                    buckets.append(replace(bucket, handle=handle))
        except Exception as error:  # the trainer died; the next group publishes anew
            logger.warning("weights %s were lost with their trainer: %s", published.version, error)
            raise
        if self._current is published:
            self._current = replace(published, buckets=tuple(buckets))


class Weights(Protocol):
    """Keeps published weights for engines that start after the trainer's death, see `weights.WeightStore`."""

    async def keep(self, published: Published) -> Published:
        """Return the same weights in objects that do not die with the trainer."""
