"""The plain trainer of a task, in a process of its own: it reads, renders and tokenises the rows of a run itself, in
the order of the run.

    python tests/ray/oracle_rows.py RUN_DIR OUT_DIR STEPS PER_DEVICE ACCUMULATION VERB [CALLBACK]

RUN_DIR is a run, finished or in training, with the same global batch: its initial weights, tokenizer, order and
settings are taken. Where it evaluates before its first step, so does the plain trainer: all rows of `data.eval` in one
batch, whatever the cut of a batch does to a mean.
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
from rayswift.model.tuners import peft_config
from tests.ray.oracle_trl import StepTimes, rows_of


def weights(run_dir: Path, config: Any) -> dict[str, Any]:
    """What a run began with, for `from_pretrained`; the seed is that of a head which is not there."""
    set_seed(config.train.seed)
    made = run_dir / "init"
    return {"pretrained_model_name_or_path": made if made.exists() else config.model.path, "dtype": "float32"}


def tokenizer_of(run_dir: Path) -> Any:
    """The run's tokenizer, whose template writes nothing behind the end token.

    Many write a line break there. TRL trains it, and RaySwift does not: what is compared must be over the same tokens.
    (A text that gets a score or a class is the whole of what the template writes, for both.)
    """
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "tokenizer")
    whole = "{% set rendered %}" + tokenizer.chat_template + "{% endset %}"
    tokenizer.chat_template = whole + "{{ rendered if add_generation_prompt else rendered.rstrip('\n') }}"
    return tokenizer


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
        model=AutoModelForCausalLM.from_pretrained(**weights(run_dir, config)),
        args=DPOConfig(**common, max_length=None),
        train_dataset=Dataset.from_list([preference(row) for row in rows]),
        processing_class=tokenizer_of(run_dir),
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
        model=AutoModelForCausalLM.from_pretrained(**weights(run_dir, config)),
        args=KTOConfig(**common, max_length=config.data.max_length),
        train_dataset=Dataset.from_list(judged),
        processing_class=tokenizer_of(run_dir),
        peft_config=peft_config(config.model),
    )


def rm(run_dir: Path, config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """TRL's reward trainer; pairs bring margins."""
    from trl import RewardConfig, RewardTrainer

    margins = [{"margin": row["margin"]} if "margin" in row else {} for row in rows]
    return RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(**weights(run_dir, config), num_labels=1),
        args=RewardConfig(**common, max_length=None),
        train_dataset=Dataset.from_list([preference(row) | own for row, own in zip(rows, margins, strict=True)]),
        processing_class=AutoTokenizer.from_pretrained(run_dir / "tokenizer"),
        peft_config=peft_config(config.model, "reward"),
    )


def seq_cls(run_dir: Path, config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """transformers' own trainer over tokenised conversations."""
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "tokenizer")
    model = AutoModelForSequenceClassification.from_pretrained(**weights(run_dir, config))
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


def causal(run_dir: Path, config: Any, rows: list[list[dict[str, Any]]], common: dict[str, Any]) -> Any:
    """TRL's SFT trainer on padded rows of one document each, packed or not by the run: `rows` has those of each row."""
    tokenizer = tokenizer_of(run_dir)

    def tokens(row: dict[str, Any]) -> tuple[list[int], int]:
        """A document, and how many of its tokens are not trained."""
        if "text" in row:
            return [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id], 0
        turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
        return tokenizer.apply_chat_template(turns)["input_ids"], len(prompt)

    def collator(examples: list[dict[str, Any]]) -> dict[str, Any]:
        documents = [tokens(row) for example in examples for row in rows[example["input_ids"][0]]]
        batch = tokenizer.pad({"input_ids": [ids for ids, _ in documents]}, padding_side="right", return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, (_, untrained) in zip(labels, documents, strict=True):
            row[:untrained] = -100
        return {**batch, "labels": labels}

    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(**weights(run_dir, config)),
        args=SFTConfig(
            **common, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False
        ),
        train_dataset=Dataset.from_dict({"input_ids": [[i, i] for i in range(len(rows))]}),
        data_collator=collator,
        processing_class=tokenizer,
        peft_config=peft_config(config.model),
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
        "model": AutoModelForCausalLM.from_pretrained(**weights(run_dir, config)),
        "train_dataset": Dataset.from_list([preference(row) for row in rows]),
        "processing_class": tokenizer_of(run_dir),
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


TRAINERS: dict[str, Any] = {
    "causal_lm": causal,
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
OF_ENCODERS = ("embedding", "reranker", "seq_cls")


def main() -> None:
    """Train and write metrics.jsonl as a run does."""
    run_dir, out_dir = Path(sys.argv[1]), Path(sys.argv[2])
    steps, per_device, accumulation = map(int, sys.argv[3:6])
    config: Any = VERB_CONFIGS[sys.argv[6]].model_validate(yaml.safe_load((run_dir / "config.yaml").read_text()))
    raw = _read(config.data.dataset[0])
    packed = rows_of(run_dir, config, steps, per_device * accumulation, out_dir / "data")
    documents = [[raw[int(document.rpartition(":")[2]) - 1] for document in row.ids] for row in packed]
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
    common |= config.train.trl_extra

    def make(documents: list[list[dict[str, Any]]], own: dict[str, Any]) -> Any:
        rows = documents if config.train.task == "causal_lm" else [first for first, *_ in documents]
        is_of_encoder = config.train.task in OF_ENCODERS and not config.data.use_chat_template
        of_task = encoder if is_of_encoder and not (run_dir / "init").exists() else TRAINERS[config.train.task]
        return of_task(run_dir, config, rows, own)

    before = []
    if config.train.eval_on_start:
        rows = [[row] for row in _read(config.data.eval[0])]
        evaluated = make(rows, common | {"per_device_eval_batch_size": len(rows)})
        before = [evaluated.evaluate(evaluated.train_dataset) | {"step": 0}]
    trainer = make(documents, common)
    for callback in (StepTimes, *(user_code.load("CALLBACK", name) for name in sys.argv[7:])):
        trainer.add_callback(callback())
    trainer.train()
    lines = [json.dumps(entry) for entry in before + trainer.state.log_history if "loss" in entry or not entry["step"]]
    (out_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def _read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
