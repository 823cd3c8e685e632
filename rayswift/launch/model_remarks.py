"""What a model does without being asked, for the plan: a system message of its template, a head that is left out."""

from pathlib import Path

from rayswift.config.schema import TrainingConfig
from rayswift.data.encode.template import default_system
from rayswift.data.tokenizer.folder import read_chat_template
from rayswift.model.kind import abilities

_MOST_CHARS = 200


def remarks(config: TrainingConfig, tokenizer: Path) -> list[str]:
    """One line for each.

    Args:
        config: Of the run.
        tokenizer: The run's tokenizer, or a model's folder; what is not there says nothing.
    """
    found = abilities.remarks("model.path", config.model.path, config.train.task, config.model.revision)
    if config.data.use_chat_template and not config.data.system:
        source, special_tokens = read_chat_template(tokenizer)
        said = default_system(source, special_tokens) if source else ""
        if said:
            shown = said if len(said) <= _MOST_CHARS else f"{said[:_MOST_CHARS]} [...]"
            found.append(
                f"the chat template adds the system message {shown!r} to conversations without one; data.system gives "
                "another"
            )
    return found
