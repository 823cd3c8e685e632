"""`rayswift tasks`: the tasks that this version trains, and what each can do."""

from rayswift.config.load import Invocation
from rayswift.train.tasks import TASKS


def run(invocation: Invocation) -> None:
    """Print the table, in Markdown."""
    print(table())  # noqa: T201


def table() -> str:
    """A line per task of the trainer factory."""
    lines = [
        "| task | asked for with | rows | trainer | packing | padding-free | end of the data |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, task in TASKS.items():
        packs = "yes" if task.packs else "no"
        end = "an incomplete batch is named `tail`" if task.mean_over_rows else "every row is trained"
        trainer = task.trainer.rpartition(":")[2].removeprefix("Streamed")
        lines.append(f"| {name} | {task.verb} | {task.family} | {trainer} | {packs} | {packs} | {end} |")
    return "\n".join(lines)
