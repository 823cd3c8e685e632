"""Other rewards of a reward model than its score: a plugin of the user, or a judge that writes."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from rayswift.config import user_code
from rayswift.rollout.rewards.micro_batches import micro_batches

FIELD = "rollout.reward_model_plugins"
DEFAULT, GENERATIVE = "default", "genrm"
Plugin = Callable[[list[dict[str, Any]]], Any]
"""Conversations with the columns of their rows (`messages`, ...) -> a number or None (no opinion) for each."""

_SYSTEM = """\
You judge answers. Read the conversation and say step by step whether its last answer is correct, complete and to the \
point. Then end with one line of the form

Reward: x

where x is a number from 0 (wrong) to 1 (right in every respect)."""
_REWARD = re.compile(r"Reward:\s*(-?\d+(?:\.\d+)?)")
_MOST_NEW_TOKENS = 1024
_MOST_TOKENS = 32768  # questions and answers of a batch: 4 GiB of keys and values in a model of 8 B parameters


def load(written: str, model: Any, tokenizer: Any) -> Plugin:
    """Load the plugin of a name, made with (model, tokenizer).

    Raises:
        UserError: it cannot be imported.
    """
    made: Plugin = (GenerativeJudge if written == GENERATIVE else user_code.load(FIELD, written))(model, tokenizer)
    return made


def as_function(plugin: Plugin) -> Callable[..., Any]:
    """Return a plugin as a reward function, which is called, checked and retried like any other."""

    def score(prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any, **columns: Sequence[Any]) -> Any:
        rows = [{name: values[i] for name, values in columns.items()} for i in range(len(prompts))]
        return plugin(
            [
                {**row, "messages": [*prompt, *completion]}
                for row, prompt, completion in zip(rows, prompts, completions, strict=True)
            ]
        )

    return score


def reward_in(text: str) -> float | None:
    """Return the last reward that a judge states, from 0 to 1; None: it states none."""
    found = _REWARD.findall(text)
    value = float(found[-1]) if found else None
    return value if value is not None and 0 <= value <= 1 else None


class GenerativeJudge:
    """A language model that is asked for a reward and writes it."""

    def __init__(self, model: Any, tokenizer: Any):
        self._model, self._tokenizer = model, tokenizer

    def __call__(self, inputs: list[dict[str, Any]]) -> list[float | None]:
        """Return the reward that the judge writes for each conversation; None if it writes none.

        It depends on the conversation alone, not on the others of the call.

        Raises:
            ValueError: a conversation is too long for the judge.
        """
        texts = [self._question(each["messages"]) for each in inputs]
        ids = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        longest, most = max(map(len, ids)), self._model.config.get_text_config().max_position_embeddings
        if longest >= most:
            raise ValueError(f"{longest} tokens, the judge has {most} positions")
        rooms = [min(_MOST_NEW_TOKENS, most - len(each)) for each in ids]
        rewards: list[float | None] = [None] * len(ids)
        for room in sorted(set(rooms)):
            same = [i for i, each in enumerate(rooms) if each == room]
            for chosen in micro_batches([len(ids[i]) + room for i in same], _MOST_TOKENS):
                part = [same[i] for i in chosen]
                for i, answer in zip(part, self._written([ids[i] for i in part], room), strict=True):
                    rewards[i] = reward_in(answer)
        return rewards

    def _written(self, ids: list[list[int]], most_new_tokens: int) -> list[str]:
        import torch

        tokenizer = self._tokenizer
        batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(self._model.device)
        with torch.inference_mode():
            written = self._model.generate(
                **batch, do_sample=False, max_new_tokens=most_new_tokens, pad_token_id=tokenizer.pad_token_id
            )
        answers = written[:, batch["input_ids"].shape[1] :]
        return list(tokenizer.batch_decode(answers, skip_special_tokens=True))

    def _question(self, messages: Sequence[dict[str, Any]]) -> str:
        history = "\n\n".join(f"{message['role']}:\n{message['content']}" for message in messages)
        asked = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": f"The conversation:\n\n{history}"}]
        return str(self._tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
