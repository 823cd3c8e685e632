"""Plain TRL, in a process of its own, on the packed rows of a run in their order: the reference that RaySwift must
equal.

    python tests/ray/oracle_trl.py RUN_DIR OUT_DIR STEPS PER_DEVICE ACCUMULATION [VERB]

RUN_DIR is a finished run with the same global batch: its initial weights, tokenizer, rows and settings are taken.
"""

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from rayswift.config.schema import VERB_CONFIGS
from rayswift.data.collate.packed import collate
from rayswift.data.prepare import plan_windows
from rayswift.data.sequence.global_batches import FeedPlan, Position, global_batches
from rayswift.data.sequence.windows import PackedRow
from rayswift.model.texts.row_kind import row_kind
from rayswift.model.tuners import peft_config


def rows_of(run_dir: Path, config: Any, steps: int, global_batch: int, work_dir: Path) -> list[PackedRow]:
    """The first packed rows of the run, read and packed anew without Ray."""
    kind = row_kind(config, Path(config.model.path))
    windows, _ = plan_windows(config.data, run_dir / "tokenizer", config.train.seed, work_dir, kind)
    plan = FeedPlan(global_batch, windows.num_rows, windows.window_rows, 1e9, steps, 1.0)

    def source(epoch: int, first: int) -> Any:
        return (windows.make(epoch, number) for number in range(first, windows.num_windows))

    batches = global_batches(plan, source, Position(), lambda *_: None)
    return [row for batch in itertools.islice(batches, steps) for row in batch.rows]


class StepTimes(TrainerCallback):
    """Seconds of each step, as `step_s` of its log entry."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Called once a step: `logging_steps` is 1."""
        now = time.monotonic()
        state.log_history[-1]["step_s"] = now - self._last
        self._last = now


def main() -> None:
    """Train and write metrics.jsonl as a run does."""
    run_dir, out_dir = Path(sys.argv[1]), Path(sys.argv[2])
    steps, per_device, accumulation = map(int, sys.argv[3:6])
    verb = sys.argv[6] if len(sys.argv) > 6 else "sft"
    config: Any = VERB_CONFIGS[verb].model_validate(yaml.safe_load((run_dir / "config.yaml").read_text()))
    rows = rows_of(run_dir, config, steps, per_device * accumulation, out_dir / "data")
    on_gpu = config.cluster.device != "cpu" and torch.cuda.is_available()
    dataset = Dataset.from_dict({"input_ids": [[i, i] for i in range(len(rows))]})
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "tokenizer")
    model = AutoModelForCausalLM.from_pretrained(run_dir / "init", dtype="float32")

    def collator(examples: list[dict[str, Any]]) -> dict[str, Any]:
        picked = [rows[example["input_ids"][0]] for example in examples]
        return collate(picked, tokenizer.pad_token_id, "rows")

    args = SFTConfig(
        output_dir=str(out_dir),
        max_steps=steps,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        learning_rate=config.train.learning_rate,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        gradient_checkpointing=config.train.gradient_checkpointing,
        bf16=on_gpu and config.model.dtype in ("auto", "bfloat16"),
        use_cpu=not on_gpu,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        seed=config.train.seed,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        data_collator=collator,
        processing_class=tokenizer,
        peft_config=peft_config(config.model),
    )
    trainer.add_callback(StepTimes())
    trainer.train()
    lines = [json.dumps(entry) for entry in trainer.state.log_history if "loss" in entry]
    (out_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
