"""`rayswift tasks`: the tasks that this version trains, and what each can do.

What a task can do is asked of the checks that every command line passes: the table cannot promise what they refuse.
"""

from rayswift.config.checks.built import not_built, problems
from rayswift.config.load import Invocation, load
from rayswift.config.tasks import TASKS, Task

# What a user would set for it.
_ABILITIES = {
    "LoRA": ["--model.tuner", "lora"],
    "other adapters": ["--model.tuner", "vera"],
    "QLoRA": ["--model.tuner", "lora", "--model.quantization", "nf4", "--model.dtype", "bfloat16"],
    "ZeRO-3": ["--cluster.zero_stage", "3"],
}


def run(invocation: Invocation) -> None:
    """Print the table, in Markdown."""
    print(table())  # noqa: T201


def table() -> str:
    """A line per task of the trainer factory."""
    columns = ["task", "asked for with", "trainer", "packing", "padding-free", *_ABILITIES, "resume", "Liger"]
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    for name, task in TASKS.items():
        trainer = task.trainer.rpartition(":")[2].removeprefix("Streamed")
        # Packed documents are what padding-free batches are made of. All tasks save and continue by the same code.
        abilities = [task.packs, task.packs, *(can(task, flags) for flags in _ABILITIES.values()), True]
        cells = [name, f"`{task.verb}`", trainer, *("yes" if able else "no" for able in abilities), "untried"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def can(task: Task, flags: list[str]) -> bool:
    """Whether nothing more is refused with these flags than without them."""
    return set(_refusals(task, flags)) <= set(_refusals(task, []))


def _refusals(task: Task, flags: list[str]) -> list[str]:
    verb, *own = task.verb.rpartition(", ")[2].split()
    config = load(verb, ["--model", "m", "--data.dataset", "rows.jsonl", *own, *flags]).config
    return not_built(config) + problems(config)
