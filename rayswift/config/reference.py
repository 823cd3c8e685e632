"""The reference page of all fields, from the dataclasses that are parsed.

python -m rayswift.config.reference > rayswift/config/README.md
"""

import sys
from importlib.metadata import version

from rayswift.config.reading.names import section_of
from rayswift.config.schema import TRAINING_VERBS, VERB_CONFIGS, RlhfConfig, TrainingConfig
from rayswift.config.show import FieldLine, by_name, field_lines

COMMAND = "python -m rayswift.config.reference > rayswift/config/README.md"
TRL_HEADING = "## Fields of `train` from TRL's configs"

_INTRODUCTION = f"""# Every field of a config

Written by `{COMMAND}`; do not edit it by hand.

YAML and flags are one tree of sections. A field's dotted path is its YAML path, its flag and its name in every error;
where the last part is unique, the bare flag works too (`--learning_rate`), and `--model` stands for `--model.path`. A
flag replaces the value of `--config file.yaml`, a later file that of an earlier one, and a file the default. Lists are
words (`--data.eval a.jsonl b.jsonl`) or JSON, dicts are JSON, `null` is null. An unknown name is an error, and all
problems are reported at once. Numbers, booleans and null are read as in YAML 1.2, in YAML files and in flags alike, and
by the type of the field: `1e-4` is a number; `no` is a word for `save_strategy` and false for `packing`. A path may
begin with `~`. For a name of TRL, LLaMA-Factory or axolotl, the error gives the name on this page.
`rayswift <verb> --dry_run` prints the resolved config, and `rayswift <verb> --help all` the fields below.

**ms-swift's spelling.** `pt`, `sft` and `rlhf` also read command lines and flat YAML or JSON files of ms-swift
(`rayswift sft run.yaml --tuner_type lora --deepspeed zero3`). One line says what was translated. One line for each flag
without an effect says why it has none. A flag that is not supported is an error with the reason. `NPROC_PER_NODE` and
`NNODES` become workers, and for tasks that sample, `max_length` is the length of a prompt. Defaults are those of this
page: one line lists the defaults of ms-swift that differ, as flags that restore them, and another the ids that ms-swift
would take from ModelScope's hub. `infer` and `export` take its flags too. The tables are in [`swift/`](swift)."""


def page() -> str:
    """The whole page, as Markdown."""
    parts = [_INTRODUCTION, f"## {', '.join(f'`rayswift {verb}`' for verb in TRAINING_VERBS)}"]
    for name in dict.fromkeys(name for verb in TRAINING_VERBS for name in VERB_CONFIGS[verb].model_fields):
        parts.append(_section(name, [verb for verb in TRAINING_VERBS if name in VERB_CONFIGS[verb].model_fields]))
    for verb in [verb for verb in VERB_CONFIGS if verb not in TRAINING_VERBS]:
        bases = {"rlhf": RlhfConfig, "sft": TrainingConfig}
        like = next((each for each, base in bases.items() if issubclass(VERB_CONFIGS[verb], base)), None)
        shared = bases[like].model_fields if like else {}
        parts.append(f"## `rayswift {verb}`")
        if like:
            parts.append(f"Sections {', '.join(f'`{name}`' for name in shared)} as for `rayswift {like}`, and:")
        parts += [_section(name, [verb]) for name in VERB_CONFIGS[verb].model_fields if name not in shared]
    parts.append(f"{TRL_HEADING}\n\nOf {versions()}, with their own help texts.")
    parts.append(_table(_merged("train", list(TRAINING_VERBS), from_trl=True)))
    return "\n\n".join(parts) + "\n"


def versions() -> str:
    """The releases whose fields the page lists."""
    return ", ".join(f"{package} {version(package)}" for package in ("trl", "transformers"))


def _section(name: str, verbs: list[str]) -> str:
    of = "" if len(verbs) in (1, len(TRAINING_VERBS)) else f" ({', '.join(verbs)})"
    sentence = (section_of(VERB_CONFIGS[verbs[0]], name).__doc__ or "").strip()
    return f"### `{name}`{of}\n\n{sentence}\n\n{_table(_merged(name, verbs, from_trl=False))}"


def _merged(name: str, verbs: list[str], from_trl: bool) -> list[FieldLine]:
    """The section's fields over several verbs; differing entries are given with their verbs."""
    by_path: dict[str, dict[str, FieldLine]] = {}
    for verb in verbs:
        for line in field_lines(verb, name):
            if line.from_trl == from_trl:
                by_path.setdefault(line.path, {})[verb] = line
    return [_over_verbs(lines, verbs) for lines in by_path.values()]


def _over_verbs(lines: dict[str, FieldLine], verbs: list[str]) -> FieldLine:
    first = next(iter(lines.values()))
    only = "" if len(lines) == len(verbs) or first.from_trl else f" ({', '.join(lines)} only)"
    return FieldLine(
        first.path,
        by_name({verb: line.type for verb, line in lines.items()}),
        by_name({verb: line.default for verb, line in lines.items()}),
        by_name({verb: line.sentence for verb, line in lines.items()}) + only,
        first.from_trl,
    )


def _table(lines: list[FieldLine]) -> str:
    rows = ["| field | type | default | |", "| --- | --- | --- | --- |"]
    for line in lines:
        cells = [f"`{line.path}`", line.type, f"`{line.default}`" if line.default else "", line.sentence]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.stdout.write(page())
