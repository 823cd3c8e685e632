"""Section `rollout`: how completions are sampled, scored and brought to the trainer."""

from typing import Any, Literal

from pydantic import Field

from rayswift.config.section import Section, Strings


class RolloutConfig(Section):
    """Completions for the tasks grpo, ppo and gkd: sampling, rewards, engines."""

    max_prompt_length: int | None = Field(None, ge=1)
    """Tokens of the longest prompt; null: what `data.max_length` leaves beside the completion."""
    max_completion_length: int = Field(512, ge=1)
    """Tokens of the longest completion."""
    num_generations: int = Field(8, ge=1)
    """Completions of each prompt, which form its group; task grpo."""
    num_generations_eval: int | None = Field(None, ge=1)
    """Completions of each prompt in evaluations; null: as in training."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the most likely tokens of this total probability."""
    top_k: int = Field(-1, ge=-1)
    """Sample from so many most likely tokens; -1 or 0: from all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Leave out tokens less likely than this share of the most likely one."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Above 1: makes tokens that have occurred less likely."""
    stop: Strings = []
    """Strings that end a completion, besides the end-of-sequence token."""
    structured_outputs_regex: str | None = None
    """Regular expression that every completion is made to match."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables for the chat template when it renders prompts (`{"enable_thinking": false}`)."""
    reward_funcs: Strings = []
    """Reward functions: built-in names, `module:function` or `file.py:function`."""
    reward_models: Strings = []
    """Sequence-classification models whose scores are rewards, after those of the functions."""
    reward_weights: list[float] = []
    """Weight of each reward, functions first; empty: 1 each."""
    reward_kwargs: dict[str, dict[str, Any]] = {}
    """Arguments of reward functions, by the function's name."""
    dynamic_sampling: bool = False
    """Replace groups whose rewards are all equal by new prompts."""
    max_resamples: int = Field(3, ge=1)
    """How often dynamic sampling asks for new prompts in one step before it trains what there is."""
    max_staleness: int = Field(0, ge=0)
    """Policy versions that a completion may lag behind the trainer; 0: on-policy."""
    importance_sampling: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        "sequence_mask"
    )
    """How the difference between the engines' and the trainer's log-probabilities is corrected."""
    importance_sampling_max: float = Field(3.0, gt=0)
    """Ratio beyond which that correction truncates or masks."""
    num_engines: int | None = Field(None, ge=1)
    """vLLM engines; null: one per GPU that the trainers leave free, else 1."""
    placement: Literal["separate", "colocated"] = "separate"
    """Engines on devices of their own, or on the trainers', asleep while those compute."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs of one engine."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that an engine takes."""
    max_model_len: int | None = Field(None, ge=1)
    """Longest prompt and completion together in an engine; null: what the lengths above need."""
    max_num_seqs: int = Field(256, ge=1)
    """Sequences that an engine decodes at once."""
    lora_sync: Literal["merged", "adapter"] = "merged"
    """Send engines the merged weights of a LoRA policy, or the adapter alone."""
    engine_kwargs: dict[str, Any] = {}
    """Further arguments of the vLLM engine, under vLLM's names (`{"enforce_eager": true}`)."""
