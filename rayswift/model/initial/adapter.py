"""LoRA initialisations that are computed once, before the training, from the weights or from the first rows.

From the weights: PiSSA (Meng et al., 2024) and OLoRA (Buyukakyuz, 2024). From rows: EVA (Paischer et al., 2024: main
directions of a layer's inputs), CorDA (Yang et al., 2024: weights decomposed by the covariance of their inputs) and
LoRA-GA (Wang et al., 2024: directions of the first gradient). All but EVA subtract the adapter from the base weights.
PEFT implements them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from transformers import PreTrainedModel

from rayswift.config.fields.tuners import looks_at_rows
from rayswift.config.model import ModelConfig
from rayswift.config.tasks import Head
from rayswift.data.collate.packed import collate
from rayswift.data.sequence.windows import PackedRow
from rayswift.log import UserError, logger
from rayswift.model import tuners

_MOST_PASSES = 50


def write(
    network: PreTrainedModel, model: ModelConfig, head: Head, adapter: Path, base: Path, rows: Sequence[PackedRow]
) -> PreTrainedModel:
    """Save the initialised adapter to the folder `adapter`, and return the model with the remaining base weights.

    base: the folder where these weights will be saved; rows: for an initialisation from rows.
    """
    tuners.check_targets(network, model)
    if looks_at_rows(model):
        tuned = _from_rows(network, model, head, rows)
    else:
        tuned = get_peft_model(network, tuners.new_adapter(model, head))
    config: Any = tuned.peft_config["default"]
    config.init_lora_weights = True  # so that loading the adapter does not initialise it again
    config.eva_config = config.corda_config = config.lora_ga_config = None
    config.base_model_name_or_path = str(base)
    tuned.save_pretrained(adapter)
    below: PreTrainedModel = tuned.unload()
    return below.cpu()


def _from_rows(network: PreTrainedModel, model: ModelConfig, head: Head, rows: Sequence[PackedRow]) -> PeftModel:
    kind = model.tuner_kwargs["init_lora_weights"]
    logger.info("initialising the adapter by %s from %d rows", kind, len(rows))
    network = network.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    # Batches of one row have no padding: CorDA counts every token.
    made = [collate([row], 0, "rows") for row in rows]
    names = ("input_ids", "labels", "position_ids")
    batches = [{name: batch[name].to(network.device) for name in names} for batch in made]
    config: Any = tuners.new_adapter(model, head)
    if not isinstance(config.target_modules, set):  # all-linear: PEFT names the layers when it adds an adapter
        plain = get_peft_model(network, LoraConfig(target_modules=config.target_modules, task_type=config.task_type))
        config.target_modules = plain.peft_config["default"].target_modules
        network = plain.unload()

    def forward() -> None:
        for batch in batches:
            network(**batch, use_cache=False)

    def forward_and_backward() -> None:
        for batch in batches:
            network(**batch, use_cache=False).loss.backward()

    try:
        if kind == "corda":
            preprocess_corda(network, config, forward)
        elif kind == "lora_ga":
            preprocess_loraga(network, config, forward_and_backward)
        tuned: PeftModel = get_peft_model(network, config)
        if kind == "eva":
            initialize_lora_eva_weights(
                tuned,
                _Passes(batches),
                forward_fn=lambda adapted, batch: adapted(**batch, use_cache=False),
                gather_distributed_inputs=False,
                show_progress_bar=False,
            )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"model.tuner_kwargs.init_lora_weights = {kind}: {error}; it uses model.init_rows = {model.init_rows} rows",
            exit_code=1,
        ) from error
    return tuned


class _Passes:
    """The batches for EVA, which repeats them until its directions converge."""

    def __init__(self, batches: Sequence[dict[str, torch.Tensor]]):
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(_MOST_PASSES):
            yield from self._batches
        raise ValueError(f"its directions have not converged after {_MOST_PASSES} passes over {len(self)} rows")
