"""HF's plain trainer on the stream, for tasks whose loss is computed here from a model's outputs."""

from typing import Any, ClassVar

from datasets import Dataset
from peft import get_peft_model
from transformers import set_seed

from rayswift.train.row_trainer import RowMeans


class HeadTrainer(RowMeans):
    """`transformers`' `Trainer`, streamed, with an adapter around the model where one is trained."""

    loss_is_scaled_for_ga: ClassVar[bool] = False

    def __init__(self, *, model: Any, args: Any, processing_class: Any, peft_config: Any = None, **kwargs: Any):
        # A classification head looks at the last token that is no padding.
        model.config.get_text_config().pad_token_id = processing_class.pad_token_id
        if peft_config is not None:
            set_seed(args.seed)
            # ZeRO-3 gathers small parameters together, so they must be of one type.
            zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
            model = get_peft_model(model, peft_config, autocast_adapter_dtype=not zero3)
            if args.gradient_checkpointing:
                model.enable_input_require_grads()
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)

    @staticmethod
    def placeholder() -> Dataset:
        """A row that is never read."""
        return Dataset.from_dict({"input_ids": [[0, 0]], "labels": [0]})
