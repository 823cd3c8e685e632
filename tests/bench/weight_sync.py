"""What handing new weights to engines costs, warm: a model of 100 M float32 parameters, one trainer, one engine.

    python -m tests.bench.weight_sync [--rounds 10] [--threads 1]

Medians over the rounds behind the first four: until then memory is touched for the first time. `copy` is a warm copy of
the same bytes in memory; `reload` is a vLLM engine in this process that takes the same tensors from its own memory.
Remote calls are counted for this model and for one of as many bytes in six times as many tensors.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rayswift.engines.engine import SamplingSettings
from rayswift.engines.samples import PolicyVersion
from rayswift.engines.vllm.engine import VllmEngine
from rayswift.engines.vllm.setup import EngineSetup, engine_options
from rayswift.engines.weights import Bytes, ObjectStore, WeightStore, fetch
from rayswift.train.policy.sync.publish import Publisher
from tests.bench.generated import TINY

WIDE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
WIDE |= {"num_key_value_heads": 16, "head_dim": 64}
DEEP = {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 52, "num_attention_heads": 6}
DEEP |= {"num_key_value_heads": 6, "head_dim": 64}
WARM_ROUNDS = 4


class Counted(ObjectStore):
    """The object store, and how often it was used."""

    def __init__(self) -> None:
        self.calls = 0

    def send(self, tensors: Sequence[Bytes]) -> Any:
        """See Transport."""
        self.calls += 1
        return super().send(tensors)


def model(folder: Path, shape: dict[str, int]) -> PreTrainedModel:
    """A model of random weights; its config goes to the folder."""
    config = AutoConfig.from_pretrained(TINY)
    for name, value in shape.items():
        setattr(config, name, value)
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    config.vocab_size = 4096
    config.save_pretrained(folder)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def copy_all(targets: list[Any], sources: list[Any]) -> None:
    """The same bytes from memory to memory."""
    for target, source in zip(targets, sources, strict=True):
        np.copyto(target, source)


def ask(method: Any, *arguments: Any) -> Any:
    """What an actor answers."""
    return ray.get(method.remote(*arguments), timeout=120)


def local_reload(setup: EngineSetup, policy: PreTrainedModel, rounds: int) -> list[float]:
    """Seconds of each reload in this process, from memory."""
    from rayswift.engines.vllm.core import VllmCore

    core = VllmCore(setup)
    published = Publisher(policy, "float32", False, True, ObjectStore()).publish(PolicyVersion(0, 0))
    assert published
    fetched = asyncio.run(fetch(published, ObjectStore(), 60))
    tensors = [(info, data.copy()) for info, data in fetched]
    seconds = [core.load(published, tensors) for _ in range(rounds)]
    core.close()
    return seconds


def measure(folder: Path, rounds: int, threads: int) -> dict[str, float]:
    """Median seconds of everything, warm."""
    policy = model(folder, WIDE)
    setup = EngineSetup(str(folder), SamplingSettings(1.0), 512, num_threads=threads)
    engine = ray.remote(VllmEngine).options(**engine_options({})).remote(setup)
    store = ray.remote(WeightStore).options(num_cpus=0).remote()
    ray.get(engine.start.remote())
    times: dict[str, list[float]] = {"copy": [], "publish": [], "store": [], "update": [], "pause": []}
    transport = Counted()
    publisher = Publisher(policy, "float32", False, True, transport)
    published: Any = None
    sources = [parameter.detach().numpy() for parameter in policy.parameters()]
    targets = [source.copy() for source in sources]
    for number in range(rounds):
        times["copy"].append(timed(partial(copy_all, targets, sources))[0])
        version = PolicyVersion(1, number)
        seconds, published = timed(partial(publisher.publish, version))
        times["publish"].append(seconds)
        seconds, published = timed(partial(ask, store.keep, published))
        times["store"].append(seconds)
        seconds, pause_s = timed(partial(ask, engine.load, version, published))
        times["update"].append(seconds)
        times["pause"].append(pause_s)
    found = {name: statistics.median(each[WARM_ROUNDS:]) for name, each in times.items()}
    found["num_bytes"] = published.num_bytes
    found["wide_tensors"], found["wide_calls"] = len(sources), transport.calls / rounds
    ray.get(engine.close.remote())
    ray.kill(engine)
    del published
    found["reload"] = statistics.median(local_reload(setup, policy, rounds)[WARM_ROUNDS:])
    deep, transport = model(folder / "deep", DEEP), Counted()
    Publisher(deep, "float32", False, True, transport).publish(PolicyVersion(0, 0))
    found["deep_tensors"], found["deep_calls"] = len(list(deep.parameters())), transport.calls
    found["deep_bytes"] = sum(parameter.numel() * 4 for parameter in deep.parameters())
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.rounds, options.threads)
    ray.shutdown()
    say = print
    say(f"{found['num_bytes'] / 1e6:.0f} MB in {found['wide_tensors']:.0f} tensors, {options.threads} thread(s)\n")
    say("| what | ms | against | ratio |")
    say("| --- | ---: | --- | ---: |")
    for name, base in [("copy", ""), ("publish", "copy"), ("store", "copy"), ("reload", ""), ("update", "reload")]:
        ratio = f"{found[name] / found[base]:.2f}" if base else ""
        say(f"| {name} | {found[name] * 1000:.0f} | {base} | {ratio} |")
    say(f"| pause | {found['pause'] * 1000:.0f} | reload | {found['pause'] / found['reload']:.2f} |")
    for name in ("wide", "deep"):
        size = found["num_bytes" if name == "wide" else "deep_bytes"] / 1e6
        tensors, calls = found[f"{name}_tensors"], found[f"{name}_calls"]
        say(f"\n{tensors:.0f} tensors, {size:.0f} MB: {calls:.0f} objects, 1 call to the store, 1 to each engine")
    json.dump(found, sys.stderr)


if __name__ == "__main__":
    main()
