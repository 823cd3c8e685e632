"""Plain sentence-transformers trainers for tasks embedding, reranker and generative_reranker; see `oracle_rows`.

Their batch is the whole global batch: a loss that compares rows must not depend on our micro-batches.
"""

import math
import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.cross_encoder import losses as pair_losses
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling
from torch.utils.data import SequentialSampler
from transformers import set_seed

from rayswift.model.tuners import peft_config

LOSSES: dict[str, Any] = {
    "infonce": lambda model, train: losses.MultipleNegativesRankingLoss(model, scale=1 / train.infonce_temperature),
    "cosine_similarity": lambda model, train: losses.CosineSimilarityLoss(model),
    "contrastive": lambda model, train: losses.ContrastiveLoss(model, margin=train.contrastive_margin),
    "online_contrastive": lambda model, train: losses.OnlineContrastiveLoss(model, margin=train.contrastive_margin),
}


class InOrder(DefaultBatchSampler):
    """Batches in the order of the rows."""

    def __init__(self, dataset: Dataset, **kwargs: Any):
        super().__init__(SequentialSampler(dataset), **kwargs)


def embedding(run_dir: Path, config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """Question and answer; where rows have them also `wrong`, a negative, or `label`."""
    module = Transformer(str(_folder(run_dir, common)))
    if not config.data.use_chat_template:
        module.modality_config = {"text": module.modality_config["text"]}
    pooling = {"last_token": "lasttoken"}.get(config.model.pooling, config.model.pooling)
    modules = [module, Pooling(module.get_embedding_dimension(), pooling), *([Normalize()] * config.model.normalize)]
    model = SentenceTransformer(modules=modules, device="cpu")
    model.max_seq_length = config.data.max_length  # longer texts are cut before what the template writes behind them
    _add_adapter(model, config, "none")
    loss = LOSSES[config.train.loss_type](model, config.train)
    if config.train.matryoshka_dims:
        dims, weights = zip(
            *({model.get_embedding_dimension(): 1.0} | config.train.matryoshka_dims).items(), strict=True
        )
        loss = losses.MatryoshkaLoss(model, loss, dims, weights)
    columns = [name for name in ("question", "answer", "wrong", "label") if name in rows[0]]
    return SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**whole_batches(common), batch_sampler=InOrder),
        train_dataset=Dataset.from_dict({name: [row[name] for row in rows] for name in columns}),
        loss=loss,
    )


def reranker(run_dir: Path, config: Any, rows: list[dict[str, Any]], common: dict[str, Any]) -> Any:
    """Question, chosen and rejected; every row has the same number of documents."""
    folder = str(_folder(run_dir, common))
    if config.train.task == "reranker":
        model = CrossEncoder(folder, num_labels=1, max_length=config.data.max_length, device="cpu")
    else:
        asking = {"chat_template": {"add_generation_prompt": True}}
        module = Transformer(folder, transformer_task="text-generation", processing_kwargs=asking)
        answers = [config.train.positive_token, config.train.negative_token]
        model = CrossEncoder(
            modules=[module, LogitScore(*module.tokenizer.convert_tokens_to_ids(answers))], device="cpu"
        )
    _add_adapter(model, config, "reward" if config.train.task == "reranker" else "causal_lm")
    lists = [[row["chosen"], *row["rejected"]] for row in rows]
    queries, size = [row["question"] for row in rows], len(lists[0])
    arguments = whole_batches(common)
    if config.train.loss_type == "listwise":
        loss = pair_losses.ListNetLoss(model)
        # Behind its softmax all the target is on the first.
        dataset = {"query": queries, "docs": lists, "labels": [[0.0] + [-math.inf] * (size - 1)] * len(rows)}
    else:
        loss = pair_losses.BinaryCrossEntropyLoss(model)
        dataset = {
            "query": [query for query in queries for _ in range(size)],
            "document": [document for documents in lists for document in documents],
            "label": ([1.0] + [0.0] * (size - 1)) * len(rows),
        }
        arguments["per_device_train_batch_size"] *= size
    return CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(**arguments, batch_sampler=InOrder),
        train_dataset=Dataset.from_dict(dataset),
        loss=loss,
    )


def _folder(run_dir: Path, common: dict[str, Any]) -> Path:
    """The weights that the run began with, and its tokenizer, in one folder."""
    folder = Path(common["output_dir"]) / "begin"
    for part in ("init", "tokenizer"):
        shutil.copytree(run_dir / part, folder, dirs_exist_ok=True)
    return folder


def whole_batches(common: dict[str, Any]) -> dict[str, Any]:
    """The arguments without accumulation."""
    rows = common["per_device_train_batch_size"] * common["gradient_accumulation_steps"]
    return common | {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 1}


def _add_adapter(model: Any, config: Any, head: Any) -> None:
    if config.model.tuner != "full":
        set_seed(config.train.seed)
        adapter = peft_config(config.model, head)
        if head == "reward":
            adapter.modules_to_save = ["score"]  # as PEFT's own models of this kind have it
        model.add_adapter(adapter)
