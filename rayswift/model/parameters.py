"""A table of the parameters of a model: all and trained ones, by kind."""

from collections import Counter

import torch

from rayswift.model.tuners import num_elements

# Parts of a parameter's name, and its kind; the first match counts.
_KINDS = (
    (("lm_head", "embed_out", "score"), "head"),
    (("embed", "wte", "wpe"), "embedding"),
    (("norm", "ln_"), "norm"),
    (("attn", "attention"), "attention"),
    (("mlp", "expert", "feed_forward", "ffn"), "mlp"),
)
# Parts of the names of PEFT's own parameters.
_ADAPTER = (
    *("lora_", "ranknum", "vera_", "boft_", "ia3_", "fourierft_", "hada_", "lokr_", "miss_"),
    *("modules_to_save", "trainable_"),
)


def kind_of(name: str) -> str:
    if any(part in name for part in _ADAPTER):
        return "adapter"
    return next((kind for parts, kind in _KINDS if any(part in name for part in parts)), "other")


def table(model: torch.nn.Module) -> list[str]:
    """Lines of kind, parameters, trained parameters; the last line has the sums and the trained share."""
    total: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        total[kind_of(name)] += num_elements(parameter)
        trained[kind_of(name)] += num_elements(parameter) if parameter.requires_grad else 0
    lines = [f"  {kind:<12}{count:>18,}{trained[kind]:>18,}" for kind, count in total.most_common()]
    share = 100 * trained.total() / max(1, total.total())
    lines.append(f"  {'all':<12}{total.total():>18,}{trained.total():>18,}  ({share:.3g} %)")
    return [f"parameters    {'total':>18}{'trained':>18}", *lines]
