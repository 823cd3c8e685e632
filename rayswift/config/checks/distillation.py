"""Checks of distillation from a teacher; before anything starts."""

from rayswift.config.derived import num_rewards, rollout_of
from rayswift.config.model import SELF
from rayswift.config.rollout import RolloutConfig
from rayswift.config.schema import RlhfConfig, TrainingConfig


def sampled_share(config: RlhfConfig) -> float:
    """The share of rounds whose completions are sampled; other rounds train the answers of the rows."""
    return float(config.train.trl_extra.get("lmbda", 0.5)) if config.train.task == "gkd" else 1.0


def trains_answers(config: RlhfConfig) -> bool:
    """Whether answers of rows are trained."""
    return sampled_share(config) < 1 and not teacher_writes(config)


def has_engines(config: RlhfConfig) -> bool:
    """Whether completions are sampled, in training or in evaluations."""
    return sampled_share(config) > 0 or bool(config.data.eval or config.data.eval_fraction)


def engines_of(config: TrainingConfig) -> RolloutConfig | None:
    """Section `rollout` of a run with engines, also with a teacher's engines only; None: the run has no engines."""
    if not isinstance(config, RlhfConfig) or not rollout_of(config):
        return None
    return config.rollout if has_engines(config) or config.rollout.teacher_engines else None


def is_sampling(config: TrainingConfig) -> bool:
    """Whether a run has engines that sample."""
    return isinstance(config, RlhfConfig) and rollout_of(config) is not None and has_engines(config)


def completions_per_prompt(config: RlhfConfig) -> int:
    """Completions of a prompt in training: the size of its group, or 1 if they are not compared."""
    return 1 if config.train.task == "gkd" else config.rollout.num_generations


def has_teacher_outside(config: RlhfConfig) -> bool:
    """Whether engines or servers score the completions, instead of a teacher in the workers."""
    scores = config.train.task == "grpo" or config.train.trl_extra.get("logits_topk")
    return bool(config.rollout.teacher_server or (config.rollout.teacher_engines and scores))


def teacher_writes(config: RlhfConfig) -> bool:
    """Whether the teacher writes the answers of rounds that the student does not sample."""
    return config.train.task == "gkd" and bool(config.train.trl_extra.get("seq_kd"))


def has_teacher(config: RlhfConfig) -> bool:
    """Whether there is a teacher of any kind."""
    return config.model.teacher is not None or bool(config.rollout.teacher_server)


def _outside_problems(config: RlhfConfig) -> list[str]:
    """Problems of a teacher outside of the workers."""
    model, rollout, given = config.model, config.rollout, config.train.trl_extra
    found = []
    if rollout.teacher_engines and model.teacher in (None, SELF):
        found.append("rollout.teacher_engines: name the model that they hold in model.teacher")
    if rollout.teacher_engines and model.teacher_adapters:
        found.append(
            "model.teacher_adapters: vLLM gives no log-probabilities of a prompt with an adapter; merge them "
            "(`rayswift export --merge_lora`) and give the folder as model.teacher, or set rollout.teacher_engines 0"
        )
    if rollout.teacher_server and model.teacher:
        found.append("model.teacher and rollout.teacher_server both name a teacher; keep one")
    tags = [tag for server in rollout.teacher_server for tag in server.tags]
    if len(set(tags)) < len(tags):
        found.append("rollout.teacher_server: a tag belongs to two servers; give each its own")
    if sum(not server.tags for server in rollout.teacher_server) > 1:
        found.append("rollout.teacher_server: two servers have no tags; give each the tags of its rows")
    if teacher_writes(config) and not rollout.teacher_engines:
        found.append(
            "train.seq_kd has the teacher write answers, which its engines do; set rollout.teacher_engines, 1 or more"
        )
    outside = bool(rollout.teacher_engines or rollout.teacher_server)
    if config.train.task == "gkd" and outside and not (given.get("logits_topk") or teacher_writes(config)):
        found.append(
            "train.logits_topk is not set: engines and servers give only a teacher's likeliest tokens; set how "
            "many, say 64, or let the teacher compute in the workers"
        )
    if config.train.task == "grpo" and rollout.teacher_server and rollout.temperature != 1:
        found.append(
            f"rollout.temperature = {rollout.temperature}: a server gives log-probabilities at temperature 1, which "
            "those of the policy are compared with; set it to 1, or name the model in model.teacher"
        )
    return found


def top_of(config: RlhfConfig) -> int:
    """Return the number of likeliest tokens that a teacher outside the workers is asked for at each token."""
    return int(config.train.trl_extra.get("logits_topk") or 0) if config.train.task == "gkd" else 0


def distillation_problems(config: RlhfConfig) -> list[str]:
    """One line for each setting of a run with a teacher, or of task gkd, that cannot be used."""
    model, given, found = config.model, config.train.trl_extra, _outside_problems(config)
    if model.teacher_adapters and model.teacher in (None, SELF):
        found.append("model.teacher_adapters: adapters go onto a model; name it in model.teacher")
    if model.teacher_adapters and config.cluster.zero_stage == 3:
        found.append(
            "model.teacher_adapters cannot be merged into a model that ZeRO-3 spreads; merge them (`rayswift export "
            "--merge_lora`) and give the folder as model.teacher, or set cluster.zero_stage 2"
        )
    compares = num_rewards(config) and config.train.task != "gkd" and config.rollout.num_generations > 1
    if config.rollout.dynamic_sampling and config.train.task != "ppo" and not compares:
        found.append(
            "rollout.dynamic_sampling has no rewards to compare, so that it would replace every group; unset it"
        )
    if config.train.task != "gkd":
        return found
    if not has_engines(config) and (config.rollout.reward_funcs or config.rollout.reward_models):
        found.append(
            "rollout.reward_funcs, rollout.reward_models: with train.lmbda = 0 and no rows to evaluate on, nothing is "
            "sampled that they could score; unset them, or set data.eval"
        )
    for name in ("lmbda", "beta"):
        if not 0 <= float(given.get(name, 0.5)) <= 1:
            found.append(f"train.{name} = {given[name]} is no share; set a number from 0 to 1")
    if given.get("sft_alpha", 0) < 0:
        found.append(f"train.sft_alpha = {given['sft_alpha']} would unlearn the answers; set 0 or more")
    if given.get("sft_alpha") and sampled_share(config) == 1:
        found.append(
            f"train.sft_alpha = {given['sft_alpha']} weighs the answers of rows, but train.lmbda = 1 trains none of "
            "them; lower it, or unset the first"
        )
    if (given.get("logits_topk") or 1) < 1:
        found.append(f"train.logits_topk = {given['logits_topk']}: set 1 or more, or null for all tokens")
    if given.get("loss_type", "nll") != "nll":
        found.append(f"train.loss_type = {given['loss_type']}: the loss of task gkd is set by train.beta; unset it")
    if config.rollout.temperature == 0:
        found.append("rollout.temperature = 0 divides all logits by 0; set it above 0")
    return found
