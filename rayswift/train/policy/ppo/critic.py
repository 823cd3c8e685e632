"""The critic: estimates the values of the states of completions.

It is a submodule of the policy, so that one DeepSpeed engine or DDP module trains both. Its weights are not sent to
vLLM engines, nor saved in a checkpoint's model folder. `shared` is a head on the policy's hidden states that the scorer
selects; `separate` is a second model with a head of one output, which reads the same tokens. A new head returns 0
everywhere.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rayswift.config.derived import critic_start
from rayswift.config.schema import RlhfConfig
from rayswift.log import UserError
from rayswift.model import whole
from rayswift.model.load import share_tied
from rayswift.model.tuners import starting_adapter
from rayswift.train.scored_positions import ScoredPositions

NAME = "critic"
"""Name of the module in the policy, and of the folder in a checkpoint."""
_PREFIX = f"{NAME}."
_HEAD = "value_head.safetensors"
_STATE = "state.json"


class Critic(torch.nn.Module):
    """Computes the values of states, within a forward pass of the policy.

    Args:
        network: A model with a head `score` of one output; None: a head on the policy's states.
        like: Gives hidden size and number format of the policy, for the head of a shared critic.
    """

    def __init__(self, network: PreTrainedModel | None, like: Any):
        super().__init__()
        self.network = network
        if network is None:
            embedding = like.get_input_embeddings().weight
            hidden_size = like.config.get_text_config().hidden_size
            self.score = torch.nn.Linear(hidden_size, 1, bias=False, dtype=embedding.dtype)
            torch.nn.init.zeros_(self.score.weight)
        self.leaves_policy = False
        """Whether the policy gets no gradient of the values."""
        self._positions: ScoredPositions | None = None if network is None else ScoredPositions(network)
        self._followed: Tensor | None = None
        self._values: Tensor | None = None

    def join(self, model: Any) -> None:
        """Become a submodule of the policy, plain or with its adapter, after the selection of states to score."""
        model.add_module(NAME, self)
        if self.network is not None:
            model.register_forward_hook(self._read, with_kwargs=True)
            return
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        base.base_model.register_forward_hook(self._judge)

    @contextmanager
    def asked(self, followed: Tensor) -> Iterator[None]:
        """Within the block, a forward pass of the policy also computes the values of the states after some tokens.

        Args:
            followed: [n] of the flattened input_ids.
        """
        self._followed = followed
        try:
            yield
        finally:
            self._followed = None

    def take(self) -> Tensor:
        """Return the values [n] of the last forward pass, float32."""
        values, self._values = self._values, None
        assert values is not None, "the policy was not asked for values"
        return values

    def _judge(self, backbone: torch.nn.Module, args: Any, output: Any) -> None:
        if self._followed is None:
            return
        states = output.last_hidden_state
        self._values = _values(self.score, states.detach() if self.leaves_policy else states)

    def _read(self, model: torch.nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        if self._followed is None or self.network is None:
            return
        assert self._positions is not None
        inputs = {name: value for name, value in kwargs.items() if name not in ("shift_labels", "fused_lm_head")}
        with self._positions.only(self._followed):
            states = self.network.base_model(**inputs).last_hidden_state
        self._values = _values(self.network.score, states)

    def save(self, folder: Path, state: Mapping[str, Tensor], values: Mapping[str, float]) -> None:
        """Save it beside a checkpoint's model: as the folder of a sequence classifier, or the head alone."""
        own, beside = own_state(state), folder / NAME
        beside.mkdir(exist_ok=True)
        if self.network is None:
            save_file({"score.weight": own["score.weight"].contiguous()}, beside / _HEAD)
        else:
            whole = {name.removeprefix("network."): tensor for name, tensor in own.items()}
            share_tied(self.network, whole)
            self.network.save_pretrained(beside, state_dict=whole)
        (beside / _STATE).write_text(json.dumps(dict(values)) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Load its weights from a checkpoint."""
        beside = folder / NAME
        if self.network is None:
            self.load_state_dict(load_file(beside / _HEAD))
            return
        saved = AutoModelForSequenceClassification.from_pretrained(beside, dtype=self.network.dtype)
        self.network.load_state_dict(saved.state_dict())


def saved_values(folder: Path) -> dict[str, float]:
    """Return the further values that `Critic.save` saved."""
    found: dict[str, float] = json.loads((folder / NAME / _STATE).read_text(encoding="utf-8"))
    return found


def own_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the critic's part of the whole model's state."""
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}


def policy_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the policy's part of the whole model's state."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}


def is_of_critic(model: torch.nn.Module) -> set[int]:
    """Return the ids of the critic's parameters in a model."""
    return {id(parameter) for name, parameter in model.named_parameters() if name.startswith(_PREFIX)}


def _values(score: torch.nn.Module, states: Tensor) -> Tensor:
    """Return values [n] of states [1, n, H] in the head's number format: autocast would round to three digits."""
    with torch.autocast(states.device.type, enabled=False):
        values: Tensor = score(states.to(score.weight.dtype)).float()[0, :, 0]
    return values


def make_critic(config: RlhfConfig, policy: Any, kind: str, initial: str) -> Critic:
    """Make the critic of a run; under ZeRO-3 a separate critic is sharded as the policy is.

    Args:
        config: The run's.
        policy: The policy's model, without a fresh adapter.
        kind: shared or separate.
        initial: Path or hub id of the policy's initial weights.

    Raises:
        UserError: the weights of a separate critic cannot be loaded, or have another vocabulary.
    """
    base = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    if kind == "shared":
        return Critic(None, base)
    path, field = critic_start(config)
    adapter = None if path else starting_adapter(config.model, Path(initial))
    return Critic(_network(path or initial, field, adapter, base, config.model.trust_remote_code), base)


def _network(path: str, field: str, adapter: Path | None, policy: Any, trusts_code: bool) -> PreTrainedModel:
    kwargs: dict[str, Any] = {"num_labels": 1, "dtype": policy.dtype, "trust_remote_code": trusts_code}
    kwargs["attn_implementation"] = policy.config._attn_implementation
    network, drawn = whole.load(AutoModelForSequenceClassification, path, f"{field} = {path!r}", **kwargs)
    if not isinstance(getattr(network, "score", None), torch.nn.Linear):
        raise UserError(
            f"{field} = {path!r}: a {type(network).__name__} has no head `score` on each state; name a decoder",
            exit_code=1,
        )
    if adapter:
        network = whole.merged(whole.put_on(network, adapter)).requires_grad_(True)  # PEFT has frozen it
    has, wanted = (model.config.get_text_config().vocab_size for model in (network, policy))
    if has != wanted:
        raise UserError(
            f"{field} = {path!r} has {has} tokens, the policy {wanted}, and the critic reads the policy's tokens; name "
            "another model.critic_path, or set train.critic shared",
            exit_code=1,
        )
    if any(name.startswith("score.") for name in drawn):
        with _whole(network.score.weight):
            torch.nn.init.zeros_(network.score.weight)
    network.config.use_cache = False
    return network


@contextmanager
def _whole(parameter: Any) -> Iterator[None]:
    """Gather a parameter that ZeRO-3 has sharded, to change it on all ranks."""
    if not hasattr(parameter, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        yield
