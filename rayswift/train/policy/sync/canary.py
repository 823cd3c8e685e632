"""The canary: checks with the log-probabilities of a fixed text that engines have the trained weights.

If weights never arrive, nothing else fails: only the reward does not rise.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rayswift.engines.samples import PolicyVersion
from rayswift.log import UserError

# Common words of several languages, digits and code: most tokenizers cut it into many different tokens.
_TEXT = (
    "The 3 quick foxes said: 17 + 25 = 42. Warum nicht? Parce que la lune est loin. "
    "def f(x): return [x ** 2, -x]  # see https://example.org/a?b=c"
)
_MAX_TOKENS = 64


def probe_tokens(tokenizer: PreTrainedTokenizerBase, max_model_len: int) -> NDArray[np.int32]:
    """Return the fixed text [T], T >= 2, cut so that it and one sampled token fit into an engine."""
    ids = tokenizer(_TEXT, add_special_tokens=False)["input_ids"][: min(_MAX_TOKENS, max_model_len - 1)]
    return np.array(ids, np.int32)


def drift(ours: NDArray[np.float32], theirs: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """Return the mean absolute difference, in nats per token, of each engine's log-probabilities [T - 1]."""
    return {engine: float(np.abs(logprobs - ours).mean()) for engine, logprobs in theirs.items()}


def judge(version: PolicyVersion, drifts: Mapping[str, float], num_tokens: int, max_drift: float) -> None:
    """Stop the run if an engine has other weights than the trainer.

    Raises:
        UserError: with the difference of each engine.
    """
    wrong = {engine: value for engine, value in drifts.items() if not value <= max_drift}
    if not wrong:
        return
    figures = ", ".join(f"{engine} by {value:.3g}" for engine, value in wrong.items())
    raise UserError(
        f"engines do not hold the trainer's weights: after {version.step} rounds their log-probabilities of a fixed "
        f"text of {num_tokens} tokens differ from the trainer's, in nats per token: {figures}; more than "
        f"rollout.max_logprob_drift = {max_drift}\n  raise it only where the engines are meant to compute otherwise "
        "(another number format, quantization)",
        exit_code=1,
    )
