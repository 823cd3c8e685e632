"""What a worker of a training holds when it holds most, for each ZeRO stage; pure, without torch.

Of the moments of a training the largest counts. Those of a step are the turn from forward to backward, with
all activations; the end of the backward pass, when gradients are reduced; and the optimizer's step. What each holds is
what DeepSpeed 0.19 allocates (`runtime/zero/stage_1_and_2.py`, `stage3.py`, `partitioned_param_coordinator.py`) with
the settings of `zero.deepspeed_config`, and PyTorch's DistributedDataParallel without it.
"""

from dataclasses import dataclass

from rayswift.model.size.parameters import ModelSize
from rayswift.train.parallel.deepspeed import REDUCE_BUCKET

# DeepSpeed's defaults, in parameters: those gathered at once, those gathered by one call, those stepped at once.
_MOST_GATHERED, _PREFETCHED, _SUB_GROUP = 1_000_000_000, 50_000_000, 1_000_000_000
# DistributedDataParallel makes all workers' weights one when it is made, in two flat copies of 250 MiB at a time.
_BROADCAST_BYTES = 2 * 250 << 20
# Times hidden size, in half precision. A checkpointed layer keeps its input; else Korthikanti et al. (2022, eq. 2)
# count 34, and `transformers`' unfused norms and gated MLPs half as much again (seen on an H100:
# 0.31 B parameters, 4 x 2,048 tokens, 18.3 GiB in all where this estimates 17.9).
_ACTIVATION_BYTES_PER_TOKEN_LAYER = {True: 2.0, False: 50.0}
# The head's logits in the model's precision and in float32, and their gradient.
_LOGIT_BYTES = 12
# In 4 bits, blocks of 64 weights share a scale of a byte, or of four if not quantized too.
_SCALE_BYTES = {True: 1 / 64, False: 4 / 64}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one worker's device when it holds most, by what they hold.

    Gradients are those of the backward pass and the optimizer's float32 copy; buffers are what communication needs:
    buckets of gradients, gathered weights, copies for a cast.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers


@dataclass(frozen=True)
class _Moment:
    """What a moment holds beside the weights, in bytes; and whether the optimizer has its states by then."""

    gradients: float = 0.0
    buffers: float = 0.0
    activations: float = 0.0
    has_optimizer: bool = True


@dataclass(frozen=True)
class _Sharing:
    """What the stages need to know: bytes of a trained weight, workers, and how gradients come to them."""

    bytes_each: float
    world_size: int
    device: str
    offloads: bool
    accumulates: bool


def estimate(
    size: ModelSize,
    *,
    zero_stage: int,
    offload: str,
    world_size: int,
    half: bool,
    tokens_per_micro_batch: int,
    gradient_checkpointing: bool,
    quantization: str | None = None,
    double_quantization: bool = True,
    accumulates: bool = False,
    device: str = "cuda",
) -> MemoryEstimate:
    """Memory of one worker under a ZeRO stage, with Adam.

    Args:
        size: The model.
        zero_stage: 0 to 3; 0 is PyTorch's DistributedDataParallel, without DeepSpeed.
        offload: none, optimizer or all; to the host's memory, so it saves none on CPUs.
        world_size: Data-parallel workers.
        half: Whether `model.dtype` is bfloat16 or float16, else float32.
        tokens_per_micro_batch: Rows times row length.
        gradient_checkpointing: Whether only layer inputs are kept.
        quantization: Of the frozen weights below an adapter: int8, nf4, fp4 or None.
        double_quantization: Whether the scales of nf4 and fp4 are quantized too.
        accumulates: Whether a step has several micro-batches.
        device: cpu or cuda. On CPUs, gloo copies what it gathers and scatters.
    """
    offload = "none" if device == "cpu" else offload
    bytes_each, trained = 2 if half else 4, size.num_trainable
    # Without DeepSpeed, all that is trained is float32; TRL makes an adapter on quantized weights bfloat16.
    trained_bytes = 2.0 if quantization else 4.0 if zero_stage == 0 else float(bytes_each)
    is_full = size.num_trainable + size.num_frozen == size.num_parameters
    # A reference is held as the policy is, so that both compute the same.
    reference = size.num_reference * (trained_bytes if is_full else bytes_each)
    packed = _bytes_packed(quantization, double_quantization)
    saved = size.num_quantizable * (bytes_each - packed) if packed else 0.0
    weights = trained * trained_bytes + size.num_frozen * bytes_each - saved + reference
    sharing = _Sharing(trained_bytes, world_size, device, offload != "none", accumulates)
    activations = _activations(size, bytes_each, tokens_per_micro_batch, gradient_checkpointing)
    if quantization:  # a matrix is unpacked whole while it is used
        activations += size.num_largest_matrix * bytes_each
    if zero_stage == 0:
        optimizer = trained * 2 * trained_bytes
        moments = _without_zero(size, sharing, activations, autocasts=half and is_full)
        if world_size > 1:
            moments.append(_Moment(buffers=min(_BROADCAST_BYTES, weights), has_optimizer=False))
    else:  # float32 masters, also of float32 weights
        optimizer = trained * 12 / world_size
        moments = (_zero_3 if zero_stage == 3 else _zero_1_2)(size, sharing, activations, zero_stage == 1)
    if zero_stage == 3:
        weights /= world_size
    held = (0.0 if offload == "all" else weights, optimizer if offload == "none" else 0.0)
    return max((_held_at(each, *held) for each in moments), key=lambda needed: needed.total)


def _held_at(moment: _Moment, weights: float, optimizer: float) -> MemoryEstimate:
    return MemoryEstimate(
        weights=int(weights),
        gradients=int(moment.gradients),
        optimizer=int(optimizer) if moment.has_optimizer else 0,
        activations=int(moment.activations),
        buffers=int(moment.buffers),
    )


def _bytes_packed(quantization: str | None, double_quantization: bool) -> float:
    """Of a weight that bitsandbytes packs."""
    if quantization in (None, "int8"):
        return 1.0 if quantization else 0.0
    return 0.5 + _SCALE_BYTES[double_quantization]


def _activations(size: ModelSize, bytes_each: int, num_tokens: int, gradient_checkpointing: bool) -> float:
    per_layer = _ACTIVATION_BYTES_PER_TOKEN_LAYER[gradient_checkpointing] * size.hidden_size * bytes_each / 2
    layers = size.num_layers + (25 if gradient_checkpointing else 0)  # one layer at a time is recomputed in full
    return num_tokens * (per_layer * layers + size.vocab_size * _LOGIT_BYTES)


def _without_zero(size: ModelSize, sharing: _Sharing, activations: float, autocasts: bool) -> list[_Moment]:
    """The buckets of DistributedDataParallel are the gradients; autocast keeps a copy of each weight in half."""
    gradients = size.num_trainable * sharing.bytes_each
    return [_Moment(gradients, 2.0 * size.num_trainable if autocasts else 0.0, activations)]


def _zero_1_2(size: ModelSize, sharing: _Sharing, activations: float, is_1: bool) -> list[_Moment]:
    whole = size.num_trainable * sharing.bytes_each
    part = 0.0 if sharing.offloads else whole / sharing.world_size
    bucket = min(REDUCE_BUCKET * sharing.bytes_each, whole)
    # A full bucket is reduced in a copy of it. The worker's part is taken out behind the first reduction, and stage 2
    # has it from earlier micro-batches too; stage 1 keeps all gradients until the last of them.
    taken = part if bucket < whole else 0.0
    earlier = part if sharing.accumulates and not is_1 else 0.0
    reducing = _Moment(whole, max(bucket, taken)) if is_1 else _Moment(taken + earlier, 2 * bucket)
    kept = whole if sharing.accumulates and is_1 else earlier
    gathering = _Moment(buffers=whole if sharing.device == "cpu" else 0.0)  # of the new weights, in a copy by gloo
    return [_Moment(kept, bucket, activations), reducing, _step(size, sharing, size.num_trainable), gathering]


def _zero_3(size: ModelSize, sharing: _Sharing, activations: float, _: bool) -> list[_Moment]:
    """Its bucket and its part of the gradients stay for the whole run."""
    part = 0.0 if sharing.offloads else size.num_trainable * sharing.bytes_each / sharing.world_size
    bucket = min(REDUCE_BUCKET, size.num_trainable) * sharing.bytes_each
    copies = 2 if sharing.device == "cpu" else 1  # the bucket sorted by workers, and gloo's own
    is_adapter = size.num_frozen == size.num_parameters
    gathered = size.num_parameters + (size.num_trainable if is_adapter else 0)
    live, call, next_call = min(gathered, _MOST_GATHERED), min(gathered, _PREFETCHED), 0
    if sharing.device == "cpu":  # gloo gathers the next into a copy meanwhile
        next_call = min(gathered - call, _PREFETCHED)
    if sharing.world_size == 1:
        live = call = next_call = 0
    each = sharing.bytes_each
    step = _step(size, sharing, min(size.num_trainable, _SUB_GROUP * sharing.world_size))
    return [
        # Weights are gathered far ahead of the layers that use them, each call into a buffer that is then copied.
        _Moment(part, bucket + each * (live + call + next_call)),
        _Moment(part, bucket + each * live, activations),
        _Moment(part, bucket * (1 + copies)),
        _Moment(step.gradients, step.buffers + bucket),
    ]


def _step(size: ModelSize, sharing: _Sharing, num_at_once: int) -> _Moment:
    """The part's gradients, one by one in float64 for their norm; then in one piece, and that in float32."""
    if sharing.offloads:
        return _Moment()
    part, at_once = size.num_trainable / sharing.world_size, num_at_once / sharing.world_size
    flat = sharing.bytes_each * at_once
    cast = 4.0 * at_once if sharing.bytes_each < 4 else 0.0
    in_float64 = 8.0 * min(size.num_largest, part)
    return _Moment(sharing.bytes_each * part, max(flat + cast, in_float64))


def smallest_stage(available_bytes: int, world_size: int, estimates: list[MemoryEstimate]) -> int:
    """The lowest ZeRO stage whose estimate fits with a tenth to spare, else the one that takes least; one worker has
    nothing to share, so 0."""
    if world_size == 1:
        return 0
    for stage, needed in enumerate(estimates):
        if needed.total * 1.1 <= available_bytes:
            return stage
    return min(range(len(estimates)), key=lambda stage: estimates[stage].total)
