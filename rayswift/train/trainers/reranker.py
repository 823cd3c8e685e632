"""HF's trainer for rerankers, on the stream: a score for each document of a query."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from rayswift.config.train import SftTrainConfig
from rayswift.data.sequence.windows import PackedRow
from rayswift.model.texts import sentence_folder
from rayswift.train import evaluation
from rayswift.train.spec import RunSpec
from rayswift.train.trainers.per_example import HeadTrainer


class StreamedRerankerTrainer(HeadTrainer):
    """`transformers`' `Trainer`, streamed, over a model with a head of one output, the score.

    A row is a query with all its documents; every row has the same weight, for any number of documents. See
    `list_loss`.
    """

    def __init__(self, *, spec: RunSpec, **kwargs: Any):
        assert isinstance(spec.config.train, SftTrainConfig)
        self._config, self._model_files = spec.config, spec.tokenizer_dir
        self._listwise = spec.config.train.loss_type == "listwise"
        super().__init__(spec=spec, **kwargs)

    def _scores(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the scores of texts [M]."""
        return model(**self.taken(inputs)).logits.squeeze(-1)

    def _answers(self) -> tuple[int, int] | None:
        """Return the token ids of the two answers; None: the model has a head of one output."""
        return None

    def _loss(self, model: Any, inputs: dict[str, Any], rows: Sequence[PackedRow]) -> tuple[Any, evaluation.Sums]:
        scores = self._scores(model, inputs).float()
        if not rows:
            return scores.sum() * 0, {}
        lists = scores.split([len(row.lengths) for row in rows])
        losses, totals = [], evaluation.Sums()
        for row, of_row in zip(rows, lists, strict=True):
            labels = torch.tensor([value for name, value in row.numbers if name == "label"], device=scores.device)
            losses.append(list_loss(of_row, labels, self._listwise))
            evaluation.add(totals, list_sums(of_row.detach(), labels))
        return torch.stack(losses).mean(), totals

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        sentence_folder.write_reranker(folder, self._config, self._model_files, self._answers())


class StreamedGenerativeRerankerTrainer(StreamedRerankerTrainer):
    """`StreamedRerankerTrainer` over a language model, which answers yes or no.

    The score is the logit of `train.positive_token` minus that of `train.negative_token`, after the question.
    """

    def _answers(self) -> tuple[int, int]:
        train = self._config.train
        assert isinstance(train, SftTrainConfig)
        ids = [self.processing_class.convert_tokens_to_ids(t) for t in (train.positive_token, train.negative_token)]
        return ids[0], ids[1]

    def _scores(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
        positive, negative = self._answers()
        return logits[:, positive] - logits[:, negative]


def list_loss(scores: torch.Tensor, labels: torch.Tensor, listwise: bool) -> torch.Tensor:
    """Return the loss of one query.

    Args:
        scores: Of its documents, float32 [N].
        labels: 1 for a document that fits the query, else 0, float32 [N].
        listwise: The cross-entropy of a softmax over the documents (ListNet: Cao et al., 2007, eq. 5, with the target
            on those that fit); otherwise the mean binary cross-entropy of the documents.
    """
    if listwise:
        return functional.cross_entropy(scores, labels / labels.sum())
    return functional.binary_cross_entropy_with_logits(scores, labels)


def list_sums(scores: torch.Tensor, labels: torch.Tensor) -> evaluation.Sums:
    """Return the sums of a query's metrics; none if all of its documents fit, or no document.

    accuracy: whether each fitting document is above all others; mrr: 1 / rank of the best fitting document.
    """
    fitting, others = scores[labels == 1], scores[labels == 0]
    if not len(others) or not len(fitting):
        return {}
    rank = 1 + int((others >= fitting.max()).sum())
    return {"accuracy": (float(fitting.min() > others.max()), 1.0), "mrr": (1 / rank, 1.0)}
