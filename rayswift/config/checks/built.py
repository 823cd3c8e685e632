"""Settings that `--dry_run` resolves, but that this version cannot train yet."""

from rayswift.config.checks.data import data_problems
from rayswift.config.checks.model import missing_packages, model_problems
from rayswift.config.checks.task import task_problems
from rayswift.config.derived import rollout_of
from rayswift.config.fields.trl import tasks_with
from rayswift.config.fields.tuners import is_initialised_before, looks_at_rows, tuner_problems
from rayswift.config.model import ModelConfig
from rayswift.config.schema import SampleConfig, TrainingConfig
from rayswift.config.section import Section
from rayswift.config.tasks import TASKS
from rayswift.config.train import RlhfTrainConfig
from rayswift.log import UserError

# Fields of `train` and `cluster` of which only the default works yet.
_TRL = ("sync_ref_model",)
_GRPO = ("use_adaptive_entropy", "cast_lm_head_to_fp32", "router_aux_loss_coef")
_CLUSTER = ("sequence_parallel_size",)
_ROLLOUT = ("placement",)
# Fields of PEFT's LoraConfig that cannot be used, with the reason; all others are passed to PEFT.
_LORA_REFUSED = {
    "megatron_config": "it is for the parallel layers of Megatron",
    "megatron_core": "it is for the parallel layers of Megatron",
    "alora_invocation_tokens": "an adapter that acts only after some tokens can be neither merged nor sampled with",
    "lora_bias": "it can be merged only into layers that have a bias, and most have none",
    "layer_replication": "the model has more layers then than its config.json counts",
    "runtime_config": "it is not stored with the adapter",
    "use_qalora": "it is for GPTQ weights, and weights are quantized by bitsandbytes",
    "qalora_group_size": "it is for GPTQ weights, and weights are quantized by bitsandbytes",
    "loftq_config": "PEFT makes a LoftQ adapter on a GPU, where it has not been tried",
    "arrow_config": "it routes between adapters that are trained already",
    "velora_config": "it has a backward pass of its own, which has not been tried",
    "monteclora_config": "its penalty is a further term of the loss",
    "kasa_config": "it changes the weights below the adapter, and a checkpoint holds the adapter alone",
    "use_bdlora": "it is cut for engines that spread one adapter over several GPUs",
}
# Fields that train more than the two matrices; the weights for engines would lack that part.
_BESIDE_THE_MATRICES = ("bias", "trainable_token_indices", "target_parameters", "ensure_weight_tying")
_LORA_INITS = (True, "gaussian", "orthogonal")
# The reasons for other initialisations.
_OTHER_INITS = {"loftq": " (PEFT makes it on a GPU, where it has not been tried)"}


def is_unbuilt(path: str) -> bool:
    """Whether only the default of a field works, whatever else is set."""
    section, _, name = path.partition(".")
    tasks = tasks_with(name) if section == "train" and name not in RlhfTrainConfig.model_fields else []
    return (
        (section == "cluster" and name in _CLUSTER)
        or (section == "rollout" and name in _ROLLOUT)
        or (section == "train" and name in _TRL)
        or (bool(tasks) and name in _GRPO and tasks == ["grpo"])
    )


def not_built(config: TrainingConfig) -> list[str]:
    """The settings that this version cannot train, as `path = value`; empty: all work."""
    found = list[str]()
    if config.train.optim.endswith(("layerwise", "lomo")):
        found.append(f"train.optim = {config.train.optim} (it steps within the backward pass)")
    if config.train.optim == "grokadamw":
        found.append("train.optim = grokadamw (a continued run would differ: its state does not come back)")
    fields = (*_TRL, *_GRPO) if config.train.task == "grpo" else _TRL
    given = config.train.trl_extra
    found += [f"train.{name} = {given[name]}" for name in fields if given.get(name)]
    if config.train.task != "causal_lm":
        found += _untried(config)
    if rollout_of(config):
        found += _online_not_built(config)
    return found + _tuner_not_built(config.model) + _changed("cluster", config.cluster, _CLUSTER)


def _untried(config: TrainingConfig) -> list[str]:
    """Tuners that are not tested (training, saving, resuming) with a task other than causal_lm."""
    model, task = config.model, config.train.task
    found = []
    if model.tuner == "adalora":
        found.append("model.tuner = adalora (its penalty is a term of losses over tokens)")
    found += _changed("model", model, ("new_blocks", "lisa_layers"))
    if model.tuner not in ("full", "lora", "adalora") and not TASKS[task].other_adapters:
        found.append(f"model.tuner = {model.tuner}")
    if is_initialised_before(model) and (not TASKS[task].other_adapters or looks_at_rows(model)):
        why = " (it takes inputs and gradients of a loss over tokens)" if looks_at_rows(model) else ""
        found.append(f"model.tuner_kwargs.init_lora_weights = {model.tuner_kwargs['init_lora_weights']}{why}")
    if not TASKS[task].qlora:
        found += _changed("model", model, ("quantization",))
    return [f"{line} with task {task}" for line in found]


def _online_not_built(config: TrainingConfig) -> list[str]:
    """Settings that engines cannot follow: they are built from the `config.json` at `model.path`, and never sleep."""
    rollout = rollout_of(config)
    assert rollout is not None
    changes = _changed("model", config.model, ("new_special_tokens", "rope_scaling", "max_position_embeddings"))
    given = config.model.tuner_kwargs if config.model.tuner == "lora" else {}
    changes += [f"model.tuner_kwargs.{name} = {given[name]}" for name in _BESIDE_THE_MATRICES if name in given]
    return [f"{line} with task {config.train.task}" for line in changes] + _changed("rollout", rollout, _ROLLOUT)


def _tuner_not_built(model: ModelConfig) -> list[str]:
    found = []
    for name, value in model.tuner_kwargs.items() if model.tuner == "lora" else ():
        if name == "init_lora_weights" and not (value in _LORA_INITS or is_initialised_before(model)):
            found.append(f"model.tuner_kwargs.{name} = {value}{_OTHER_INITS.get(str(value), '')}")
        elif name in _LORA_REFUSED:
            found.append(f"model.tuner_kwargs.{name} = {value} ({_LORA_REFUSED[name]})")
    return found


def refuse_unbuilt(config: TrainingConfig) -> None:
    """Refuse a config that cannot be trained by this version or on this machine, before anything starts.

    Raises:
        UserError: one line for each such setting.
    """
    lines = static_problems(config)
    if lines:
        raise UserError("\n".join(lines))


def static_problems(config: TrainingConfig) -> list[str]:
    """One line for each setting that cannot be trained by this version, on this machine or at all, as far as the config
    alone shows it."""
    return problems(config) + missing_packages(config) + _unbuilt(not_built(config))


def problems(config: TrainingConfig) -> list[str]:
    """One line for each setting that cannot work in any version or on any machine."""
    # `rayswift sample` trains no adapter; it samples with the one that it is given.
    of_tuner = [] if isinstance(config, SampleConfig) else tuner_problems(config.model)
    return [*data_problems(config), *of_tuner, *task_problems(config), *model_problems(config)]


def _unbuilt(settings: list[str]) -> list[str]:
    return [f"{what}: not built yet in this version; --dry_run resolves it" for what in settings]


def _changed(name: str, section: Section, fields: tuple[str, ...]) -> list[str]:
    values = section.model_dump()
    defaults = {field: type(section).model_fields[field].default for field in fields}
    return [f"{name}.{field} = {values[field]}" for field in fields if values[field] != defaults[field]]
