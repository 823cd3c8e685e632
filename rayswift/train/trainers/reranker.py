"""HF's trainer for rerankers, on the stream: a score for each document of a query."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rayswift.config.train import SftTrainConfig
from rayswift.data.sequence.windows import PackedRow
from rayswift.model.texts import sentence_folder
from rayswift.train import evaluation
from rayswift.train.spec import RunSpec
from rayswift.train.trainers.head_trainer import HeadTrainer
from rayswift.train.trainers.reranking import list_loss, list_sums


class StreamedRerankerTrainer(HeadTrainer):
    """`transformers`' `Trainer`, streamed, over a model with a head of one output, the score.

    A row is a query with all its documents; every row counts the same, however many it has. See `list_loss`.
    """

    def __init__(self, *, spec: RunSpec, **kwargs: Any):
        assert isinstance(spec.config.train, SftTrainConfig)
        self._config, self._model_files = spec.config, spec.tokenizer_dir
        self._listwise = spec.config.train.loss_type == "listwise"
        super().__init__(spec=spec, **kwargs)

    def _scores(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """The scores of texts [M]."""
        if "token_type_ids" not in self.processing_class.model_input_names:
            inputs = {name: tensor for name, tensor in inputs.items() if name != "token_type_ids"}
        return model(**inputs).logits.squeeze(-1)

    def _answers(self) -> tuple[int, int] | None:
        """Token ids that a score is made of."""
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
    """`StreamedRerankerTrainer` over a language model: the score is by how much its answer is yes rather than no.

    The score is the logit of `train.positive_token` less that of `train.negative_token`, behind the question.
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
