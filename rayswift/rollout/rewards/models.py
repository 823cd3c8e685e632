"""Reward models: the score of a sequence-classification checkpoint for a prompt and its completion, as TRL takes it."""

import asyncio
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayswift.data.tokenizer.loaded import load_with_padding
from rayswift.log import UserError, first_line, setup_worker
from rayswift.rollout.rewards import judges
from rayswift.rollout.rewards.functions import Item, RewardSpec, Value, call
from rayswift.rollout.rewards.micro_batches import micro_batches

_MOST_TOKENS = 16384


class ModelProcess:
    """The actor that holds a reward model: a folder or hub id, an adapter's folder included.

    The text is the conversation, rendered by the reward model's own chat template, or prompt and completion without a
    template if the policy is prompted without one.

    Args:
        path: The model.
        name: Of the reward.
        plugin: Makes the reward, see `judges`; `default`: the model's score.
        conversational: Whether prompts are conversations.
        trust_remote_code: See `model.trust_remote_code`.
        work_dir: Base of relative paths.
        log_dir: Where this process logs.
    """

    def __init__(
        self,
        path: str,
        name: str,
        plugin: str,
        conversational: bool,
        trust_remote_code: bool,
        work_dir: Path,
        log_dir: Path,
    ):
        self._path, self._name, self._plugin, self._conversational = path, name, plugin, conversational
        self._trust, self._work_dir, self._log_dir = trust_remote_code, work_dir, log_dir
        self._model: Any = None
        self._tokenizer: Any = None
        self._judge: Any = None

    def load(self) -> None:
        """Load the model.

        Raises:
            UserError: it cannot be loaded, does not give one score, or its plugin cannot be made.
        """
        setup_worker(self._log_dir, f"reward-model-{self._name}")
        if self._work_dir.is_dir():
            os.chdir(self._work_dir)
        import torch

        try:
            model = self._loaded()
            tokenizer = load_with_padding(self._path, self._trust)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"rollout.reward_models = {self._path!r} cannot be loaded: {first_line(error)}", 1
            ) from error
        if self._plugin == judges.DEFAULT and model.config.num_labels != 1:
            raise UserError(
                f"rollout.reward_models = {self._path!r} has {model.config.num_labels} outputs, wanted one score", 1
            )
        model.config.pad_token_id = tokenizer.pad_token_id
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._tokenizer = tokenizer
        if self._plugin != judges.DEFAULT:
            self._judge = judges.as_function(judges.load(self._plugin, self._model, tokenizer))
            self._loop = asyncio.new_event_loop()

    def _loaded(self) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

        from rayswift.model import whole
        from rayswift.model.find import find_model

        options: dict[str, Any] = {"trust_remote_code": self._trust}
        options["what"] = f"rollout.reward_models = {self._path!r}"
        if self._plugin != judges.DEFAULT:  # which may read the texts that a language model writes
            found = AutoConfig.from_pretrained(self._path, trust_remote_code=self._trust)
            is_classifier = any("SequenceClassification" in name for name in found.architectures or ())
            kind = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
            return whole.load(kind, self._path, **options)[0]
        folder = Path(self._path)
        is_adapter = (folder / "adapter_config.json").exists()
        weights = str(find_model(self._path, "rollout.reward_models").weights) if is_adapter else self._path
        model, drawn = whole.load(AutoModelForSequenceClassification, weights, num_labels=1, **options)
        if is_adapter:
            return whole.merged(whole.put_on(model, folder))
        if drawn:
            raise UserError(f"rollout.reward_models = {self._path!r} has no head for a score: it would be random", 1)
        return model

    def score(self, source: int, items: Sequence[Item]) -> list[Value] | str:
        """Return the model's score of each item, or a text with the reason why there is none. `source` is 0."""
        import torch

        if self._judge is not None:
            spec = RewardSpec(self._name, self._plugin)
            return call(spec, self._judge, items, conversational=True, loop=self._loop)
        ids = [self._tokenizer(self._text(item), add_special_tokens=False)["input_ids"] for item in items]
        most = self._model.config.get_text_config().max_position_embeddings
        values: list[Value] = [
            f"reward {self._name} failed: {len(one)} tokens, the reward model has {most} positions"
            if len(one) > most
            else None
            for one in ids
        ]
        fitting = [i for i, value in enumerate(values) if value is None]
        for chosen in micro_batches([len(ids[i]) for i in fitting], _MOST_TOKENS):
            part = [fitting[i] for i in chosen]
            batch = self._tokenizer.pad(
                {"input_ids": [ids[i] for i in part]}, padding_side="right", return_tensors="pt"
            )
            with torch.inference_mode():
                scores = self._model(**batch.to(self._model.device)).logits[:, 0].float().tolist()
            for i, score in zip(part, scores, strict=True):
                values[i] = score if math.isfinite(score) else f"reward {self._name} returned garbage: {score}"
        return values

    def _text(self, item: Item) -> str:
        if not self._conversational:
            return "".join(message["content"] for message in item.messages) + item.text
        return str(self._tokenizer.apply_chat_template([*item.messages, *item.answer], tokenize=False))
