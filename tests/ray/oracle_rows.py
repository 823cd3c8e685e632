"""The plain trainer of a task whose loss is a mean over rows, in a process of its own: it reads, renders and tokenises
the rows of a run itself, in the run's order.

    python tests/ray/oracle_rows.py RUN_DIR OUT_DIR STEPS PER_DEVICE ACCUMULATION VERB [CALLBACK]

RUN_DIR is a run, finished or in training, with the same global batch: its initial weights, tokenizer, order and
settings are taken.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from rayswift.config import user_code
from rayswift.config.schema import VERB_CONFIGS
from rayswift.train.tuners import peft_config
from tests.ray.oracle_trl import StepTimes, rows_of


def preference(row: dict[str, Any]) -> dict[str, Any]:
    """A pair as TRL's documentation writes it."""
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }


def dpo(run_dir: Path, config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """TRL's DPO trainer."""
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(run_dir / "init", dtype="float32"),
        args=DPOConfig(**common, max_length=None),
        train_dataset=Dataset.from_list([preference(row) for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(run_dir / "tokenizer"),
        peft_config=peft_config(config.model),
    )


def kto(run_dir: Path, config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """TRL's KTO trainer, which pairs the rows of a micro-batch: it must be the global batch."""
    from trl import KTOConfig, KTOTrainer

    judged = [
        {
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["answer"]}],
            "label": row["label"],
        }
        for row in rows
    ]
    return KTOTrainer(
        model=AutoModelForCausalLM.from_pretrained(run_dir / "init", dtype="float32"),
        args=KTOConfig(**common, max_length=config.data.max_length),
        train_dataset=Dataset.from_list(judged),
        processing_class=AutoTokenizer.from_pretrained(run_dir / "tokenizer"),
        peft_config=peft_config(config.model),
    )


def rm(run_dir: Path, config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """TRL's reward trainer; pairs bring margins."""
    from trl import RewardConfig, RewardTrainer

    margins = [{"margin": row["margin"]} if "margin" in row else {} for row in rows]
    return RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(run_dir / "init", dtype="float32"),
        args=RewardConfig(**common, max_length=None),
        train_dataset=Dataset.from_list([preference(row) | own for row, own in zip(rows, margins, strict=True)]),
        processing_class=AutoTokenizer.from_pretrained(run_dir / "tokenizer"),
        peft_config=peft_config(config.model, "reward"),
    )


def seq_cls(run_dir: Path, config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """transformers' own trainer over tokenised conversations."""
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "tokenizer")
    model = AutoModelForSequenceClassification.from_pretrained(run_dir / "init", dtype="float32")
    model.config.pad_token_id = tokenizer.pad_token_id
    if config.model.tuner != "full":
        set_seed(config.train.seed)
        model = get_peft_model(model, peft_config(config.model, "classes"))
    turns = [
        [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}] for row in rows
    ]
    tokenised = [tokenizer.apply_chat_template(messages, return_dict=True) for messages in turns]
    labelled = [
        {"input_ids": one["input_ids"], "attention_mask": one["attention_mask"], "labels": row["label"]}
        for one, row in zip(tokenised, rows, strict=True)
    ]
    return Trainer(
        model=model,
        args=TrainingArguments(**common),
        train_dataset=Dataset.from_list(labelled),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )


def cpo(run_dir: Path, config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """TRL's CPO trainer; simpo is one of its losses."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOTrainer(args=CPOConfig(**common, max_length=512), **_odds(run_dir, config, rows))


def orpo(run_dir: Path, config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """TRL's ORPO trainer."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOTrainer(args=ORPOConfig(**common, max_length=512), **_odds(run_dir, config, rows))


def _odds(run_dir: Path, config: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": AutoModelForCausalLM.from_pretrained(run_dir / "init", dtype="float32"),
        "train_dataset": Dataset.from_list([preference(row) for row in rows]),
        "processing_class": AutoTokenizer.from_pretrained(run_dir / "tokenizer"),
        "peft_config": peft_config(config.model),
    }


def encoder(run_dir: Path, config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """Trainers of a model that its own library loads as it is."""
    from tests.ray import oracle_encoders

    return getattr(oracle_encoders, config.train.task)(config, rows, common)


def sentences(run_dir: Path, config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """sentence-transformers' trainers."""
    from tests.ray import oracle_sentences

    trainer = oracle_sentences.embedding if config.train.task == "embedding" else oracle_sentences.reranker
    return trainer(run_dir, config, rows, common)


TRAINERS = {
    "dpo": dpo,
    "kto": kto,
    "rm": rm,
    "seq_cls": seq_cls,
    "orpo": orpo,
    "cpo": cpo,
    "simpo": cpo,
    "embedding": sentences,
    "reranker": sentences,
    "generative_reranker": sentences,
}


def main() -> None:
    """Train and write metrics.jsonl as a run does."""
    run_dir, out_dir = Path(sys.argv[1]), Path(sys.argv[2])
    steps, per_device, accumulation = map(int, sys.argv[3:6])
    config: Any = VERB_CONFIGS[sys.argv[6]].model_validate(yaml.safe_load((run_dir / "config.yaml").read_text()))
    raw = Path(config.data.dataset[0]).read_text(encoding="utf-8").splitlines()
    packed = rows_of(run_dir, config, steps, per_device * accumulation, out_dir / "data")
    rows = [json.loads(raw[int(row.ids[0].rpartition(":")[2]) - 1]) for row in packed]
    on_gpu = config.cluster.device != "cpu" and torch.cuda.is_available()
    common: dict[str, Any] = {
        "output_dir": str(out_dir),
        "max_steps": steps,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": config.train.learning_rate,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "gradient_checkpointing": False,
        "bf16": on_gpu and config.model.dtype in ("auto", "bfloat16"),
        "use_cpu": not on_gpu,
        "train_sampling_strategy": "sequential",
        "seed": config.train.seed,
        "disable_tqdm": True,
    }
    is_encoder = not config.data.use_chat_template and not (run_dir / "init").exists()
    make = encoder if is_encoder else TRAINERS[config.train.task]
    trainer = make(run_dir, config, rows, common | config.train.trl_extra)
    for callback in (StepTimes, *(user_code.load("CALLBACK", name) for name in sys.argv[7:])):
        trainer.add_callback(callback())
    trainer.train()
    lines = [json.dumps(entry) for entry in trainer.state.log_history if "loss" in entry]
    (out_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
