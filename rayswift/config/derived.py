"""Values that follow from several fields of a config."""

from rayswift.config.fields.tasks import PpoFields
from rayswift.config.model import ModelConfig, ProblemType
from rayswift.config.rollout import RolloutConfig
from rayswift.config.schema import RlhfConfig, TrainingConfig
from rayswift.config.tasks import TASKS
from rayswift.config.train import TrainConfig


def rollout_of(config: TrainingConfig) -> RolloutConfig | None:
    """Section `rollout` of a run that samples completions; None: the run samples nothing."""
    return config.rollout if isinstance(config, RlhfConfig) and TASKS[config.train.task].is_online else None


def problem_type(model: ModelConfig) -> ProblemType:
    """The kind of labels, if `model.problem_type` leaves it open."""
    return model.problem_type or ("regression" if model.num_labels == 1 else "single_label_classification")


def keeps_reference(config: TrainingConfig) -> bool:
    """Whether the loss needs a reference model at every step."""
    extra = config.train.trl_extra
    task = TASKS[config.train.task]
    # Online tasks need it only for a KL term.
    without = extra.get("reference_free") or extra.get("precompute_ref_log_probs")
    kl = extra.get("kl_coef", PpoFields.kl_coef) if config.train.task == "ppo" else extra.get("beta")
    without = without or (task.is_online and not kl)
    return task.has_reference and not without


def compares_partners(config: TrainingConfig) -> bool:
    """Whether the loss has a KL term over mismatched answers."""
    return config.train.task == "kto" and config.train.trl_extra.get("loss_type", "kto") == "kto"


def max_prompt_length(config: RlhfConfig) -> int:
    """Tokens of the longest prompt."""
    rollout = config.rollout
    return rollout.max_prompt_length or config.data.max_length - rollout.max_completion_length


def max_sequence_length(config: RlhfConfig) -> int:
    """Most tokens of a prompt and its completion together; a completion ends at the end of the engine's window."""
    rollout = config.rollout
    whole = max_prompt_length(config) + rollout.max_completion_length
    if rollout.completion_length_limit_scope == "per_round":
        whole = max(whole, rollout.max_model_len or config.data.max_length)
    return min(whole, rollout.max_model_len or whole)


def micro_batch_tokens(config: RlhfConfig) -> int:
    """The token budget of a micro-batch of completions with their prompts."""
    return config.train.micro_batch_tokens or config.train.per_device_train_batch_size * max_sequence_length(config)


def round_size(config: RlhfConfig) -> int | None:
    """Completions of a round, between two publications of weights; None: the global batch is not known yet."""
    train = config.train
    batch = train.global_batch_size
    return None if batch is None else batch * round_shape(train)[0]


def round_shape(train: TrainConfig) -> tuple[int, int]:
    """Optimizer steps of one pass over a round, and passes over it."""
    given = train.trl_extra
    if train.task == "ppo":
        steps = given.get("num_mini_batches", PpoFields.num_mini_batches)
        return int(steps), int(given.get("num_ppo_epochs", PpoFields.num_ppo_epochs))
    return int(given.get("steps_per_generation") or 1), int(given.get("num_iterations") or 1)


def critic_start(config: RlhfConfig) -> tuple[str | None, str]:
    """The initial model of a separate critic of task ppo, and the field with its name; None: the policy's model."""
    if config.model.critic_path:
        return config.model.critic_path, "model.critic_path"
    models = config.rollout.reward_models
    return (models[0], "rollout.reward_models") if models else (None, "model.path")


def num_rewards(config: RlhfConfig) -> int:
    """The number of rewards of a completion: of functions, models and the environment."""
    rollout = config.rollout
    return len(rollout.reward_funcs) + len(rollout.reward_models) + (rollout.environment is not None)


def reward_weights(config: RlhfConfig) -> tuple[float, ...]:
    """The weight of each reward; without a weight, the environment's is 1."""
    weights, number = config.rollout.reward_weights, num_rewards(config)
    return (*weights, *(1.0,) * (number - len(weights)))
