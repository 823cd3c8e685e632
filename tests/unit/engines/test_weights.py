"""Published weights: bytes and back, checksums, the store, gathering with and without an adapter."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, VeraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from rayswift.data.feed.feed import StaleAttempt
from rayswift.engines import weights
from rayswift.engines.samples import PolicyVersion
from rayswift.engines.tensors import as_bytes, as_tensors, describe, spooled
from rayswift.engines.weights import Bucket, Bytes, Published, WeightStore, checksum
from rayswift.log import UserError
from rayswift.model import tuners
from rayswift.train.policy.sync import canary, gather
from rayswift.train.policy.sync.publish import Publisher
from tests.conftest import TINY

FIRST, SECOND = PolicyVersion(1, 0), PolicyVersion(1, 1)


class Here:
    """A transport within the process, which copies as Ray's does and counts what is asked of it."""

    def __init__(self) -> None:
        self.sent: dict[int, tuple[Bytes, ...]] = {}
        self._handles = itertools.count()
        self.is_down = False

    def send(self, tensors: Sequence[Bytes]) -> int:
        handle = next(self._handles)
        self.sent[handle] = tuple(tensor.copy() for tensor in tensors)
        return handle

    async def receive(self, handle: int) -> Sequence[Bytes]:
        await asyncio.sleep(3600 if self.is_down else 0)
        return self.sent[handle]


def tiny(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(TINY)
    for name, value in changes.items():
        setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config)


def received(published: Published, transport: Here) -> dict[str, torch.Tensor]:
    tensors = asyncio.run(weights.fetch(published, transport, 10))
    return dict(as_tensors(tensors))


def publish(model: Any, transport: Here, adapter: bool = False, **options: Any) -> Published:
    publisher = Publisher(model, options.pop("dtype", "float32"), adapter, True, transport, **options)
    published = publisher.publish(FIRST)
    assert published
    return published


@given(st.binary(max_size=100), st.integers(0, 10**6), st.integers(1, 255))
def test_a_checksum_sees_a_changed_byte(data: bytes, place: int, by: int) -> None:
    first = np.frombuffer(data, np.uint8)
    second = first.copy()
    if len(second):
        second[place % len(second)] ^= by
        assert checksum(first) != checksum(second)
    assert checksum(first) == checksum(first.copy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (0, 4)])
def test_tensors_travel_as_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.arange(15).reshape(3, 5) if shape == (3, 5) else torch.ones(shape)).to(dtype)
    pairs = [(describe("a", tensor, as_bytes(tensor)), as_bytes(tensor))] * 2
    for copy in (list(as_tensors(pairs)), list(_through_spool(pairs))):
        assert [name for name, _ in copy] == ["a", "a"]
        assert all(torch.equal(each, tensor) and each.dtype == dtype for _, each in copy)


def _through_spool(pairs: Any) -> list[tuple[str, torch.Tensor]]:
    with spooled(pairs) as spool:
        return [(name, tensor.clone()) for name, tensor in spool]


@pytest.mark.parametrize("tied", [True, False])
def test_published_names_are_those_of_a_saved_model(tied: bool, tmp_path: Any) -> None:
    from safetensors.torch import load_file

    model, transport = tiny(tie_word_embeddings=tied), Here()
    published = publish(model, transport, bucket_bytes=1 << 18)
    assert len(published.buckets) > 3
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    got = received(published, transport)
    assert got.keys() == saved.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in saved.items())
    assert published.num_bytes == sum(tensor.numel() * 4 for tensor in saved.values())


def test_the_number_of_calls_follows_the_bytes_not_the_tensors() -> None:
    few, many = Here(), Here()
    publish(tiny(num_hidden_layers=1), few)
    publish(tiny(num_hidden_layers=8, layer_types=["full_attention"] * 8), many)
    assert len(few.sent) == len(many.sent) == 1


def test_weights_travel_in_the_engines_number_format() -> None:
    model, transport = tiny(), Here()
    got = received(publish(model, transport, dtype="bfloat16"), transport)
    assert all(tensor.dtype == torch.bfloat16 for tensor in got.values())
    assert torch.equal(got["model.norm.weight"], model.model.norm.weight.to(torch.bfloat16))


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "vera", "own_norms"])
def test_an_adapter_is_merged_into_a_copy(kind: str, starts: bool) -> None:
    """starts: the adapter as it was before the training is kept beside it, for the reference."""
    torch.manual_seed(1)
    configs: dict[str, Any] = {
        "lora": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
        "rslora": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"], use_rslora=True),
        "dora": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["v_proj", "up_proj"], use_dora=True),
        "vera": VeraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]),
        "own_norms": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["norm"]),
    }
    model: Any = get_peft_model(tiny(), configs[kind]).eval()
    if starts:
        tuners.keep_start(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    transport = Here()
    got = received(publish(model, transport), transport)
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0] and torch.equal(tensor, before[name][1]), name
    ids = torch.arange(40)[None]
    plain = tiny().eval()
    without = plain(ids).logits
    missing, unknown = plain.load_state_dict(got, strict=False)
    assert not unknown and missing in ([], ["lm_head.weight"])
    with torch.no_grad():
        assert (model(ids).logits - plain(ids).logits).abs().max() < 1e-5
        assert (without - plain(ids).logits).abs().max() > 1e-3


def test_an_adapter_travels_alone() -> None:
    model: Any = get_peft_model(tiny(), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    transport = Here()
    tuners.keep_start(model)
    published = publish(model, transport, adapter=True)
    assert published.adapter is not None and published.adapter["r"] == 4
    assert published.adapter["target_modules"] == ["q_proj"]
    got = received(published, transport)
    assert len(got) == 6 and all(".lora_" in name and ".default." not in name for name in got)


def test_a_head_apart_from_the_embedding_it_is_tied_to_is_refused() -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(UserError, match="trained apart"):
        Publisher(get_peft_model(tiny(), config), "float32", False, True, Here())


def test_only_the_sender_sends() -> None:
    transport = Here()
    assert Publisher(tiny(), "float32", False, False, transport).publish(FIRST) is None
    assert not transport.sent
    assert list(gather.whole_model(tiny(), None, keeps=False, bucket_bytes=1 << 30)) == [[]]


def test_damaged_and_late_weights_are_named() -> None:
    transport = Here()
    published = publish(tiny(), transport)
    transport.sent[0][2][5] += 1
    with pytest.raises(UserError, match=published.buckets[0].tensors[2].name):
        received(published, transport)
    transport.is_down = True
    with pytest.raises(TimeoutError):
        asyncio.run(weights.fetch(published, transport, 0.01))


def version(step: int, transport: Here, attempt: int = 1) -> Published:
    tensor = torch.full((4,), float(step))
    handle = transport.send([as_bytes(tensor)])
    bucket = Bucket((describe("a", tensor, as_bytes(tensor)),), handle)
    return Published(PolicyVersion(attempt, step), (bucket,), 16)


def test_the_store_keeps_the_newest_version_in_objects_of_its_own() -> None:
    async def story() -> None:
        transport = Here()
        store = WeightStore(transport)
        first, second = version(3, transport), version(4, transport)
        stale, kept = await asyncio.gather(store.keep(first), store.keep(second), return_exceptions=True)
        assert isinstance(stale, StaleAttempt)
        assert isinstance(kept, Published) and kept.version == second.version
        del transport.sent[first.buckets[0].handle], transport.sent[second.buckets[0].handle]  # the trainer dies
        [(_, tensor)] = as_tensors(await weights.fetch(kept, transport, 10))
        assert tensor[0] == 4
        with pytest.raises(StaleAttempt):
            await store.keep(first)
        await store.keep(version(2, transport, attempt=2))  # a later group, from an older checkpoint

    asyncio.run(story())


def test_a_store_says_when_the_bytes_were_lost_before_it_had_them() -> None:
    transport = Here()
    lost = version(1, transport)
    transport.sent.clear()
    with pytest.raises(KeyError):
        asyncio.run(WeightStore(transport).keep(lost))


def test_the_canary_measures_and_judges() -> None:
    ours = -np.arange(1, 28, dtype=np.float32)
    drifts = canary.drift(ours, {"engine-1": ours, "engine-2": ours + np.float32(0.5)})
    assert drifts == pytest.approx({"engine-1": 0, "engine-2": 0.5})
    canary.judge(SECOND, {"engine-1": 0.0}, 28, 0.1)
    for bad in (0.5, float("nan")):
        with pytest.raises(UserError, match=r"engine-2 by (0\.5|nan)"):
            canary.judge(SECOND, drifts | {"engine-2": bad}, 28, 0.1)


def test_stacked_experts_travel_as_checkpoints_hold_them(tmp_path: Any) -> None:
    from safetensors.torch import load_file
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3, max_position_embeddings=64,
    )  # fmt: skip
    model, transport = MixtralForCausalLM(config), Here()
    published = publish(model, transport, bucket_bytes=1 << 14)
    assert len(published.buckets) > 3
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    got = received(published, transport)
    assert got.keys() == saved.keys() and any(".experts.2." in name for name in got)
    assert all(torch.equal(got[name], tensor) for name, tensor in saved.items())
