"""Converts torch tensors to bytes and back."""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from rayswift.engines.weights import Bytes, TensorInfo, checksum

_SHARED_MEMORY = "/dev/shm"
_ALIGN = 64


def as_bytes(tensor: torch.Tensor) -> Bytes:
    """Return the bytes [num_bytes] of a host tensor; without a copy if it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    data: Bytes = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    return data


def describe(name: str, tensor: torch.Tensor, data: Bytes) -> TensorInfo:
    """Describe a tensor for the receiver of its bytes."""
    return TensorInfo(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), checksum(data))


def as_tensors(tensors: Iterable[tuple[TensorInfo, Bytes]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and tensor of each; the tensors share the bytes and must not be written to."""
    for info, data in tensors:
        dtype = getattr(torch, info.dtype)
        if not data.size:
            yield info.name, torch.empty(info.shape, dtype=dtype)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the bytes are read-only
            flat = torch.from_numpy(data)
        yield info.name, flat.view(dtype).reshape(info.shape)


@dataclass(frozen=True)
class Spool:
    """Tensors in a file of shared memory, for the processes of a tensor-parallel engine; iterable as `as_tensors`."""

    path: str
    infos: tuple[TensorInfo, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        data = np.memmap(self.path, np.uint8, "r")
        places = zip(self.infos, self.offsets, self.sizes, strict=True)
        return as_tensors((info, data[begin : begin + size]) for info, begin, size in places)


@contextmanager
def spooled(tensors: Sequence[tuple[TensorInfo, Bytes]]) -> Iterator[Spool]:
    """Write the tensors where every process of this machine can map them."""
    with TemporaryDirectory(prefix="rayswift-weights-", dir=_SHARED_MEMORY) as folder:
        path, offsets = Path(folder) / "weights", []
        with open(path, "wb") as file:
            file.write(b"\0" * _ALIGN)  # an empty file cannot be mapped
            for _, data in tensors:
                file.seek(-(-file.tell() // _ALIGN) * _ALIGN)
                offsets.append(file.tell())
                file.write(data.data)
        yield Spool(
            str(path), tuple(info for info, _ in tensors), tuple(offsets), tuple(data.size for _, data in tensors)
        )


def write_adapter(folder: Path, config: dict[str, Any], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write an adapter as PEFT does."""
    from safetensors.torch import save_file

    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(dict(tensors), folder / "adapter_model.safetensors")
