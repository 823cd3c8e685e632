"""Read and write YAML; scalars without quotes stay text, which `values.read` interprets by their field."""

import re
from typing import Any

import yaml

from rayswift.config.reading.values import Plain, plain

_STR, _NULL, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Without PyYAML's resolvers, which follow YAML 1.1, where `1e-4` is a word and `no` is false."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML, but refuse a key that is there twice; PyYAML would silently take the last."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE or not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{key_node.value}` is there twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts a text in quotes if it would have another meaning without them."""


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
    """Parse YAML, with scalars without quotes as `Plain`; raise yaml.YAMLError if it is invalid or a key is doubled."""
    return yaml.load(text, _Loader)


def dump(tree: Any) -> str:
    """YAML that `load` reads back unchanged, valid in YAML 1.1 and 1.2."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=False)
