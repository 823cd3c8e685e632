"""Section `rollout`: how completions are sampled, scored and delivered to the trainer."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from rayswift.config.section import PathText, PathTexts, Section, Strings, ascending, one_or_range

# [least, most]
EngineRange = Annotated[list[int], AfterValidator(ascending)]


class TeacherServer(Section):
    """A server that scores completions."""

    url: str
    """Its URL."""
    tags: Strings = []
    """Tags of the rows that it scores; empty: all rows that no other server scores."""


def teacher_servers(value: Any) -> Any:
    """One URL, or the list as JSON, as a list."""
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("[") else [value]
    value = [value] if isinstance(value, dict) else value
    return [{"url": each} if isinstance(each, str) else each for each in value] if isinstance(value, list) else value


class EvalSet(Section):
    """An evaluation by sampling: its prompts and its sampling settings."""

    sources: PathTexts = []
    """Sources of `data.eval`, as written there; empty: all evaluation prompts."""
    num_generations: int = Field(1, ge=1)
    """Completions of each prompt."""
    temperature: float | None = Field(None, ge=0)
    """Sampling temperature; null: as in training."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the most likely tokens of this total probability; null: as in training."""
    top_k: int | None = Field(None, ge=-1)
    """Sample from this number of most likely tokens; null: as in training."""
    right_from: float = 1.0
    """Reward from which a completion counts as right, for pass@k."""


class RolloutConfig(Section):
    """Completions for the tasks grpo, ppo and gkd: sampling, rewards, engines."""

    @property
    def has_episodes(self) -> bool:
        """Whether completions have several turns, between which tools or an environment answer."""
        return bool(self.tools) or self.environment is not None

    max_prompt_length: int | None = Field(None, ge=1)
    """Most tokens of a prompt; null: the room that the completion leaves in `data.max_length`."""
    max_completion_length: int = Field(512, ge=1)
    """Most tokens of a completion."""
    num_generations: int = Field(8, ge=1)
    """Completions of each prompt; task grpo compares them with each other, for task ppo the default is 1."""
    num_generations_eval: int | None = Field(None, ge=1)
    """Completions of each prompt in evaluations; null: as in training."""
    eval: dict[str, EvalSet] = {}
    """Evaluations by name, each with sampling of its own (`{"greedy": {"temperature": 0}}`); empty: one, as in
    training."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the most likely tokens of this total probability."""
    top_k: int = Field(-1, ge=-1)
    """Sample from this number of most likely tokens; -1 or 0: from all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Leave out tokens less likely than this share of the most likely one."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Above 1: makes tokens that have occurred less likely."""
    stop: Strings = []
    """Strings that end a completion, besides the end-of-sequence token."""
    structured_outputs_regex: str | None = None
    """Regular expression that sampling makes every completion match; cannot be combined with `repetition_penalty`."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables for the chat template when it renders prompts; they override `data.chat_template_kwargs`."""
    reward_funcs: PathTexts = []
    """Reward functions: built-in names, `module:function` or `file.py:function`."""
    reward_models: PathTexts = []
    """Sequence-classification models whose scores are rewards, after those of the functions."""
    reward_model_plugins: PathTexts = []
    """How each of `reward_models` makes a reward: default (its score), genrm (it is asked for one, and writes it), or
    your own class as module:name or file.py:name; empty: default."""
    reward_weights: list[float] = []
    """Weight of each reward, functions first; empty: 1 each."""
    reward_kwargs: dict[PathText, dict[str, Any]] = {}
    """Arguments of reward functions, by the function's name."""
    reward_timeout_s: float = Field(60.0, gt=0)
    """Longest time for scoring one completion; then the function is stopped and tried once more; a call with several
    completions has in addition three times their usual time."""
    reward_workers: int | None = Field(None, ge=1)
    """Processes that run reward functions, spread over the nodes; null: one for each CPU that trainers, engines and
    data leave free, at least 1, at most 64."""
    reward_model_gpus: float = Field(0.0, ge=0)
    """GPUs that the process of each reward model holds; 0: it computes on the CPU."""
    tools: PathTexts = []
    """Functions that the model may call, with type hints and a docstring: built-in names, `module:function`,
    `file.py:function`, or `file.py` with verl's function tools; see `rollout/episodes/README.md`."""
    environment: PathText | None = None
    """Class whose instances answer the model, turn by turn: a built-in name, `module:Class`, `file.py:Class`, or
    `openenv:URL`; see `rollout/episodes/README.md`."""
    max_turns: int | None = Field(None, ge=1)
    """Most turns that the model writes in a completion with tools or an environment; null: as many as there is room
    for."""
    completion_length_limit_scope: Literal["total", "per_round"] = "total"
    """What `max_completion_length` limits: all turns with their answers, or each turn, while all together may fill
    `max_model_len` or else `data.max_length`."""
    tool_timeout_s: float = Field(60.0, gt=0)
    """Longest time that a call of a tool or of an environment may take."""
    max_tool_response_chars: int = Field(8192, ge=2)
    """Most characters of an answer of a tool or environment; of a longer one the middle is left out."""
    tool_workers: int | None = Field(None, ge=1)
    """Processes that run tools and environments, spread over the nodes; null: as many as `reward_workers` would be."""
    tool_threads: int = Field(16, ge=1)
    """Calls that one of these processes runs at a time; coroutines are not counted. Set 1 for code that is not safe for
    threads."""
    tool_schemas: list[dict[str, Any]] = []
    """JSON schemas that prompts show of the tools; empty: made from their type hints and docstrings at the start."""
    max_failed_fraction: float = Field(0.5, gt=0, le=1)
    """Share of prompts without a usable group (engines or rewards failed), judged from 100 prompts on, that stops the
    run."""
    dynamic_sampling: bool = False
    """Replace groups whose rewards, as they are combined, are all equal by new prompts."""
    oversampling: float = Field(0.0, ge=0)
    """Prompts sampled at once beyond those that a round still lacks, as a share of the prompts of a round; those that
    it does not need are sampled again for the next; with `dynamic_sampling`."""
    max_resamples: int = Field(3, ge=1)
    """Most prompts that may replace filtered and failed ones, as a multiple of the prompts of a round; then the round
    is trained with the prompts it has."""
    max_staleness: int = Field(0, ge=0)
    """Policy versions that a completion may lag behind the trainer; 0: on-policy."""
    importance_sampling: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        "token_truncate"
    )
    """How the difference between the log-probabilities of engines and trainer is corrected: by the ratio of each token,
    or of the whole completion, in which small differences of many tokens accumulate."""
    importance_sampling_max: float | None = Field(3.0, gt=0)
    """Ratio above which this correction truncates or masks; null: no upper bound."""
    importance_sampling_min: float | None = Field(None, gt=0)
    """Ratio below which this correction raises it to this value (truncate) or masks; null: no lower bound."""
    canary_steps: int = Field(10, ge=0)
    """Compare the log-probabilities of a fixed text in engines and trainer, at the first version of the weights and at
    every multiple of this number; 0: never."""
    max_logprob_drift: float = Field(0.1, gt=0)
    """Mean difference, in nats per token, above which the comparison of `canary_steps` stops the run."""
    num_engines: Annotated[Annotated[int, Field(ge=1)] | EngineRange | None, BeforeValidator(one_or_range)] = None
    """vLLM engines; a list [least, most]: as many as keep the trainer busy; null: one per GPU that the trainers leave
    free, else 1."""
    engine_place_timeout_s: float = Field(900.0, gt=0)
    """Longest time that requests may wait while the cluster has no room for any engine."""
    engine_start_timeout_s: float = Field(600.0, gt=0)
    """Longest time that an engine may take to start, once it has its place; then it is replaced."""
    engine_silence_timeout_s: float = Field(60.0, gt=0)
    """Time without an answer after which an engine is replaced; time spent loading weights does not count."""
    engine_stall_timeout_s: float = Field(600.0, gt=0)
    """Time without a token, although it has requests, after which an engine is replaced; time spent loading weights
    does not count."""
    load_timeout_s: float = Field(300.0, gt=0)
    """Longest time that an engine may take to load new weights; then it is replaced."""
    engine_resources: dict[str, float] = {}
    """Custom Ray resources that each engine holds, to place engines on nodes of their own (`{"rollout": 1}`)."""
    engine_threads: int | None = Field(None, ge=1)
    """CPU threads of an engine without a GPU; null: 1 on a cluster; on one machine, its cores are shared among the
    engines, and with the workers if these compute at the same time (`rollout.max_staleness` above 0)."""
    teacher_engines: int = Field(0, ge=0)
    """vLLM engines that hold `model.teacher` and score completions, with a place each like the others; 0: it computes
    in the workers."""
    teacher_server: Annotated[list[TeacherServer], BeforeValidator(teacher_servers)] = []
    """OpenAI-compatible vLLM servers that score completions, in place of `model.teacher`: a URL, or a list of `{"url":
    ..., "tags": [...]}`, each for rows with these tags, one without tags for all others."""
    teacher_tag_key: str = "dataset"
    """Column that holds a row's tag for `teacher_server`; dataset, where rows have no such column: the entry of
    `data.dataset` that the row came from."""
    placement: Literal["separate", "colocated"] = "separate"
    """Engines on devices of their own, or on those of the trainers, asleep while the trainers compute."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs of one engine."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that an engine takes."""
    max_model_len: int | None = Field(None, ge=1)
    """Most tokens of a prompt and its completion together in an engine; a completion ends there at the latest; null:
    the sum of the lengths above."""
    max_num_seqs: int = Field(256, ge=1)
    """Sequences that an engine decodes at once."""
    lora_sync: Literal["merged", "adapter"] = "merged"
    """Send engines the merged weights of a LoRA policy, or the adapter alone."""
    engine_kwargs: dict[str, Any] = {}
    """Further arguments of the vLLM engine, under vLLM's names (`{"enforce_eager": true}`)."""
