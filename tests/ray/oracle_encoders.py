"""Plain trainers of sentence-transformers and transformers for a model as its own library loads it: an encoder or a
folder of sentence-transformers, no chat template; see `oracle_rows`."""

from typing import Any

from datasets import Dataset
from peft import get_peft_model
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.cross_encoder import losses as pair_losses
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from rayswift.model.tuners import peft_config
from tests.ray.oracle_sentences import LOSSES, InOrder, whole_batches


def embedding(config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """Anchor and positive; where rows have one also a negative."""
    set_seed(config.train.seed)
    model = SentenceTransformer(config.model.path, device="cpu")
    model.max_seq_length = config.data.max_length
    if config.model.tuner != "full":
        set_seed(config.train.seed)
        model.add_adapter(peft_config(config.model, "none", network=model.transformers_model))
    names = {"query": ("anchor",), "document": ("positive", "negative")}
    prompts = {column: model.prompts.get(kind) or "" for kind, columns in names.items() for column in columns}
    columns = [name for name in ("anchor", "positive", "negative") if name in rows[0]]
    return SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            **whole_batches(common), batch_sampler=InOrder, prompts={name: prompts[name] for name in columns}
        ),
        train_dataset=Dataset.from_dict({name: [row[name] for row in rows] for name in columns}),
        loss=LOSSES[config.train.loss_type](model, config.train),
    )


def reranker(config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """Query, a positive and as many negatives in each row: every pair by itself, with the prompt that the model's own
    `predict` writes before it."""
    _, found = AutoModelForSequenceClassification.from_pretrained(
        config.model.path, num_labels=1, output_loading_info=True
    )
    set_seed(config.train.seed)
    model = CrossEncoder(config.model.path, num_labels=1, max_length=config.data.max_length, device="cpu")
    if config.model.tuner != "full":
        set_seed(config.train.seed)
        network = model.transformers_model
        adapter = peft_config(config.model, "reward", network=network, drawn=sorted(found["missing_keys"]))
        # As PEFT's own models of this kind have it.
        adapter.modules_to_save = [*(adapter.modules_to_save or ()), "classifier"]
        model.add_adapter(adapter)
    documents = [[row["positive"], *row["negative"]] for row in rows]
    size, arguments = len(documents[0]), whole_batches(common)
    arguments["per_device_train_batch_size"] *= size
    return CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            **arguments, batch_sampler=InOrder, prompts=model.prompts.get(model.default_prompt_name) or ""
        ),
        train_dataset=Dataset.from_dict(
            {
                "query": [row["query"] for row in rows for _ in range(size)],
                "document": [document for each in documents for document in each],
                "label": ([1.0] + [0.0] * (size - 1)) * len(rows),
            }
        ),
        loss=pair_losses.BinaryCrossEntropyLoss(model),
    )


def seq_cls(config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """transformers' own trainer."""
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    set_seed(config.train.seed)
    settings = {"num_labels": config.model.num_labels, "problem_type": config.model.problem_type}
    model, found = AutoModelForSequenceClassification.from_pretrained(
        config.model.path, dtype="float32", output_loading_info=True, **settings
    )
    if config.model.tuner != "full":
        set_seed(config.train.seed)
        drawn = sorted(found["missing_keys"])
        model = get_peft_model(model, peft_config(config.model, "classes", network=model, drawn=drawn))
    texts = tokenizer([row["text"] for row in rows], truncation=True, max_length=config.data.max_length)
    return Trainer(
        model=model,
        args=TrainingArguments(**common),
        train_dataset=Dataset.from_dict({**texts, "labels": [row["label"] for row in rows]}),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
