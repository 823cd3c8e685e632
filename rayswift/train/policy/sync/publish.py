"""Publishes the policy's weights from the ranks to the engines."""

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from rayswift.engines.samples import PolicyVersion
from rayswift.engines.tensors import as_bytes, describe
from rayswift.engines.weights import BUCKET_BYTES, Bucket, Published, Transport
from rayswift.log import UserError
from rayswift.train.policy.sync import gather


class Publisher:
    """Publishes versions of a policy.

    Args:
        model: The trained model, without the wrapper of DeepSpeed or DDP.
        dtype: Number format in which engines compute, by torch's name.
        sends_adapter: Send only the adapter (`rollout.lora_sync`), to engines that have the weights below it.
        is_sender: Whether this rank sends: rank 0 does, the others help to gather.
        transport: How the bytes travel.
        bucket_bytes: Most bytes of tensors in one transfer.

    Raises:
        UserError: an engine would not use the weights as they are trained.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        dtype: str,
        sends_adapter: bool,
        is_sender: bool,
        transport: Transport,
        bucket_bytes: int = BUCKET_BYTES,
    ):
        self._model, self._is_sender = model, is_sender
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._sends_adapter = sends_adapter and isinstance(model, PeftModel)
        self._transport, self._bucket_bytes = transport, bucket_bytes
        if not self._sends_adapter:
            _refuse_own_head(model)

    def publish(self, version: PolicyVersion) -> Published | None:
        """Publish the current weights; a collective of all ranks, which returns None on those that do not send.

        When it returns, the weights may change.
        """
        adapter = None
        if self._sends_adapter:
            adapter, named = gather.adapter(self._model, self._is_sender)
            buckets = [self._send(named)] if self._is_sender else []
        else:
            gathered = gather.whole_model(self._model, self._dtype, self._is_sender, self._bucket_bytes)
            buckets = [self._send(named) for named in gathered if self._is_sender]
        if not self._is_sender:
            return None
        sizes = [size for _, size in buckets]
        return Published(version, tuple(bucket for bucket, _ in buckets), sum(sizes), adapter)

    def _send(self, named: gather.Named) -> tuple[Bucket, int]:
        data = [as_bytes(tensor) for _, tensor in named]
        infos = tuple(describe(name, tensor, raw) for (name, tensor), raw in zip(named, data, strict=True))
        return Bucket(infos, self._transport.send(data)), sum(raw.size for raw in data)


def _refuse_own_head(model: PreTrainedModel | PeftModel) -> None:
    """Refuse a trained head of a model with tied embeddings: engines take the head from the embedding."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    adapted = isinstance(embedding, BaseTunerLayer) or isinstance(head, BaseTunerLayer)
    if base.config.get_text_config().tie_word_embeddings and (adapted or embedding.weight is not head.weight):
        raise UserError(
            "the policy's head and embedding are trained apart (model.target_modules, model.modules_to_save) where its "
            "config ties them, so engines would not see it; leave both out of these",
            exit_code=1,
        )
