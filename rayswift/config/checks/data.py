"""Settings of section `data` that contradict each other or cannot have an effect."""

from rayswift.config.schema import RlhfConfig, TrainingConfig

TEMPLATE_OWN = frozenset(("messages", "tools", "documents", "add_generation_prompt"))
"""Variables of chat templates that rows and tasks set."""


def data_problems(config: TrainingConfig) -> list[str]:
    """One line for each setting of the rows that cannot be used."""
    data, found = config.data, []
    if not data.dataset:
        found.append("data.dataset names no rows; give a file, a folder or a hub id")
    if data.eval and data.eval_fraction:
        found.append(
            f"data.eval and data.eval_fraction = {data.eval_fraction:g} both bring rows to evaluate on; keep one"
        )
    sections = {"data": data.chat_template_kwargs}
    if isinstance(config, RlhfConfig):
        sections["rollout"] = config.rollout.chat_template_kwargs
    for section, kwargs in sections.items():
        if own := sorted(TEMPLATE_OWN & kwargs.keys()):
            found.append(f"{section}.chat_template_kwargs: {', '.join(own)} of a chat template come from the rows")
    return found
