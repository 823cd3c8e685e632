"""Embeddings of a batch's texts -> its loss, by sentence-transformers, and evaluation metrics; pure.

Shapes: M texts of R rows, row after row: anchor, positive, negatives; D: dimension of an embedding.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.sentence_transformer import losses

from rayswift.config.train import SftTrainConfig
from rayswift.data.sequence.windows import PackedRow
from rayswift.train import evaluation

ROLE, LABEL, WIDTH = 0, 1, 2
"""Columns of the per-text metadata: role (0 anchor, 1 positive, 2 negative); label of the row, nan without one."""
_LIKE, _UNLIKE = "similarity of like pairs", "similarity of unlike pairs"


def text_metadata(rows: Sequence[PackedRow]) -> torch.Tensor:
    """Return the per-text metadata, float32 [M, WIDTH]."""
    lines = [
        [float(min(position, 2)), dict(row.numbers).get("label", math.nan)]
        for row in rows
        for position in range(len(row.lengths))
    ]
    return torch.tensor(lines, dtype=torch.float32).reshape(-1, WIDTH)


class EmbeddingLoss:
    """The loss of task embedding, a mean over rows (of online_contrastive a sum over its hard pairs).

    infonce is InfoNCE (van den Oord et al., 2018, eq. 4) over cosine similarities, with every positive and negative of
    the batch as candidates; contrastive is Hadsell et al., 2006, eq. 4, over cosine distances; online_contrastive uses
    only its pairs that are harder than the easiest of the other kind. With `train.matryoshka_dims` (Kusupati et al.,
    2022) the weighted losses of cut embeddings are added to that of the whole one.
    """

    def __init__(self, train: SftTrainConfig):
        self._name, self._dims = train.loss_type, train.matryoshka_dims
        margin = train.contrastive_margin
        # They would ask a `SentenceTransformer` for embeddings; here they are given them.
        made: dict[str, Any] = {
            "infonce": lambda: losses.MultipleNegativesRankingLoss(None, scale=1 / train.infonce_temperature),
            "cosine_similarity": lambda: losses.CosineSimilarityLoss(None),
            "contrastive": lambda: losses.ContrastiveLoss(None, margin=margin),
            "online_contrastive": lambda: losses.OnlineContrastiveLoss(None, margin=margin),
        }
        self._loss = made[str(self._name)]().compute_loss_from_embeddings
        self.compares_rows = self._name in ("infonce", "online_contrastive")
        """Whether a row's loss depends on the other rows of the batch."""

    def __call__(self, embeddings: torch.Tensor, metadata: torch.Tensor) -> torch.Tensor:
        """Return the loss of embeddings [M, D] with their per-text metadata [M, WIDTH]."""
        weights = {embeddings.shape[1]: 1.0} | self._dims
        total = torch.zeros((), device=embeddings.device)
        for dim, weight in weights.items():
            cut = embeddings if dim == embeddings.shape[1] else _normalized(embeddings[:, :dim])
            texts, labels = _columns(cut, metadata)
            total = total + weight * self._loss(texts, labels)
        return total

    def sums(self, embeddings: torch.Tensor, metadata: torch.Tensor) -> evaluation.Sums:
        """Return the sums of a batch's metrics; see `named`."""
        texts, labels = _columns(_normalized(embeddings.detach()), metadata)
        anchors, candidates = texts[0], torch.cat(texts[1:])
        if self._name == "infonce":
            return _ranking_sums(anchors @ candidates.T)
        similarity = (anchors * candidates).sum(dim=1)
        if self._name == "cosine_similarity":
            return {"similarity_error": (float((similarity - labels).abs().sum()), len(labels))}
        like = labels == 1
        return {
            _LIKE: (float(similarity[like].sum()), float(like.sum())),
            _UNLIKE: (float(similarity[~like].sum()), float((~like).sum())),
        }

    @staticmethod
    def named(totals: evaluation.Sums) -> evaluation.Sums:
        """Return the metrics; the margin of labelled pairs is the similarity of like minus that of unlike pairs."""
        rest = {name: pair for name, pair in totals.items() if name not in (_LIKE, _UNLIKE)}
        (like, num_like), (unlike, num_unlike) = (totals.get(name, (0.0, 0.0)) for name in (_LIKE, _UNLIKE))
        return rest | ({"margin": (like / num_like - unlike / num_unlike, 1.0)} if num_like and num_unlike else {})


def _ranking_sums(similarity: torch.Tensor) -> evaluation.Sums:
    """Return how often and by how much the diagonal of similarities [R, candidates], the positives, is highest."""
    rows, candidates = similarity.shape
    if candidates < 2:
        return {}
    own = similarity.diagonal()
    others = similarity.masked_fill(torch.eye(rows, candidates, dtype=torch.bool, device=similarity.device), -math.inf)
    ahead = own - others.max(dim=1).values
    return {"recall_at_1": (float((ahead > 0).sum()), rows), "margin": (float(ahead.sum()), rows)}


def _columns(embeddings: torch.Tensor, metadata: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return anchors [R, D], positives [R, D] and negatives [N, D], if any, as the losses take them; and labels [R]."""
    roles = metadata[:, ROLE]
    texts = [embeddings[roles == role] for role in (0, 1, 2)]
    return texts if len(texts[2]) else texts[:2], metadata[roles == 0, LABEL]


def _normalized(embeddings: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(embeddings, dim=-1)
