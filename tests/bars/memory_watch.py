"""A callback that measures what a training worker holds when its optimizer steps; for test_memory_estimate.py."""

import gc
import json
import os
from pathlib import Path
from typing import Any

import psutil
import torch
from deepspeed.runtime.base_optimizer import ZeROOptimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import TrainerCallback

_BEFORE_BYTES = psutil.Process().memory_info().rss


def tensor_bytes() -> int:
    """Of all tensors that Python knows, storages that they share once."""
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class Watch(TrainerCallback):
    """Writes `memory-RANK.json`: the most bytes of tensors at an optimizer step from the second on, when all states are
    there, what of it is weights by kind, and the most resident memory beyond that before the model came."""

    def __init__(self) -> None:
        self._most, self._step, self._params = 0, 0, {}  # type: ignore[var-annotated]

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for parameter in model.parameters():
            key = f"{str(parameter.dtype).removeprefix('torch.')} {'trained' if parameter.requires_grad else 'frozen'}"
            size = getattr(parameter, "ds_numel", parameter.numel())
            self._params[key] = self._params.get(key, 0) + size
        register_optimizer_step_pre_hook(self._look)

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        zero = getattr(optimizer, "optimizer", None)  # below accelerate's
        if state.global_step == 0 and isinstance(zero, ZeROOptimizer):  # it holds most before its own steps begin
            step = zero.step
            zero.step = lambda *given, **named: (self._look(), step(*given, **named))[1]

    def _look(self, *args: Any) -> None:
        if self._step >= 1:
            gc.collect()
            self._most = max(self._most, tensor_bytes())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step = state.global_step
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        peak = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
        seen = {"tensors": self._most, "resident": peak - _BEFORE_BYTES, "parameters": self._params}
        Path(args.output_dir, f"memory-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(seen))
