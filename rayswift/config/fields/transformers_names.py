"""Names that `transformers` knows, read from its source: importing it would load torch into the driver."""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path


@cache
def optimizers() -> tuple[str, ...]:
    """Values of `optim`."""
    return _values("training_args.py", "OptimizerNames")


@cache
def schedules() -> tuple[str, ...]:
    """Values of `lr_scheduler_type`."""
    return _values("trainer_utils.py", "SchedulerType")


@cache
def trackers() -> tuple[str, ...]:
    """Values of `report_to`."""
    return _keys(_tree("integrations/integration_utils.py").body, "INTEGRATION_TO_CALLBACK")


@cache
def attentions() -> tuple[str, ...]:
    """Values of `attn_implementation`, without kernels of the hub."""
    return ("eager", *_keys(_class("modeling_utils.py", "AttentionInterface").body, "_global_mapping"))


@cache
def _tree(file: str) -> ast.Module:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations, "transformers is a dependency"
    return ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))


def _class(file: str, name: str) -> ast.ClassDef:
    return next(node for node in _tree(file).body if isinstance(node, ast.ClassDef) and node.name == name)


def _values(file: str, name: str) -> tuple[str, ...]:
    """The values of an enumeration of strings."""
    return tuple(str(value.value) for _, value in _assigned(_class(file, name).body) if isinstance(value, ast.Constant))


def _keys(body: list[ast.stmt], name: str) -> tuple[str, ...]:
    """The keys of a dictionary that is assigned to a name."""
    found = next(value for target, value in _assigned(body) if target == name)
    assert isinstance(found, ast.Dict), f"{name} is a dictionary in transformers"
    return tuple(str(key.value) for key in found.keys if isinstance(key, ast.Constant))


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value
