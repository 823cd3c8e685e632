"""HF's trainer for embeddings of texts, on the stream.

Losses that compare rows compare those of the whole global batch, whatever the number of workers and micro-batches:
every rank gets all embeddings, computes the loss of all of them, and propagates the gradient of its own embeddings back
through the model (GradCache: Gao et al., 2021, section 3). With several micro-batches, embeddings are computed twice:
first all of them without gradients, then with gradients, one micro-batch at a time.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers.trainer_utils import EvalLoopOutput

from rayswift.config.train import SftTrainConfig
from rayswift.data.sequence.windows import PackedRow
from rayswift.model.adapters import adapter_folder
from rayswift.model.texts import sentence_folder
from rayswift.train import evaluation
from rayswift.train.spec import RunSpec
from rayswift.train.trainers.embedding_losses import WIDTH, EmbeddingLoss, text_metadata
from rayswift.train.trainers.per_example import HeadTrainer


class StreamedEmbeddingTrainer(HeadTrainer):
    """`transformers`' `Trainer`, streamed, over a model without a head; see the module."""

    def __init__(self, *, spec: RunSpec, model: Any, **kwargs: Any):
        train = spec.config.train
        assert isinstance(train, SftTrainConfig)
        self._config, self._model_files = spec.config, spec.tokenizer_dir
        hidden_size = model.config.get_text_config().hidden_size
        self._modules = sentence_folder.modules_of(spec.config, spec.tokenizer_dir, hidden_size)
        if spec.config.model.adapters:
            sentence_folder.load_weights(self._modules, adapter_folder(spec.config.model.adapters[-1]))
        self._loss_of = EmbeddingLoss(train)
        self._micro_batches: list[dict[str, Any]] = []
        # State of a step whose rows are compared: the gradient for each remaining micro-batch, and the loss.
        self._gradients: deque[torch.Tensor] = deque()
        self._step_loss = torch.zeros(())
        for name, parameter in model.named_parameters():
            if name.startswith("pooler."):  # an encoder's own pooler, which embeddings do not use
                parameter.requires_grad_(False)
        layers = torch.nn.ModuleList(each.module for each in self._modules)
        has_weights = any(True for _ in layers.parameters())
        super().__init__(spec=spec, model=model, behind=layers if has_weights else None, **kwargs)
        self._prompt_lengths = self._measured_prompts(layers)

    def _measured_prompts(self, layers: Iterable[torch.nn.Module]) -> tuple[int, int]:
        """Return the numbers of tokens at the beginning of queries and of documents that the pooling leaves out."""
        excludes = any(isinstance(module, Pooling) and not module.include_prompt for module in layers)
        if not excludes or self._config.data.use_chat_template:  # the end of a rendered prompt is unknown
            return 0, 0
        prompts = sentence_folder.prompts_of(self._config, self._model_files)
        query, document = (sentence_folder.prompt_length(self.processing_class, prompt) for prompt in prompts)
        return query, document

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return HF's batches, and remember the micro-batches of the step."""
        self._micro_batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._micro_batches, num_items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss; see `PerExampleTrainer`. A loss that compares rows has the value of the global batch.

        Raises:
            UserError: a NaN or infinite loss.
        """
        if not self._loss_of.compares_rows:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rows = self.stream.handed_out.popleft()
        if self._accumulation > 1 and not self._gradients:  # the first micro-batch of a step
            parts = [rows, *self.stream.handed_out]
            self._compare(self._embed_ahead(model, parts), parts)
        embeddings = self._embed(model, inputs, rows)
        if self._accumulation == 1:
            self._compare(embeddings.detach(), [rows])
        self._step.append((rows, float(self._step_loss)))
        if not torch.isfinite(self._step_loss):
            raise self._not_a_number(f"the loss is {float(self._step_loss)}", self._step[-1:])
        back = (embeddings * self._gradients.popleft()).sum()
        # HF divides by the micro-batches, and the ranks' gradients are averaged.
        return self._step_loss + (back - back.detach()) * self._accumulation * self.args.world_size

    def _embed_ahead(self, model: Any, parts: Sequence[Sequence[PackedRow]]) -> torch.Tensor:
        """Compute the embeddings of all micro-batches, with the random numbers of the later passes with gradients."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            pairs = zip(self._micro_batches, parts, strict=True)
            return torch.cat([self._embed(model, self._prepare_inputs(batch), rows) for batch, rows in pairs])

    def _compare(self, embeddings: torch.Tensor, parts: Sequence[Sequence[PackedRow]]) -> None:
        """Compute the loss of all ranks' embeddings, and its gradient for this rank's, by micro-batch."""
        metadata = text_metadata([row for rows in parts for row in rows]).to(embeddings.device)
        counts, everything = self._of_all_ranks(torch.cat([embeddings, metadata], dim=1))
        begin = sum(counts[: self.args.process_index])
        pool, metadata = everything[:, :-WIDTH].clone().requires_grad_(), everything[:, -WIDTH:]
        with torch.enable_grad(), torch.autocast(pool.device.type, enabled=False):
            loss = self._loss_of(pool, metadata)
        (gradient,) = torch.autograd.grad(loss, pool)
        evaluation.add(self._sums, self._loss_of.sums(pool, metadata))
        own = gradient[begin : begin + len(embeddings)]
        self._gradients.extend(own.split([sum(len(row.lengths) for row in rows) for rows in parts]))
        self._step_loss = loss.detach()

    def _embed(self, model: Any, inputs: dict[str, Any], rows: Sequence[PackedRow]) -> torch.Tensor:
        """Return embeddings of the texts of rows, float32 [M, D]; without rows [0, D], still part of the graph."""
        # Queries are shorter than documents: each kind is padded to its own length, on every rank in two passes.
        lengths = [length for row in rows for length in row.lengths] or [2]
        queries = np.cumsum([0, *(len(row.lengths) for row in rows[:-1])]).tolist()
        documents = sorted({*range(len(lengths))} - {*queries}) if rows else queries
        parts = zip((queries, documents), self._prompt_lengths, strict=True)
        pooled = torch.cat([self._pooled(model, inputs, part, lengths, prompt) for part, prompt in parts])
        pooled = pooled[np.argsort([*queries, *documents])]
        return pooled if rows else pooled[:0]

    def _pooled(
        self, model: Any, inputs: dict[str, Any], places: list[int], lengths: list[int], prompt_length: int
    ) -> torch.Tensor:
        """Return the embeddings of these lines of the inputs, cut to the longest of them."""
        longest = max(lengths[place] for place in places)
        part = {name: each[places, :longest] for name, each in inputs.items()}
        features = {"token_embeddings": model(**part).last_hidden_state, "attention_mask": part["attention_mask"]}
        if prompt_length:
            features["prompt_length"] = prompt_length
        for each in self._modules:
            if isinstance(each.module, Normalize):
                features["sentence_embedding"] = features["sentence_embedding"].float()
            features = each.module(features)
        return features["sentence_embedding"].float()

    def _loss(self, model: Any, inputs: dict[str, Any], rows: Sequence[PackedRow]) -> tuple[Any, evaluation.Sums]:
        embeddings = self._embed(model, inputs, rows)
        if not rows:
            return embeddings.sum(), {}
        metadata = text_metadata(rows).to(embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._loss_of(embeddings, metadata), self._loss_of.sums(embeddings, metadata)

    def _named(self, totals: evaluation.Sums) -> evaluation.Sums:
        return self._loss_of.named(totals)

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Embed every evaluation row, then compare rows in batches of at least the global batch, in their order.

        All ranks hold all these embeddings and compute the same sums.
        """
        model = self.model_to_evaluate()
        tables, mine, world_size = [], 0, self.args.world_size
        for rows, batch in dataloader:
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                embeddings = self._embed(model, inputs, rows)
            # Rows are dealt out one by one, see `Feed.evaluation`.
            order = [(mine + i) * world_size + self.args.process_index for i, r in enumerate(rows) for _ in r.lengths]
            mine += len(rows)
            place = torch.tensor(order, dtype=torch.float32, device=embeddings.device).reshape(-1, 1)
            tables.append(torch.cat([place, embeddings, text_metadata(rows).to(embeddings.device)], dim=1))
        _, everything = self._of_all_ranks(torch.cat(tables))
        totals = self._named(self._evaluated(everything[everything[:, 0].argsort(stable=True)]))
        metrics = evaluation.values(totals, kwargs.get("metric_key_prefix", "eval"))
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=int(totals["loss"][1]))

    def _evaluated(self, table: torch.Tensor) -> evaluation.Sums:
        """Return loss and metrics of sorted lines of place, embedding and text metadata."""
        num_rows = int(table[-1, 0]) + 1
        batches = (table[:, 0] // self._global_batch).clamp(max=max(1, num_rows // self._global_batch) - 1)
        totals: evaluation.Sums = {}
        for lines in table.split(batches.unique_consecutive(return_counts=True)[1].tolist()):
            embeddings, metadata = lines[:, 1:-WIDTH], lines[:, -WIDTH:]
            rows = int(lines[-1, 0] - lines[0, 0]) + 1
            evaluation.add(totals, {"loss": (float(self._loss_of(embeddings, metadata)) * rows, rows)})
            evaluation.add(totals, self._loss_of.sums(embeddings, metadata))
        return totals

    def _of_all_ranks(self, lines: torch.Tensor) -> tuple[list[int], torch.Tensor]:
        """Return the number of lines of each rank, and all lines, in the order of ranks."""
        if self.args.world_size == 1:
            return [len(lines)], lines
        sizes = torch.zeros(self.args.world_size, dtype=torch.int64, device=lines.device)
        sizes[self.args.process_index] = len(lines)
        dist.all_reduce(sizes)
        counts: list[int] = sizes.tolist()
        own = torch.zeros(max(counts), lines.shape[1], dtype=lines.dtype, device=lines.device)
        own[: len(lines)] = lines
        gathered = [torch.empty_like(own) for _ in counts]
        dist.all_gather(gathered, own)
        return counts, torch.cat([each[:count] for each, count in zip(gathered, counts, strict=True)])

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        weights = self.weights_behind(state_dict)
        sentence_folder.write_embedding(folder, self._config, self._model_files, self._modules, weights)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        sentence_folder.load_weights(self._modules, Path(resume_from_checkpoint))
