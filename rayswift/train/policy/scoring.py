"""Log-probabilities of completion tokens through TRL's fused head, which never holds all logits."""

from typing import Any

from peft import PeftModel
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from rayswift.train.scored_positions import ScoredPositions


class Scorer:
    """Makes a causal language model answer with log-probabilities.

    Args:
        model: The model, plain or with an adapter; before it is wrapped for training.
        temperature: Divides logits; the temperature of the sampling.
        entropy: Whether to compute the entropy of each distribution too.
    """

    def __init__(self, model: Any, temperature: float, entropy: bool):
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        add_fused_lm_head(base, temperature, outputs=("log_probs", "entropy") if entropy else ("log_probs",))
        self._head = ScoredPositions(model)

    def __call__(self, model: Any, inputs: dict[str, Any], followed: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probability and entropy of some tokens, [n]; without entropies, the log-probability twice.

        Args:
            model: The model, in any wrapper.
            inputs: Its inputs, with input_ids [B, T].
            followed: [n] the position in the flattened input_ids at which each token is predicted.
            targets: [n] the tokens.
        """
        with self._head.only(followed):
            outputs = model(**inputs, shift_labels=targets[None], fused_lm_head=True, use_cache=False)
        logprobs = outputs.log_probs[0]
        return logprobs, logprobs if outputs.entropy is None else outputs.entropy[0]

    def logits(self, model: Any, inputs: dict[str, Any], followed: Tensor) -> Tensor:
        """Return logits [n, V] at some positions, by the model's own head; arguments as above."""
        with self._head.only(followed):
            outputs = model(**inputs, use_cache=False)
        logits: Tensor = outputs.logits[0]
        return logits
