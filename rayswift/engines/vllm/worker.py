"""A mixin for vLLM's worker: loads weights in place, and has the model return the policy's log-probabilities."""

from collections.abc import Iterable
from typing import Any


class PolicyWorker:
    """A mixin for vLLM's worker, which has the model."""

    model_runner: Any
    vllm_config: Any

    def load_in_place(self, tensors: Iterable[tuple[str, Any]]) -> None:
        """Replace the weights by the tensors of a whole checkpoint.

        `reload_weights` of vLLM 0.29 does the same, but only logs which weights it did not replace.
        """
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        model = self.model_runner.get_model()
        wanted = {name for name, _ in model.named_parameters()}
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(model)
            try:
                loaded = model.load_weights(tensors)
            except Exception:
                for info in map(get_layerwise_info, model.modules()):  # otherwise it would count at the next load
                    info.loaded_weights, info.load_numel = [], 0
                raise
            finally:
                finalize_layerwise_reload(model, self.vllm_config.model_config)
        missing = sorted(wanted - loaded) if loaded is not None else []
        if missing and self.vllm_config.quant_config is None:
            raise ValueError(f"the published weights lack {', '.join(missing[:3])} ({len(missing)} in all)")
        _pack_embeddings(model)

    def put_policy_before_sampling(self, temperature: float, normalised: bool) -> None:
        """Have the model return the logits of the policy: divided by the temperature, in float32.

        vLLM 0.29 reports log-probabilities before the temperature (its raw modes, after the mask of a regular
        expression) or after all that `sampling` leaves out (its processed ones). The trainer computes neither of these,
        but the whole distribution at the temperature. If logits are normalised here, they are its log-probabilities,
        and vLLM reports them for sampled tokens (raw_logits), before any mask. A repetition penalty depends on
        the sign of logits: with one they are not normalised here, and raw_logprobs normalises them before the penalty.

        Raises:
            ValueError: vLLM computes the model's logits in another way.
        """
        from vllm.lora.layers import LogitsProcessorWithLoRA
        from vllm.model_executor.layers.logits_processor import LogitsProcessor

        def policy_logits(layer: Any, args: Any, logits: Any) -> Any:
            if logits is None:  # this rank does not sample
                return None
            logits = logits.float() / temperature
            return logits.log_softmax(-1) if normalised else logits

        layers = [*self.model_runner.get_model().modules()]
        wrapped = {layer.base_layer for layer in layers if isinstance(layer, LogitsProcessorWithLoRA)}
        ends = [each for each in layers if isinstance(each, LogitsProcessor | LogitsProcessorWithLoRA)]
        if not ends:
            raise ValueError("the model has no LogitsProcessor, which its log-probabilities come from")
        for end in ends:
            if end not in wrapped:
                end.register_forward_hook(policy_logits)


def _pack_embeddings(model: Any) -> None:
    """Renew the packed copy with which a head tied to the embedding computes on CPUs; a reload leaves it stale."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding) and "cpu_linear" in vars(layer):
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
