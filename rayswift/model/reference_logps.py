"""The reference model's log-probabilities of all answers, computed before the training, which then needs no reference.

Actors of Ray Data compute them for every raw row, in parts, into `data/reference-*` of the run folder; an interrupted
or resumed run uses the finished parts. Windows attach them to their rows (`WindowPlan.columns`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from rayswift.cluster.layout import Layout
from rayswift.config.model import ModelConfig, adapters_of_reference, named_reference, whole_model
from rayswift.config.schema import TrainingConfig
from rayswift.data.cache.columns import compute
from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import EncodedRow
from rayswift.data.feed.pipeline import make_in_order
from rayswift.data.raw_rows import Result, encode_raw
from rayswift.data.sequence.windows import PackedRow, WindowPlan, Windows
from rayswift.data.sources import RawRow
from rayswift.data.tokenizer.loaded import load_with_padding
from rayswift.log import logger


def computed(
    config: TrainingConfig, layout: Layout, run_dir: Path, windows: Windows, eval_windows: Windows | None
) -> tuple[WindowPlan, WindowPlan | None]:
    """The windows with the reference's log-probabilities of their rows."""
    num_actors = layout.world_size
    if layout.device == "cpu":  # leave a CPU for the tasks that feed the actors
        num_actors = max(1, min(num_actors, config.cluster.num_data_cpus - 1))
    in_actors = partial(make_in_order, num_actors=num_actors, num_gpus_per_actor=float(layout.device == "cuda"))

    def with_logps(plan: Windows | None, name: str) -> WindowPlan | None:
        if plan is None:
            return None
        assert isinstance(plan, WindowPlan), "packed rows alone have a cache"
        function = _function(config, layout, plan.encode)
        rows = {key: value for key, value in asdict(plan.encode).items() if key != "tokenizer_dir"}
        ingredients = {"rows": rows, "reference": function.model_json, "ld_alpha": function.ld_alpha}
        if function.merged_adapters:
            ingredients["adapters"] = "\n".join(function.merged_adapters)
        logger.info("writing the reference's log-probabilities of the rows to %s", name)
        folder = run_dir / "data" / f"reference-{name}"
        return replace(plan, columns=compute(plan.row_set, function, folder, ingredients, in_actors))

    train = with_logps(windows, "train")
    assert train is not None
    return train, with_logps(eval_windows, "evaluate")


def _function(config: TrainingConfig, layout: Layout, encode: EncodeConfig) -> "ReferenceLogps":
    model = config.model
    named = named_reference(model)
    extra = config.train.trl_extra
    # Without a name it is the initial model, with the adapter that is continued.
    alone = model if named is None and model.tuner != "full" else whole_model(model, named, quantizes=True)
    return ReferenceLogps(
        encode=encode,
        model_json=alone.model_dump_json(include=set(ModelConfig.model_fields)),
        uses_deepspeed=config.cluster.uses_deepspeed,
        device=layout.device,
        threads=layout.threads_per_worker,
        batch_rows=extra.get("precompute_ref_batch_size") or config.train.per_device_train_batch_size,
        ld_alpha=extra.get("ld_alpha"),
        merged_adapters=tuple(adapters_of_reference(model)),
    )


@dataclass(frozen=True)
class ReferenceLogps:
    """Raw preference rows -> log-probabilities of both answers of each pair; None for a bad row.

    ld_alpha: weight of the tokens of the longer answer beyond the length of the shorter one (Liu et al., "Length
    Desensitization in Direct Preference Optimization", 2024); None means 1.
    """

    encode: EncodeConfig
    model_json: str
    uses_deepspeed: bool
    device: str
    threads: int
    batch_rows: int
    ld_alpha: float | None
    merged_adapters: tuple[str, ...] = ()

    def __call__(self, raw: Sequence[RawRow]) -> Mapping[str, Sequence[list[float] | None]]:
        encoded = [_documents([result for _, result in made]) for made in encode_raw(self.encode, raw)]
        pairs: list[PackedRow] = []
        places: list[int] = []
        for place, documents in enumerate(encoded):
            if isinstance(documents, list):
                pairs += [_pair(*documents[i : i + 2]) for i in range(0, len(documents), 2)]
                places += [place] * (len(documents) // 2)
        found: dict[str, list[list[float] | None]] = {
            name: [[] if isinstance(documents, list) else None for documents in encoded]
            for name in ("ref_chosen_logps", "ref_rejected_logps")
        }
        for place, values in zip(places, self._logps(pairs), strict=True):
            for column, value in zip(found.values(), values, strict=True):
                of_row = column[place]
                assert of_row is not None
                of_row.append(value)
        return found

    def _logps(self, pairs: Sequence[PackedRow]) -> list[tuple[float, float]]:
        """(chosen, rejected) of each pair; pairs are sorted by length, so that batches have little padding."""
        import torch

        from rayswift.data.collate.padded import preference_batch
        from rayswift.model.load import resolve_dtype

        model, pad_token_id = _loaded(
            self.model_json,
            self.merged_adapters,
            self.uses_deepspeed,
            self.encode.tokenizer_dir,
            self.device,
            self.threads,
        )
        # The same precision as the policy's, so that both are equal at the first step.
        dtype = getattr(torch, resolve_dtype(ModelConfig.model_validate_json(self.model_json).dtype, self.device))
        computing = torch.autocast(self.device, dtype, enabled=dtype != torch.float32 and not self.uses_deepspeed)
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].input_ids))
        logps = [(0.0, 0.0)] * len(pairs)
        for begin in range(0, len(order), self.batch_rows):
            picked = order[begin : begin + self.batch_rows]
            batch = preference_batch([pairs[i] for i in picked], pad_token_id, "rows")
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            mask = inputs.pop("completion_mask")
            with torch.inference_mode(), computing:
                logits = model(**inputs, use_cache=False).logits[:, :-1].float()
            of_tokens = logits.log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1)
            chosen, rejected = answer_logps(of_tokens, mask[:, 1:], self.ld_alpha).chunk(2)
            for i, values in zip(picked, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True):
                logps[i] = values
        return logps


def answer_logps(logps_BT: Any, mask_BT: Any, ld_alpha: float | None) -> Any:
    """Log-probabilities [B] of answers from those of their tokens [B, T]; first all chosen, then all rejected."""
    import torch

    place = mask_BT.cumsum(dim=1)
    shared = mask_BT.sum(dim=1).view(2, -1).min(dim=0).values.repeat(2)[:, None]
    weight = torch.where(place > shared, 1.0 if ld_alpha is None else ld_alpha, 1.0)
    return (logps_BT * mask_BT * weight).sum(dim=1)


def _documents(results: Sequence[Result]) -> list[EncodedRow] | None:
    """All answers that a raw row gives; None for a bad row."""
    return [document for result in results if isinstance(result, list) for document in result] or None


def _pair(chosen: EncodedRow, rejected: EncodedRow) -> PackedRow:
    ids = np.concatenate([chosen.input_ids, rejected.input_ids])
    trained = np.concatenate([chosen.trained, rejected.trained])
    return PackedRow(ids, trained, (len(chosen.input_ids), len(rejected.input_ids)), 1)


@cache
def _loaded(
    model_json: str, adapters: tuple[str, ...], uses_deepspeed: bool, tokenizer_dir: str, device: str, threads: int
) -> tuple[Any, int]:
    """The reference model of this process, and the padding token."""
    import torch

    from rayswift.model.load import load_merged, resolve_dtype, weights_dtype

    config = ModelConfig.model_validate_json(model_json)
    torch.set_num_threads(threads)
    dtype = weights_dtype(config, uses_deepspeed, resolve_dtype(config.dtype, device))
    model = load_merged(config, config.path, dtype, adapters)
    if not config.quantization:  # bitsandbytes loads to the device itself
        model = model.to(device)
    model.eval()
    pad_token_id = load_with_padding(tokenizer_dir, config.trust_remote_code).pad_token_id
    return model, int(pad_token_id)
