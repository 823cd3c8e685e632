"""YAML in and out: scalars without quotes stay text, for `values.read` to read once their field is known."""

import re
from typing import Any

import yaml

from rayswift.config.reading.values import Plain, plain

_STR, _NULL, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """PyYAML's own resolvers are those of YAML 1.1, where `1e-4` is a word and `no` is false."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML, where the last of two equal keys would win without a word."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE or not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{key_node.value}` stands there twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that would be read as something else without quotes."""


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = loader.construct_scalar(node)
    return Plain(text) if node.style is None else str(text)


def _quoted(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    reads_as_text = isinstance(plain(text), str) and text.lower() != "none"
    return dumper.represent_scalar(_STR, text, style=None if reads_as_text else "'")


_Loader.add_implicit_resolver(_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])
_Loader.add_constructor(_STR, _text)
_Dumper.add_representer(str, _quoted)


def load(text: str) -> Any:
    """What a YAML text holds; scalars without quotes as `Plain`, null as None.

    Raises:
        yaml.YAMLError: it is not YAML, or a key stands twice in a mapping.
    """
    return yaml.load(text, _Loader)


def dump(tree: Any) -> str:
    """YAML that `load` reads back as it was, for YAML 1.1 as well as 1.2."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=False)
