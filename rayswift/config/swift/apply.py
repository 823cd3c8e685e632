"""Apply one rule to one flag."""

from typing import Any

from rayswift.config.swift.rules import ByValue, Into, NoEffect, Refused, Rule, To, Translation, plain


def apply(rule: Rule | None, name: str, words: list[str], result: Translation, entries: dict[str, Any]) -> None:
    """Apply a rule to a flag: to `result`, or to `entries` for entries of a dict field."""
    match rule:
        case ByValue(cases, otherwise):
            apply(cases.get(words[0].lower(), otherwise), name, words, result, entries)
        case To(path, values):
            by_lower = {word.lower(): ours for word, ours in values.items()}
            result.rename(name, path, [by_lower.get(word.lower(), word) for word in words])
        case Into(path) if path.startswith("rollout.") and not result.samples:
            result.rename(name, path, words)  # notes that it has no effect
        case Into(path, keys, values, is_list):
            inner = entries.setdefault(path, {})
            for key in keys[:-1]:
                inner = inner.setdefault(key, {})
            ours = [plain(values.get(word, word)) for word in words]
            inner[keys[-1]] = ours if is_list else ours[0]
            result.renamed.append(f"--{name} -> {path}.{'.'.join(keys)} {' '.join(words)}")
        case NoEffect(why):
            result.no_effect(name, why)
        case Refused(why):
            result.refuse(name, why)
