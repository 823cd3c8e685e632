"""The structure of the source: imports between rooms, lengths of files and functions, cost of a help page."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PACKAGE = REPO / "rayswift"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Top first: a module imports from its own room or from those behind it.
LAYERS = (
    "__main__",
    "cli",
    "verbs",
    "launch",
    "train",
    "report",
    "rollout",
    "engines",
    "model",
    "run",
    "data",
    "cluster",
    "config",
    "signals",
    "imports",
    "files",
    "log",
    "__init__",
)
MAX_FILES = 14

HEAVY = {"ray", "torch", "vllm"}
PURE = [
    "rayswift.data.encode.encoder",
    "rayswift.data.encode.families.prompts",
    "rayswift.data.encode.message_ends",
    "rayswift.data.encode.template",
    "rayswift.data.encode.truncation",
    "rayswift.data.encode.turns",
    "rayswift.data.rows",
    "rayswift.data.sequence.global_batches",
    "rayswift.data.sequence.order",
    "rayswift.data.sequence.packing",
    "rayswift.data.sequence.windows",
    "rayswift.engines.pool.autoscale",
    "rayswift.engines.pool.membership",
    "rayswift.engines.pool.merge_parts",
    "rayswift.launch.memory",
    "rayswift.model.kind.abilities",
    "rayswift.model.kind.kinds",
    "rayswift.model.size.parameters",
    "rayswift.report.advice",
    "rayswift.report.charts",
    "rayswift.report.curves",
    "rayswift.report.console",
    "rayswift.report.page",
    "rayswift.rollout.admission",
    "rayswift.rollout.advantages",
    "rayswift.rollout.ledger",
    "rayswift.rollout.prompts",
    "rayswift.rollout.rewards.builtin",
    "rayswift.rollout.rewards.dispatch",
    "rayswift.rollout.rewards.functions",
    "rayswift.rollout.rewards.stated_numbers",
    "rayswift.rollout.rounds",
    "rayswift.run.checkpoint",
    "rayswift.run.events",
]

MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 60
# "path" or "path:function" -> why it is longer than the limit.
LONGER: dict[str, str] = {}


def module_name(path: Path) -> str:
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def imports_of(module: str) -> set[str]:
    """Full names of all modules a module imports, also inside functions."""
    found = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else str(node.module))
    return found


def layer_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def ours(module: str) -> set[str]:
    return {name for name in imports_of(module) if name.split(".")[0] == "rayswift"}


def test_every_module_has_a_layer() -> None:
    assert {layer_of(module) for module in MODULES} <= set(LAYERS)


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} -> {target}"
        for module in MODULES
        for target in ours(module)
        if LAYERS.index(layer_of(target)) < LAYERS.index(layer_of(module))
    ]
    assert not wrong


def test_rooms_are_small() -> None:
    folders = {path.parent for path in SOURCES}
    files = {folder: [each for each in folder.iterdir() if each.is_file()] for folder in folders}
    assert not {str(folder): len(found) for folder, found in files.items() if len(found) > MAX_FILES}


def test_verbs_do_not_import_verbs() -> None:
    verbs = [module for module in MODULES if layer_of(module) == "verbs"]
    assert "rayswift.verbs.train" in verbs
    assert not [f"{v} -> {t}" for v in verbs for t in ours(v) if layer_of(t) == "verbs" and t != v]


def test_rollout_does_not_import_train() -> None:
    rollout = [module for module in MODULES if layer_of(module) == "rollout"]
    assert not [f"{m} -> {t}" for m in rollout for t in ours(m) if layer_of(t) == "train"]


def test_vllm_is_imported_in_the_process_of_an_engine_alone() -> None:
    importers = {m for m in MODULES if any(name.split(".")[0] == "vllm" for name in imports_of(m))}
    assert importers <= {f"rayswift.engines.vllm.{name}" for name in ("build", "core", "worker")}


def reach(module: str) -> dict[str, str]:
    """Heavy packages that a module's imports end at, with the module that names them."""
    seen, todo, heavy = set(), [module], {}
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        for name in imports_of(current):
            if name.split(".")[0] in HEAVY:
                heavy[name.split(".")[0]] = current
        # Importing a module runs the packages above it.
        parents = [current.rsplit(".", n)[0] for n in range(1, current.count(".") + 1)]
        todo += [name for name in (*ours(current), *parents) if name in MODULES]
    return heavy


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_reach_neither_ray_nor_torch_nor_vllm(module: str) -> None:
    assert reach(module) == {}


def test_batches_reach_torch_only() -> None:
    assert set(reach("rayswift.data.collate.packed")) == {"torch"}


def loaded_by(code: str) -> tuple[set[str], float]:
    """Top-level packages in sys.modules once `code` has run, and its CPU seconds: wall time where nothing else runs."""
    report = "\nimport sys, json, time"
    report += "\nnames = sorted({m.split('.')[0] for m in sys.modules})"
    report += "\nsys.stderr.write('\\n' + json.dumps([names, time.process_time()]))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    names, cpu_s = json.loads(done.stderr.splitlines()[-1])
    return set(names), cpu_s


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["sft", "--help"], ["sft", "--help", "all"], ["rlhf", "--help", "all"]]
)
def test_help_is_light(argv: list[str]) -> None:
    loaded, cpu_s = loaded_by(f"from rayswift import cli; assert cli._run({argv!r}) == 0")
    assert not loaded & {*HEAVY, "transformers", "trl", "numpy", "pyarrow"}
    assert cpu_s < 1


def test_the_driver_loads_no_torch() -> None:
    """Driver, controller and data workers start seconds sooner."""
    loaded, _ = loaded_by("import rayswift.verbs.train")
    assert not loaded & {"torch", "transformers", "trl", "deepspeed", "vllm"}


def test_pure_modules_load_neither_ray_nor_torch() -> None:
    loaded, _ = loaded_by("import " + ", ".join(PURE))
    assert "rayswift" in loaded
    assert not loaded & {*HEAVY, "transformers"}


def test_no_catch_all_modules() -> None:
    assert not [p for p in SOURCES if p.stem.strip("_") in {"utils", "util", "common", "misc", "helpers"}]


def test_files_and_functions_are_short() -> None:
    lengths: dict[str, tuple[int, int]] = {}
    for path in SOURCES:
        name = path.relative_to(REPO).as_posix()
        text = path.read_text(encoding="utf-8")
        lengths[name] = (len(text.splitlines()), MAX_FILE_LINES)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                key = f"{name}:{node.name}"
                longest = max(node.end_lineno - node.lineno + 1, lengths.get(key, (0, 0))[0])
                lengths[key] = (longest, MAX_FUNCTION_LINES)
    too_long = {name for name, (lines, limit) in lengths.items() if lines > limit}
    assert too_long == set(LONGER), "shorten it, or list it in LONGER with a reason; and take out what is short now"
