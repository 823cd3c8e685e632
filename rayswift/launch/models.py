"""The models of a run: their sizes, their trained parts, and the devices that hold them; for the plan."""

from pathlib import Path

from rayswift.cluster.layout import Layout
from rayswift.config.checks.distillation import has_teacher_outside
from rayswift.config.derived import critic_start, keeps_reference, rollout_of
from rayswift.config.model import SELF, ModelConfig, adapters_of_reference, is_own_teacher, named_reference, whole_model
from rayswift.config.schema import RlhfConfig, SampleConfig, TrainingConfig
from rayswift.config.tasks import TASKS, Head
from rayswift.model.size import parameters as model_size
from rayswift.model.size import shapes

ModelSize = model_size.ModelSize


def is_half(config: TrainingConfig, layout: Layout) -> bool:
    """Whether `model.dtype` has 16 bits."""
    dtype = config.model.dtype
    return dtype in ("bfloat16", "float16") or (dtype == "auto" and layout.device == "cuda")


def size_of(model: ModelConfig, head: Head) -> ModelSize:
    """The size of a model with its tuner; raise OSError with the reason if it is not known."""
    found = shapes.find(model, head)
    return model_size.model_size(found.config, found.shapes, model, found.num_trainable, found.num_quantizable)


def critic_size(config: RlhfConfig) -> ModelSize | None:
    """The size of a critic that is a separate model; None: it is a head on the policy's states."""
    if _is_head(config):
        return None
    return size_of(whole_model(config.model, critic_start(config)[0]), "reward")


def size_in_worker(config: TrainingConfig) -> ModelSize:
    """The size of all models that a worker holds; raise OSError with the reason if it is not known."""
    model, head = config.model, TASKS[config.train.task].head
    size = size_of(model, head)
    if not isinstance(config, RlhfConfig):
        return size
    reference = _reference(config)
    if reference is not None:
        size = size.beside(size_of(whole_model(model, reference or None, quantizes=True), head))
    elif _keeps_start(config):
        size = size.with_reference_adapter()
    if config.train.task == "ppo":
        size = size.with_critic(critic_size(config))
    if _holds_teacher(config):
        size = size.beside(size_of(whole_model(model, config.model.teacher), head))
    return size


def _is_head(config: RlhfConfig) -> bool:
    """Whether the critic is a head on the policy's states."""
    return bool(config.train.trl_extra.get("critic", "shared") == "shared")


def _reference(config: RlhfConfig) -> str | None:
    """The path of a separate reference model, "" for the policy's initial weights; None: there is none."""
    named = named_reference(config.model) or ""
    return named if keeps_reference(config) and (named or config.model.tuner == "full") else None


def _keeps_start(config: RlhfConfig) -> bool:
    """Whether a frozen copy of the adapter that training continues makes the policy the reference."""
    return keeps_reference(config) and _reference(config) is None and bool(config.model.adapters)


def _holds_teacher(config: RlhfConfig) -> bool:
    """Whether each worker has a teacher beside the policy."""
    return bool(config.model.teacher) and not is_own_teacher(config.model) and not has_teacher_outside(config)


def describe(config: TrainingConfig, layout: Layout) -> list[str]:
    """A line for each model of a run that samples, or has a reference.

    Args:
        config: Resolved.
        layout: Of the run.
    """
    if not isinstance(config, RlhfConfig) or not (rollout_of(config) or keeps_reference(config)):
        return []
    return _Lines(config, layout).all()


class _Lines:
    def __init__(self, config: RlhfConfig, layout: Layout):
        self._config, self._layout, self._half = config, layout, is_half(config, layout)
        self._head = TASKS[config.train.task].head
        stage = config.cluster.zero_stage or 0
        self._workers = "each worker" if stage < 3 or layout.world_size == 1 else f"{layout.world_size} workers, spread"

    def all(self) -> list[str]:
        """The lines."""
        config = self._config
        found = [self._policy()]
        if isinstance(config, SampleConfig):
            return found + self._rewards()
        if config.train.task == "ppo":
            found.append(self._critic())
        return found + self._of_reference() + self._teachers() + self._rewards()

    def _policy(self) -> str:
        model, where = self._config.model, [] if isinstance(self._config, SampleConfig) else [self._workers]
        if self._layout.max_engines:
            where.append(f"{_number(self._layout.min_engines, self._layout.max_engines)} engine(s)")
        how = "not trained" if isinstance(self._config, SampleConfig) else ""
        path = " with ".join([model.path, *model.adapters]) if isinstance(self._config, SampleConfig) else model.path
        return _line("policy", path, self._weights(model, how), " and ".join(where))

    def _critic(self) -> str:
        config = self._config
        rounds = config.train.trl_extra.get("critic_warmup_rounds", 0)
        alone = f", trained alone in the first {rounds} round(s)" if rounds else ""
        if _is_head(config):
            return _line("critic", "a head on the policy's states", "trained", self._workers) + alone
        path = critic_start(config)[0]
        own = "weights, its adapter merged," if config.model.adapters else "weights"
        what = path or f"a copy of the policy's {own} with a head that begins at 0"
        return (
            _line("critic", what, self._weights(whole_model(config.model, path), head="reward"), self._workers) + alone
        )

    def _of_reference(self) -> list[str]:
        config, named = self._config, _reference(self._config)
        if named is not None:
            what = " with ".join(
                [named or "the policy's weights before training", *adapters_of_reference(config.model)]
            )
            return [_line("reference", what, self._frozen(named or None, quantizes=True), self._workers)]
        if _keeps_start(config):
            return [_line("reference", "the policy with its adapter before training", self._start(), self._workers)]
        without = "the policy without its adapter"
        return [_line("reference", without, "no memory", self._workers)] if keeps_reference(config) else []

    def _teachers(self) -> list[str]:
        model, rollout, engines = self._config.model, self._config.rollout, self._layout.teacher_engines
        lines = []
        for server in rollout.teacher_server:
            which = f"rows tagged {', '.join(server.tags)}" if server.tags else "all other rows"
            lines.append(_line("teacher", server.url, "a server", f"asked about {which}"))
        if model.teacher and is_own_teacher(model) and not has_teacher_outside(self._config):
            what = "the policy itself" if model.teacher == SELF else "the policy without its adapter"
            lines.append(_line("teacher", what, "no memory", self._workers))
        if model.teacher and engines:
            lines.append(_line("teacher", model.teacher, self._frozen(model.teacher), f"{engines} engine(s)"))
        if _holds_teacher(self._config):
            lines.append(_line("teacher", str(model.teacher), self._frozen(model.teacher), self._workers))
        return lines

    def _rewards(self) -> list[str]:
        rollout = self._config.rollout
        gpus = rollout.reward_model_gpus
        where = "a process " + (f"with {gpus:g} GPU(s)" if gpus else "on the CPU")
        return [_line("reward model", path, _on_disk(path), where) for path in rollout.reward_models]

    def _frozen(self, path: str | None, *, quantizes: bool = False) -> str:
        return self._weights(whole_model(self._config.model, path, quantizes=quantizes), "frozen")

    def _start(self) -> str:
        """The size of the copy of an adapter; without DeepSpeed, PEFT holds adapters in float32."""
        try:
            num_copied = size_of(self._config.model, self._head).num_trainable
        except OSError as error:
            return f"size not known: {error}"
        each = 2 if self._half and self._config.cluster.uses_deepspeed else 4
        return f"a copy of {_count(num_copied)} weights, frozen, {_bytes(num_copied * each)}"

    def _weights(self, model: ModelConfig, how: str = "", head: Head | None = None) -> str:
        """Numbers of weights and of trained ones, and their memory, without optimizer and gradients."""
        try:
            size = size_of(model, head or self._head)
        except OSError as error:
            return f"size not known: {error}"
        shares = size.num_parameters, size.num_trainable
        adapter = shares[1] if model.tuner != "full" else 0
        trained = how or (f"{_count(shares[1])} trained" if adapter or shares[1] < shares[0] else "all trained")
        # Without DeepSpeed, weights are trained in float32.
        is_half = self._half and (how or adapter or self._config.cluster.uses_deepspeed)
        held = "quantized" if model.quantization else _bytes((shares[0] + adapter) * (2 if is_half else 4))
        return f"{_count(shares[0])} weights, {trained}, {held}"


def _line(role: str, what: str, weights: str, where: str) -> str:
    return f"  {role:<14}{what} ({weights}): {where}"


def _number(fewest: int, most: int) -> str:
    return f"{fewest}" if fewest == most else f"{fewest} to {most}"


def _on_disk(path: str) -> str:
    """The size of the files of a model that is loaded without changes."""
    files = [*Path(path).glob("*.safetensors"), *Path(path).glob("*.bin")]
    return f"{_bytes(sum(file.stat().st_size for file in files))} of weights" if files else "not here yet"


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _bytes(number: float) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 1 << 30 else f"{number / 2**20:.1f} MiB"
