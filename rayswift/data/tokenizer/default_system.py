"""The default system message of a chat template; pure."""

import jinja2

from rayswift.data.encode.template import ChatTemplate
from rayswift.data.rows import BadRow

_SYSTEM, _QUESTION = "\ue000system\ue000", "\ue000question\ue000"


def default_system(source: str, special_tokens: dict[str, str]) -> str:
    """The system message that a template writes if a conversation has none; empty if there is none."""
    asked = {"role": "user", "content": _QUESTION}
    try:
        template = ChatTemplate(source, special_tokens)
        without = template.render([asked])
        before, mark, behind = template.render([{"role": "system", "content": _SYSTEM}, asked]).partition(_SYSTEM)
    except (jinja2.TemplateError, BadRow):
        return ""  # the rows report what the template refuses
    is_filled = mark and without.startswith(before) and without.endswith(behind)
    if not is_filled or len(without) <= len(before) + len(behind):
        return ""
    return without[len(before) : len(without) - len(behind)].strip()
