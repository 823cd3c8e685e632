"""HF's plain trainer on the stream, for tasks whose loss is computed here from a model's outputs."""

from typing import Any, ClassVar

import torch
from datasets import Dataset

from rayswift.model import tuners
from rayswift.train.trainers.row_means import RowMeans

_BEHIND = "behind"


class HeadTrainer(RowMeans):
    """`transformers`' `Trainer`, streamed, with an adapter around the model where one is trained.

    Args:
        behind: Modules that the model's outputs go through, which are trained whole whatever the model is; they are
            part of it for the optimizer and for checkpoints, and no part of the weights that are saved as the model's.
    """

    loss_is_scaled_for_ga: ClassVar[bool] = False

    def __init__(
        self,
        *,
        model: Any,
        args: Any,
        processing_class: Any,
        peft_config: Any = None,
        behind: torch.nn.Module | None = None,
        **kwargs: Any,
    ):
        # A classification head looks at the last token that is no padding.
        model.config.get_text_config().pad_token_id = processing_class.pad_token_id
        if peft_config is not None:
            model = tuners.with_new_adapter(model, peft_config, args)
        if behind is not None:
            model.add_module(_BEHIND, behind)
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if hasattr(self.model, _BEHIND):
            whole = self.model.state_dict() if state_dict is None else state_dict
            state_dict = {name: tensor for name, tensor in whole.items() if not name.startswith(f"{_BEHIND}.")}
        super()._save(output_dir, state_dict)

    @staticmethod
    def placeholder() -> Dataset:
        """A row that is never read."""
        return Dataset.from_dict({"input_ids": [[0, 0]], "labels": [0]})
