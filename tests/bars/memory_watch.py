"""A plugin and callback that measure the peak allocation of a training worker; for test_memory_estimate.py.

What counts are the pieces of 16 KiB and more that `malloc` has given out and not got back, beyond those it had when the
plugin was imported, which is before the model is loaded. PyTorch's CPU allocator takes every tensor from it, as do gloo
and oneDNN their buffers; the objects of Python and its libraries are smaller or come from elsewhere. So each storage
counts once however many views it has, shared memory that is mapped does not count, and pages do that nothing
has written to yet, as on a GPU. glibc maps such pieces one by one if it is set to, and `mallinfo2` sums them.
Weights that still lie in the file they came from are added: a CPU maps the file, where a GPU has a copy.
A thread looks every half millisecond; the moments that hold most last for whole copies or reductions.
"""

import ctypes
import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

_FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _MallInfo2(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in _FIELDS.split())


_M_MMAP_THRESHOLD = -3
_PIECE_BYTES = 16 << 10
_libc = ctypes.CDLL(None)
_libc.mallinfo2.restype = _MallInfo2


def allocated_bytes() -> int:
    """Of all pieces that are mapped one by one."""
    return int(_libc.mallinfo2().hblkhd)


def bytes_in_files(tensors: Iterable[torch.Tensor]) -> int:
    """Of the storages that lie in mapped model files."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    mapped = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines if line.endswith(".safetensors")]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(size for at, size in storages.items() if any(begin <= at < end for begin, end in mapped))


class _Highest(threading.Thread):
    """The most allocated since this began."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._before, self.most_bytes = allocated_bytes(), 0

    def run(self) -> None:
        while True:
            self.most_bytes = max(self.most_bytes, allocated_bytes() - self._before)
            time.sleep(0.0005)


_HIGHEST = _Highest()
if "RANK" in os.environ:  # the command itself imports this too, to check it
    assert _libc.mallopt(_M_MMAP_THRESHOLD, _PIECE_BYTES) == 1
    _HIGHEST.start()


class Watch(TrainerCallback):
    """Writes `memory-RANK.json`: the most bytes allocated until the last step, and the weights by kind."""

    def __init__(self) -> None:
        self._params: dict[str, int] = {}
        self._in_files = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._in_files = bytes_in_files(model.parameters())
        for parameter in model.parameters():
            key = f"{str(parameter.dtype).removeprefix('torch.')} {'trained' if parameter.requires_grad else 'frozen'}"
            size = getattr(parameter, "ds_numel", parameter.numel())
            self._params[key] = self._params.get(key, 0) + size

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seen = {"allocated": _HIGHEST.most_bytes + self._in_files, "parameters": self._params}
        Path(args.output_dir, f"memory-{os.environ['RANK']}.json").write_text(json.dumps(seen))
