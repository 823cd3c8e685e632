"""The system message that a chat template writes where a conversation has none; pure."""

import jinja2

from rayswift.data.encode.template import ChatTemplate
from rayswift.data.rows import BadRow

_SYSTEM, _QUESTION = "\ue000system\ue000", "\ue000question\ue000"


def default_system(source: str, special_tokens: dict[str, str]) -> str:
    """What stands, without a system message, where one would stand; empty: nothing, or the template takes none.

    Args:
        source: The template.
        special_tokens: See `ChatTemplate`.
    """
    asked = {"role": "user", "content": _QUESTION}
    try:
        template = ChatTemplate(source, special_tokens)
        without = template.render([asked])
        before, mark, behind = template.render([{"role": "system", "content": _SYSTEM}, asked]).partition(_SYSTEM)
    except (jinja2.TemplateError, BadRow):
        return ""  # what such a template refuses is said of rows
    is_filled = mark and without.startswith(before) and without.endswith(behind)
    if not is_filled or len(without) <= len(before) + len(behind):
        return ""
    return without[len(before) : len(without) - len(behind)].strip()
