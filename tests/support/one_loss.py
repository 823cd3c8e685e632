"""One training loss of a task, in this process, by the real data path and trainer, as a command line asks for it."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import set_seed

from rayswift.cluster.layout import Layout
from rayswift.config.derived import compares_partners, keeps_reference
from rayswift.config.load import load as load_config
from rayswift.config.tasks import TASKS, load
from rayswift.data.feed.client import FeedClient
from rayswift.data.feed.feed import Feed
from rayswift.data.prepare import plan_windows
from rayswift.data.sequence.global_batches import FeedPlan, Position
from rayswift.data.tokenizer.loaded import load_with_padding
from rayswift.data.tokenizer.training_copy import prepare_tokenizer
from rayswift.launch import plan as planning
from rayswift.model import load as models
from rayswift.model.size import shapes
from rayswift.model.texts.row_kind import row_kind
from rayswift.model.tuners import peft_config
from rayswift.train.arguments import trainer_arguments
from rayswift.train.clock import Clock
from rayswift.train.spec import RunSpec

QUESTIONS = ("one and two?", "the sum of 3 and 4?", "seven", "what is 5 less 1?")
ANSWERS = ("three it is", "7", "a prime number, I think", "4, which is even")
BATCH = len(QUESTIONS)


def _rows(task: str) -> list[dict[str, Any]]:
    pairs = list(zip(QUESTIONS, ANSWERS, ANSWERS[1:] + ANSWERS[:1], strict=True))
    match TASKS[task].family:
        case "causal":
            return [{"question": q, "answer": a} for q, a, _ in pairs]
        case "preference":
            return [{"question": q, "chosen": a, "rejected": b} for q, a, b in pairs]
        case "kto":
            return [{"question": q, "answer": a, "label": i != 1} for i, (q, a, _) in enumerate(pairs)]
        case "classification":
            return [{"question": q, "label": i % 3} for i, (q, _, _) in enumerate(pairs)]
        case "embedding":
            return [{"anchor": q, "positive": a} for q, a, _ in pairs]
        case "reranker":
            return [{"query": q, "positive": [a], "negative": [b]} for q, a, b in pairs]
        case family:
            raise AssertionError(family)


def one_loss(task: str, model: Path, work: Path, *flags: str) -> tuple[float, Any]:
    """The loss of one batch and the trainer, whose model has its gradients."""
    work.mkdir(parents=True, exist_ok=True)
    path, rows = work / "rows.jsonl", _rows(task)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    verb, *own = TASKS[task].verb.rpartition(", ")[2].split()
    own += ["--model", str(model), "--data.dataset", str(path), "--max_length", "64", "--max_steps", "1"]
    own += ["--num_workers", "0", "--train.output_dir", str(work), "--gradient_checkpointing", "false"]
    own += ["--per_device_train_batch_size", str(BATCH), "--report_to", "none", "--data.packing", "false", *flags]
    with patch.object(shapes, "built", side_effect=OSError("a process of seconds, which says nothing of the loss")):
        plan = planning.resolve(load_config(verb, own).config, Layout(0, "cpu", 1, local=True), None)
    folder = prepare_tokenizer(plan.config.model, work / "tokenizer", row_kind(plan.config, model))
    windows, _ = plan_windows(plan.config.data, folder, 42, work / "data", row_kind(plan.config, model))
    config = planning.with_labels(planning.with_window_rows(plan, windows.window_rows), windows).config
    mismatched_length = config.data.max_length if compares_partners(config) else None
    cut = FeedPlan(BATCH, len(rows), windows.window_rows, 1, 1, 0.0, True, mismatched_length)
    spec = RunSpec(config, plan.layout, work, folder, cut, Clock(0), None, work)
    feed = FeedClient(Feed(windows, None, cut, str(work), _in_process), 20)
    feed.begin(feed.new_attempt(), Position())
    set_seed(42)
    row_task, dtype = TASKS[task], models.weights_dtype(config.model, False, "float32")
    network = models.load_model(config.model, str(model), dtype, row_task.head)
    tokenizer = load_with_padding(str(folder), config.model.trust_remote_code)
    stream = load(row_task.stream)(spec, feed, None, tokenizer, network)
    trainer_class = load(row_task.trainer)
    trainer = trainer_class(
        spec=spec,
        rank=0,
        stream=stream,
        model=network,
        args=trainer_arguments(spec, load(row_task.arguments), "float32", False, False),
        train_dataset=trainer_class.placeholder(),
        processing_class=tokenizer,
        peft_config=peft_config(config.model, row_task.head, 1),
        **models.reference(config, keeps_reference(config), str(model), dtype),
    )
    batches, num_items = trainer.get_batch_samples(iter(stream), 1, torch.device("cpu"))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batches[0], num_items_in_batch=num_items)
    loss.backward()
    return float(loss.detach()), trainer


def _in_process(windows: Any, epoch: int, first: int) -> Any:
    """The stream that Ray Data would make."""
    return (windows.make(epoch, number) for number in range(first, windows.num_windows))
