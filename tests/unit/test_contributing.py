"""`.github/CONTRIBUTING.md` names files that exist, and the files that contain each behaviour."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / ".github" / "CONTRIBUTING.md"
TEXT = PAGE.read_text(encoding="utf-8")
BEHAVIOURS = re.findall(r"^\| (.+?) \| `(.+?)` \| `(.+?)` \|$", TEXT.partition("## Where is it")[2], re.MULTILINE)


def defined_in(path: Path) -> set[str]:
    """Functions, classes and constants that a module defines."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_every_file_that_is_named_is_there() -> None:
    paths = re.findall(r"`((?:rayswift|tests|examples|cluster)/[\w./]*|README\.md)", TEXT)
    assert len(paths) > 80
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_link_leads_to_a_file_or_a_heading() -> None:
    titles = re.findall("^#+ (.*)$", TEXT, re.MULTILINE)
    headings = {"#" + re.sub("[^a-z ]", "", title.lower()).replace(" ", "-") for title in titles}
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert link in headings if link.startswith("#") else (PAGE.parent / link).is_file(), link


def test_a_behaviour_is_in_the_file_that_is_named() -> None:
    assert len(BEHAVIOURS) == 40
    assert [entry for entry in BEHAVIOURS if entry[2] not in defined_in(ROOT / entry[1])] == []


def test_names_in_the_steps_are_in_the_files_of_the_steps() -> None:
    """Tables such as `_FREE_NAMES` and `_ROLLOUT`."""
    for step in re.findall(r"^\| \d+ \| .*$", TEXT, re.MULTILINE):
        files = [ROOT / path for path in re.findall(r"`(rayswift/[\w/]+\.py)`", step)]
        names = re.findall(r"`(_?[A-Z][A-Z_]+)`", step)
        known = set().union(*(defined_in(file) for file in files)) if files else set()
        assert [name for name in names if name not in known] == [], step
