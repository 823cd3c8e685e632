"""Names of tasks that are another task with some fields set; the user's own values win."""

from collections.abc import Mapping, Sequence
from typing import Any

Tree = dict[str, Any]
Flag = tuple[str, list[str]]

ALIASES: Mapping[str, tuple[str, Mapping[str, Mapping[str, Any]]]] = {
    # The defaults of TRL's RLOOTrainer.
    "rloo": ("grpo", {"train": {"advantage_estimator": "rloo", "loss_type": "rloo", "beta": 0.05}}),
    "ppo": ("ppo", {"rollout": {"num_generations": 1}}),  # a critic judges, not other completions
    "reinforce_plus_plus": ("grpo", {"train": {"advantage_estimator": "reinforce_plus_plus"}}),
    # The defaults of TRL's OnlineDPOTrainer: two completions of a prompt, and the DPO loss of the pair.
    "online_dpo": (
        "grpo",
        {
            "train": {"advantage_estimator": "online_dpo", "loss_type": "online_dpo", "beta": 0.1},
            "rollout": {"num_generations": 2, "importance_sampling": "none"},
        },
    ),
}
"""Name -> the task, and values of its fields by section."""
_NAMES = ("rlhf_type", "task", "train.task")


def without_aliases(trees: Sequence[Tree], flags: Sequence[Flag]) -> tuple[list[Tree], list[Flag]]:
    """Files and flags with aliases replaced; the values of the last alias become a file before all others."""
    named = ""
    found: list[Tree] = []
    for tree in trees:
        for name in _NAMES[:2]:
            if name in tree:
                named, tree = str(tree[name]), {**tree, name: _task(tree[name])}
        train = tree.get("train")
        if isinstance(train, dict) and "task" in train:
            named, tree = str(train["task"]), {**tree, "train": {**train, "task": _task(train["task"])}}
        found.append(tree)
    changed: list[Flag] = []
    for name, words in flags:
        if name in _NAMES and words:
            named, words = words[0], [_task(words[0]), *words[1:]]
        changed.append((name, words))
    values = ALIASES[named][1] if named in ALIASES else {}
    return [*([{section: dict(fields) for section, fields in values.items()}] if values else []), *found], changed


def _task(name: Any) -> Any:
    return ALIASES[name][0] if isinstance(name, str) and name in ALIASES else name
