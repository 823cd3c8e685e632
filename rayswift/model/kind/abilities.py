"""Which tasks each kind of model can be used for, and the errors for the others; pure."""

from importlib.util import find_spec

from rayswift.config.derived import critic_start
from rayswift.config.model import SELF, ModelConfig
from rayswift.config.schema import RlhfConfig, TrainingConfig
from rayswift.config.tasks import TASKS
from rayswift.model.kind.kinds import Kind, Model, look, of_encoder, vocabulary

WRITING = frozenset((*(name for name, task in TASKS.items() if task.head == "causal_lm"), "infer"))
"""Tasks of models that generate text."""
JUDGING = frozenset(name for name, task in TASKS.items() if task.head in ("reward", "classes"))
"""Tasks with a head of outputs on a model's hidden states."""
EMBEDDING = frozenset(name for name, task in TASKS.items() if task.head == "none")
ALL = WRITING | JUDGING | EMBEDDING
NOTHING: frozenset[str] = frozenset()

TABLE: dict[Kind, frozenset[str]] = {
    "decoder": ALL,
    "headless decoder": JUDGING | EMBEDDING,
    "encoder": JUDGING | EMBEDDING,
    "encoder-decoder": NOTHING,
    "vision-language": NOTHING,  # except `TEXT_OF_SEVERAL`
    "sequence classifier": JUDGING | EMBEDDING,
    "other head": EMBEDDING,
    "adapter": NOTHING,
    "GGUF": NOTHING,
    "no model": NOTHING,
}
TEXT_OF_SEVERAL: dict[str, frozenset[str]] = {
    "gemma3": ALL,
    "gemma3n": WRITING,
    "gemma4": WRITING | EMBEDDING,
}
"""Families of images and text of which `transformers` loads the text model."""
READY_PACKED = ("bitsandbytes",)
"""Quantised weights on which an adapter can be trained."""

CRITICS = ("decoder", "headless decoder", "sequence classifier")
"""Kinds that the critic of task ppo can start from."""
_SCORES = ("rm", "reranker")
_INSTEAD = {
    "headless decoder": "name the model with its head (...ForCausalLM)",
    "encoder": "its attention looks both ways, so it does not write; name a decoder (...ForCausalLM), or train this "
    "one with --task_type embedding, seq_cls or reranker",
    "encoder-decoder": "no task here trains one; name a decoder (...ForCausalLM), or an encoder for embedding, seq_cls "
    "and reranker",
    "vision-language": "only text is trained here; name a text model",
    "sequence classifier": "it has no language-model head, and a new one would have random weights; name the language "
    "model (...ForCausalLM), or give this one to seq_cls, rm or reranker",
    "other head": "its new head would have random weights; name the model that it was made from",
    "GGUF": "those are weights for llama.cpp; name the model that they were made from, a folder or a hub id with "
    "safetensors",
    "no model": "name a folder with config.json and weights, or a hub id",
}  # fmt: skip


def problems(
    field: str,
    path: str,
    task: str,
    tuner: str = "lora",
    *,
    revision: str | None = None,
    random_init: bool = False,
    quantization: str | None = None,
) -> list[str]:
    """Reasons why a model cannot be used for a task (one of `ALL`); empty: it can, or it is not on this machine.

    field: the config's field; random_init: only its `config.json` is used; quantization: of the loaded weights.
    """
    model = look(path, revision)
    if model is None:
        return []
    what = f"{field} = {path!r} is {model.what}"
    if model.kind == "adapter":
        base = model.base or "BASE"
        return [
            f"{what}, not a model; give --model {base} --adapters {path}, or merge it with rayswift export --merge_lora"
        ]
    if task not in taken_for(model, random_init):
        return [f"{what}, which task {task} cannot take: {_INSTEAD[model.kind]}"]
    if random_init:
        return []
    if model.kind == "sequence classifier" and task in _SCORES and model.num_outputs != 1:
        return [f"{what} of {model.num_outputs} outputs, and task {task} trains one score; name its base model"]
    return _packing_problems(what, model, task, tuner, quantization)


def taken_for(model: Model, random_init: bool = False) -> frozenset[str]:
    """The tasks that a model can be used for."""
    if random_init and model.kind in ("headless decoder", "sequence classifier", "other head"):
        return TABLE["encoder"] if "bert" in model.model_type else TABLE["decoder"]  # with a new head
    if model.kind == "vision-language":
        return TEXT_OF_SEVERAL.get(model.model_type, NOTHING)
    return TABLE[model.kind]


def _packing_problems(what: str, model: Model, task: str, tuner: str, quantization: str | None) -> list[str]:
    packed = model.quantization
    if not packed or task == "infer":
        return []
    what, name = f"{what} with weights quantised by {packed}", "name the model that they were made from"
    if packed in READY_PACKED and find_spec(packed) is None:
        return [f"{what}, which needs the package {packed}; pip install {packed}"]
    if packed not in READY_PACKED:
        return [f"{what}, which cannot be trained; {name}, with --quantization nf4 if it must be small"]
    if tuner == "full":
        return [f"{what}, which are frozen; set --tuner lora, or {name}"]
    if TASKS[task].is_online:
        return [f"{what}, which engines cannot update; {name}"]
    return [f"{what} already; leave model.quantization out, or {name}"] if quantization else []


def score_problems(field: str, path: str) -> list[str]:
    """Reasons why a model cannot score completions; empty: it can, or it is not on this machine."""
    model = look(path)
    if model is None or model.kind == "adapter":
        return []
    if model.kind == "sequence classifier":
        if model.num_outputs == 1:
            return []
        return [f"{field} = {path!r} is {model.what} of {model.num_outputs} outputs, wanted one score"]
    return [
        f"{field} = {path!r} is {model.what}, whose score would be random numbers; give a checkpoint of task rm, or "
        "another model with a sequence-classification head of one output"
    ]


def label_problem(field: str, model: ModelConfig, num_labels: int | None) -> str:
    """The reason why a classifier cannot have this number of labels; empty: it can, or it gets a new head."""
    found = None if model.random_init else look(model.path, model.revision)
    if found is None or found.kind != "sequence classifier" or num_labels in (None, found.num_outputs):
        return ""
    return (
        f"{field} = {model.path!r} is {found.what} of {found.num_outputs} outputs, and the rows need {num_labels}; "
        "name its base model, for a new head"
    )


def training_problems(config: TrainingConfig) -> list[str]:
    """Reasons why a run cannot train its model or use its reference, if these are on this machine."""
    model, task = config.model, config.train.task
    found = problems(
        "model.path",
        model.path,
        task,
        model.tuner,
        revision=model.revision,
        random_init=model.random_init,
        quantization=model.quantization,
    )
    if isinstance(config, RlhfConfig) and config.model.reference:
        found += problems("model.reference", config.model.reference, task)
    if isinstance(config, RlhfConfig) and config.train.task == "ppo":
        found += _critic_problems(config)
    return found + (_teacher_problems(config) if isinstance(config, RlhfConfig) else [])


def _teacher_problems(config: RlhfConfig) -> list[str]:
    """Why a model cannot be the teacher of a run."""
    path, policy = config.model.teacher, config.model.path
    teacher = look(path) if path and path not in (SELF, policy) else None
    if path is None or teacher is None:
        return []
    what = f"model.teacher = {path!r} is {teacher.what}"
    if teacher.kind == "adapter":
        base = teacher.base or "its base"
        return [f"{what}, not a model; set model.teacher to {base}, and model.teacher_adapters to this folder"]
    if "infer" not in taken_for(teacher):
        return [f"{what}, and a teacher writes; {_INSTEAD[teacher.kind]}"]
    if teacher.quantization and not config.rollout.teacher_engines:
        return [
            f"{what} with weights quantised by {teacher.quantization}, which workers do not load; let engines hold it "
            "(rollout.teacher_engines), or name the model that they were made from"
        ]
    if _reads_other_tokens(path, policy):
        return [f"{what} whose tokenizer has other tokens than that of model.path, which it is to judge; name another"]
    return []


def _reads_other_tokens(path: str, policy: str) -> bool:
    """Whether the tokenizers of two models have different tokens, as far as both are on this machine."""
    tokens, of_policy = vocabulary(path), vocabulary(policy)
    return tokens is not None and of_policy is not None and tokens != of_policy


def _critic_problems(config: RlhfConfig) -> list[str]:
    """Reasons why a separate critic cannot start from its model."""
    path, field = critic_start(config)
    if path is None or config.train.trl_extra.get("critic", "shared") == "shared":
        return []
    critic, policy = look(path), look(config.model.path, config.model.revision)
    if critic is None:
        return []
    what = f"{field} = {path!r} is {critic.what}"
    instead = "name another model.critic_path, or set train.critic shared"
    if critic.kind == "adapter":
        return [f"{what}; merge it with rayswift export --merge_lora, {instead}"]
    if critic.kind == "sequence classifier" and critic.num_outputs != 1:
        return [f"{what} of {critic.num_outputs} outputs, and a critic has one; {instead}"]
    if critic.kind not in CRITICS or of_encoder(critic):
        return [f"{what}, and a critic reads from left to right, token by token; {instead}"]
    if policy and policy.vocab_size and critic.vocab_size and policy.vocab_size != critic.vocab_size:
        return [
            f"{what} of {critic.vocab_size} tokens, the policy has {policy.vocab_size}, and the critic reads the "
            f"policy's tokens; {instead}"
        ]
    if _reads_other_tokens(path, config.model.path):
        return [
            f"{what} whose tokenizer has other tokens than that of model.path, and the critic reads the policy's "
            f"tokens; {instead}"
        ]
    return _packing_problems(what, critic, "ppo", "full", None)


def remarks(field: str, path: str, task: str, revision: str | None = None) -> list[str]:
    """Parts of a model that are not used, for the plan."""
    model = look(path, revision)
    if model and task == "embedding" and model.kind in ("sequence classifier", "other head"):
        return [f"{field} = {path!r} is {model.what}: its head is left out, of training and of what is saved"]
    return []
