"""The peak memory of a worker for each ZeRO stage; pure, without torch.

The peak is the largest of several moments: between forward and backward pass, with all activations; the reduction of
gradients at the end of the backward pass; the optimizer's step. The sizes are those that DeepSpeed 0.19 allocates
(`runtime/zero/stage_1_and_2.py`, `stage3.py`, `partitioned_param_coordinator.py`) with the settings of
`deepspeed.deepspeed_config`, or PyTorch's DistributedDataParallel without DeepSpeed.
"""

from dataclasses import dataclass

from rayswift.model.size.parameters import ModelSize
from rayswift.train.parallel.deepspeed import REDUCE_BUCKET

# DeepSpeed's defaults, in parameters: gathered at once, gathered by one call, stepped at once.
_MOST_GATHERED, _PREFETCHED, _SUB_GROUP = 1_000_000_000, 50_000_000, 1_000_000_000
# DistributedDataParallel broadcasts the weights at the start, in flat copies of this size.
_BROADCAST_BYTES = 250 << 20
# In units of the hidden size, in half precision. A checkpointed layer keeps its input. Otherwise it is 34 (Korthikanti
# et al., 2022, eq. 2), and half as much again for the unfused norms and gated MLPs of `transformers` (measured on an
# H100 with 0.31 B parameters and 4 x 2,048 tokens: 18.3 GiB in all, estimated 17.9).
_ACTIVATION_BYTES_PER_TOKEN_LAYER = {True: 2.0, False: 50.0}
# Logits in the model's precision and in float32, and their gradient.
_LOGIT_BYTES = 12
# In 4 bits, 64 weights share a scale of one byte, or of four bytes if scales are not quantized.
_SCALE_BYTES = {True: 1 / 64, False: 4 / 64}
# While a CPU quantizes a matrix to 4 bits: its weights, the scaled ones and their places in the code, 4 bytes each.
_QUANTIZING_BYTES = 12


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one worker's device at the peak.

    gradients: with the optimizer's float32 copy; buffers: buckets of gradients, gathered weights, copies for a cast.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers


@dataclass(frozen=True)
class _Moment:
    """Bytes at a moment besides the weights, and whether the optimizer's states exist."""

    gradients: float = 0.0
    buffers: float = 0.0
    activations: float = 0.0
    has_optimizer: bool = True


@dataclass(frozen=True)
class _Sharing:
    """How a training is shared between workers. bytes_each: of a trained weight."""

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

    zero_stage: 0 is PyTorch's DistributedDataParallel, without DeepSpeed. offload: none, optimizer or all; on CPUs it
    saves nothing. half: `model.dtype` has 16 bits. quantization: int8, nf4, fp4 or None, of the frozen weights;
    double_quantization: scales are quantized too. accumulates: a step has several micro-batches.
    """
    offload = "none" if device == "cpu" else offload
    bytes_each, trained = 2 if half else 4, size.num_trainable
    # Without DeepSpeed, trained weights are float32; TRL makes an adapter on quantized weights bfloat16.
    trained_bytes = 2.0 if quantization else 4.0 if zero_stage == 0 else float(bytes_each)
    is_full = size.num_trainable + size.num_frozen == size.num_parameters
    # The reference has the precision of the policy.
    reference = size.num_reference * (trained_bytes if is_full else bytes_each)
    packed = {None: float(bytes_each), "int8": 1.0}.get(quantization, 0.5 + _SCALE_BYTES[double_quantization])
    saved = size.num_quantizable * (bytes_each - packed)
    weights = trained * trained_bytes + size.num_frozen * bytes_each - saved + reference
    sharing = _Sharing(trained_bytes, world_size, device, offload != "none", accumulates)
    activations = _activations(size, bytes_each, tokens_per_micro_batch, gradient_checkpointing)
    if quantization:  # the matrix in use is unpacked
        activations += size.num_largest_matrix * bytes_each
    if zero_stage == 0:
        optimizer = trained * 2 * trained_bytes
        # DistributedDataParallel's buckets are the gradients; autocast keeps a 16-bit copy of each weight.
        moments = [_Moment(trained * trained_bytes, 2.0 * trained if half and is_full else 0.0, activations)]
        if world_size > 1:
            is_mixed = half or quantization is not None
            moments.append(_Moment(buffers=_broadcast(weights, trained * trained_bytes, is_mixed), has_optimizer=False))
    else:  # with float32 masters, also of float32 weights
        optimizer = trained * 12 / world_size
        moments = (_zero_3 if zero_stage == 3 else _zero_1_2)(size, sharing, activations, zero_stage == 1)
    if quantization in ("nf4", "fp4") and device == "cpu":
        moments.append(_Moment(buffers=_QUANTIZING_BYTES * size.num_largest_matrix, has_optimizer=False))
    if zero_stage == 3:
        weights /= world_size
    estimates = [
        MemoryEstimate(
            weights=0 if offload == "all" else int(weights),
            gradients=int(moment.gradients),
            optimizer=int(optimizer) if moment.has_optimizer and offload == "none" else 0,
            activations=int(moment.activations),
            buffers=int(moment.buffers),
        )
        for moment in moments
    ]
    return max(estimates, key=lambda needed: needed.total)


def _broadcast(weights: float, trained: float, is_mixed: bool) -> float:
    """DistributedDataParallel makes workers equal by two buckets at a time; a bucket has weights of one number format.

    is_mixed: trained weights have another format than frozen ones, so that their bucket lies between two of the others.
    """
    frozen = weights - trained
    if is_mixed and 0 < frozen <= 2 * _BROADCAST_BYTES:
        return min(frozen, _BROADCAST_BYTES) + min(trained, _BROADCAST_BYTES)
    return min(weights, 2 * _BROADCAST_BYTES)


def _activations(size: ModelSize, bytes_each: int, num_tokens: int, gradient_checkpointing: bool) -> float:
    per_layer = _ACTIVATION_BYTES_PER_TOKEN_LAYER[gradient_checkpointing] * size.hidden_size * bytes_each / 2
    layers = size.num_layers + (25 if gradient_checkpointing else 0)  # one layer at a time is recomputed in full
    return num_tokens * (per_layer * layers + size.vocab_size * _LOGIT_BYTES)


def _zero_1_2(size: ModelSize, sharing: _Sharing, activations: float, is_1: bool) -> list[_Moment]:
    whole = size.num_trainable * sharing.bytes_each
    part = 0.0 if sharing.offloads else whole / sharing.world_size
    bucket = min(REDUCE_BUCKET * sharing.bytes_each, whole)
    # A full bucket is reduced in a copy. After the first reduction the worker keeps its part; stage 2 also has the part
    # of earlier micro-batches, and stage 1 keeps all gradients until the last micro-batch.
    taken = part if bucket < whole else 0.0
    earlier = part if sharing.accumulates and not is_1 else 0.0
    reducing = _Moment(whole, max(bucket, taken)) if is_1 else _Moment(taken + earlier, 2 * bucket)
    kept = whole if sharing.accumulates and is_1 else earlier
    gathering = _Moment(buffers=whole if sharing.device == "cpu" else 0.0)  # gloo copies the new weights
    return [_Moment(kept, bucket, activations), reducing, _step(size, sharing, size.num_trainable), gathering]


def _zero_3(size: ModelSize, sharing: _Sharing, activations: float, _: bool) -> list[_Moment]:
    """The bucket and the worker's part of the gradients are kept for the whole run."""
    part = 0.0 if sharing.offloads else size.num_trainable * sharing.bytes_each / sharing.world_size
    bucket = min(REDUCE_BUCKET, size.num_trainable) * sharing.bytes_each
    copies = 2 if sharing.device == "cpu" else 1  # the bucket sorted by worker, and gloo's copy
    is_adapter = size.num_frozen == size.num_parameters
    gathered = size.num_parameters + (size.num_trainable if is_adapter else 0)
    live, call, next_call = min(gathered, _MOST_GATHERED), min(gathered, _PREFETCHED), 0
    if sharing.device == "cpu":  # gloo gathers the next parameters meanwhile: into a copy of their buffer
        next_call = 2 * min(gathered - call, _PREFETCHED)
    if sharing.world_size == 1:
        live = call = next_call = 0
    each = sharing.bytes_each
    step = _step(size, sharing, min(size.num_trainable, _SUB_GROUP * sharing.world_size))
    return [
        # Weights are gathered before the layers need them, each call into a buffer that is then copied.
        _Moment(part, bucket + each * (live + call + next_call)),
        _Moment(part, bucket + each * live, activations),
        _Moment(part, bucket * (1 + copies)),
        _Moment(step.gradients, step.buffers + bucket),
    ]


def _step(size: ModelSize, sharing: _Sharing, num_at_once: int) -> _Moment:
    """The worker's gradients: one by one in float64 for their norm, then flat, and the flat copy in float32."""
    if sharing.offloads:
        return _Moment()
    part, at_once = size.num_trainable / sharing.world_size, num_at_once / sharing.world_size
    flat = sharing.bytes_each * at_once
    cast = 4.0 * at_once if sharing.bytes_each < 4 else 0.0
    in_float64 = 8.0 * min(size.num_largest, part)
    return _Moment(sharing.bytes_each * part, max(flat + cast, in_float64))


def smallest_stage(available_bytes: int, world_size: int, estimates: list[MemoryEstimate]) -> int:
    """The lowest ZeRO stage that fits with a tenth to spare, or the one that needs least; 0 for one worker."""
    if world_size == 1:
        return 0
    for stage, needed in enumerate(estimates):
        if needed.total * 1.1 <= available_bytes:
            return stage
    return min(range(len(estimates)), key=lambda stage: estimates[stage].total)
