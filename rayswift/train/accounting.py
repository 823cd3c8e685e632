"""`data/accounting.json`: where every raw row went so far, by outcome."""

import json
from collections.abc import Mapping
from pathlib import Path

ACCOUNTING = Path("data") / "accounting.json"
_SEEN = "rows seen"


def write_accounting(run_dir: Path, counts: Mapping[str, int]) -> None:
    """Replace the file: the rows of each outcome, and their sum first."""
    path = run_dir / ACCOUNTING
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({_SEEN: sum(counts.values()), **counts}, indent=1), encoding="utf-8")
    partial.replace(path)


def read_accounting(run_dir: Path) -> dict[str, int]:
    """Rows of each outcome; empty before the first were counted."""
    path = run_dir / ACCOUNTING
    counts: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    counts.pop(_SEEN, None)
    return counts
