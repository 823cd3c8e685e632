"""Render a tokenizer's chat template without importing `transformers`' tokenizers (and so torch) in data tasks.

The environment is the one `transformers` documents for chat templates; a test holds both to the same bytes.
"""

import datetime
import json
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rayswift.data.rows import BadRow, Message


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text for `transformers`; rendered, it is its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own class attribute)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja text.
        special_tokens: `bos_token`, `eos_token`, ... as the template may name them.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]):
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda fmt: datetime.datetime.now().strftime(fmt)
        self._template = environment.from_string(source)
        self._special_tokens = special_tokens

    def render(self, messages: list[Message], tools: list[Any] | None = None, generate: bool = False) -> str:
        """Text of a conversation; `generate` adds the opening of the assistant's next turn.

        Raises:
            BadRow: the template refuses the conversation.
        """
        try:
            return self._template.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=generate, **self._special_tokens
            )
        except (jinja2.TemplateError, TypeError, LookupError, AttributeError, ValueError, ArithmeticError) as error:
            raise BadRow("refused by the chat template", str(error)) from error
