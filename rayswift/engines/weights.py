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
from rayswift.log import UserError

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
        import ray

        # In a list: otherwise Ray would fetch the object on every node that gets the manifest.
        return [ray.put(tuple(tensors))]

    async def receive(self, handle: Any) -> Sequence[Bytes]:
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
    """Copies versions into objects of its own process, so that they outlive the trainer; runs as an actor.

    Args:
        transport: How the bytes travel; None: through Ray's object store.
    """

    def __init__(self, transport: Transport | None = None):
        self._transport: Transport = transport or ObjectStore()
        self._newest: PolicyVersion | None = None
        self._kept: Published | None = None  # references that this process holds itself

    async def keep(self, published: Published) -> Published:
        """Return the same weights in objects that this process owns.

        Raises:
            StaleAttempt: a newer version came before or meanwhile.
        """
        self._check(published.version)
        self._newest, self._kept = published.version, None
        buckets = []
        for bucket in published.buckets:
            data = await self._transport.receive(bucket.handle)
            self._check(published.version)
            handle = await asyncio.to_thread(self._transport.send, data)
            buckets.append(replace(bucket, handle=handle))
        self._check(published.version)
        kept = self._kept = replace(published, buckets=tuple(buckets))
        return kept

    def _check(self, version: PolicyVersion) -> None:
        if self._newest and version < self._newest:
            raise StaleAttempt(f"weights {version} come after {self._newest}")


class Weights(Protocol):
    """Keeps published weights for engines that start after the trainer's death, see `weights.WeightStore`."""

    async def keep(self, published: Published) -> Published:
        """Return the same weights in objects that do not die with the trainer."""
