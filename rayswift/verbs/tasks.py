"""`rayswift tasks`: the tasks of this version, and what each can do, according to the checks of the config."""

from rayswift.config.checks.built import not_built, problems
from rayswift.config.load import Invocation, load
from rayswift.config.tasks import TASKS, Task

# Ability -> flags that a user sets for it.
_ABILITIES = {
    "LoRA": ["--model.tuner", "lora"],
    "other adapters": ["--model.tuner", "vera"],
    "QLoRA": ["--model.tuner", "lora", "--model.quantization", "nf4", "--model.dtype", "bfloat16"],
    "ZeRO-3": ["--cluster.zero_stage", "3"],
}


def run(invocation: Invocation) -> None:
    print(table())  # noqa: T201


def table() -> str:
    """A Markdown table with a line for each task."""
    columns = ["task", "asked for with", "trainer", "packing", "padding-free", *_ABILITIES, "resume", "Liger"]
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    for name, task in TASKS.items():
        trainer = task.trainer.rpartition(":")[2].removeprefix("Streamed")
        # Padding-free batches are made of packed rows. All tasks save and resume with the same code.
        abilities = [task.packs, task.packs, *(can(task, flags) for flags in _ABILITIES.values()), True]
        cells = [name, f"`{task.verb}`", trainer, *("yes" if able else "no" for able in abilities), "untried"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def can(task: Task, flags: list[str]) -> bool:
    """Whether the checks accept these flags for the task."""
    return set(_refusals(task, flags)) <= set(_refusals(task, []))


def _refusals(task: Task, flags: list[str]) -> list[str]:
    verb, *own = task.verb.rpartition(", ")[2].split()
    config = load(verb, ["--model", "m", "--data.dataset", "rows.jsonl", *own, *flags]).config
    return not_built(config) + problems(config)
