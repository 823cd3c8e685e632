"""What sentence-transformers finds in a checkpoint: the modules after the model with the trained weights."""

from pathlib import Path

import torch
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

from rayswift.model.texts.sentence_folder import Placed, load_weights, write_embedding
from tests.unit.model.test_text_settings import config_of, sentence_folder


def modules() -> tuple[list[Placed], torch.nn.ModuleList]:
    """Some with weights and one without."""
    layers = torch.nn.ModuleList([Pooling(32, "mean"), Dense(32, 8), LayerNorm(8)])
    return [Placed(module, f"{i}_{type(module).__name__}") for i, module in enumerate(layers, start=1)], layers


def test_weights_are_saved_that_deepspeed_holds(tmp_path: Path) -> None:
    """ZeRO 1 and 2 make every weight a part of one buffer; ZeRO-3 leaves nothing of it in the module."""
    source = sentence_folder(tmp_path / "source")
    placed, layers = modules()
    buffer = torch.cat([parameter.detach().flatten() for parameter in layers.parameters()] + [torch.zeros(5)])
    state, begin = {}, 0
    for name, parameter in layers.named_parameters():
        state[name] = buffer[begin : begin + parameter.numel()].view(parameter.shape)
        begin += parameter.numel()
        parameter.data = torch.empty(0)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_embedding(folder, config_of(source, "embedding"), source, placed, state)
    again, loaded = modules()
    load_weights(again, folder)
    assert set(loaded.state_dict()) == set(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
