"""The decoder that is trained has the published layout, and published files can be trained further."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from export.checkpoint import CheckpointError
from export.readers.decap import decoder_from_state
from export.training.decoder import DecoderSize, TrainableDecap, load_decoder
from export.training.losses import LossHistory
from export.training.run import TrainedDecoder
from export.training.state import save_whole

BLOCK = {
    "ln_1.weight": (768,),
    "ln_1.bias": (768,),
    "attn.c_attn.weight": (768, 2304),
    "attn.c_attn.bias": (2304,),
    "attn.c_proj.weight": (768, 768),
    "attn.c_proj.bias": (768,),
    "ln_2.weight": (768,),
    "ln_2.bias": (768,),
    "mlp.c_fc.weight": (768, 3072),
    "mlp.c_fc.bias": (3072,),
    "mlp.c_proj.weight": (3072, 768),
    "mlp.c_proj.bias": (768,),
}
PUBLISHED = {
    "decoder.transformer.wte.weight": (50257, 768),
    "decoder.transformer.wpe.weight": (1024, 768),
    **{f"decoder.transformer.h.{layer}.{name}": shape for layer in range(4) for name, shape in BLOCK.items()},
    "decoder.transformer.ln_f.weight": (768,),
    "decoder.transformer.ln_f.bias": (768,),
    "decoder.lm_head.weight": (50257, 768),
    "clip_project.model.0.weight": (768, 768),
    "clip_project.model.0.bias": (768,),
}
SMALL = DecoderSize(prefix_width=12, vocab_size=40, width=8, layers=2, positions=16)


def trained(size: DecoderSize) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return TrainedDecoder(TrainableDecap(size).eval(), LossHistory(1)).state_dict()


def test_the_published_sizes_have_the_published_names_and_shapes_in_their_order() -> None:
    with torch.device("meta"):
        model = TrainableDecap(DecoderSize(prefix_width=768))
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == PUBLISHED
    assert list(model.state_dict()) == list(PUBLISHED)
    assert sum(value.numel() for value in model.parameters()) == 68_327_424


def test_what_is_saved_is_float32_and_holds_the_tied_head_once(tmp_path: Path) -> None:
    state = trained(SMALL)
    save_whole(tmp_path / "decoder.pt", state)
    loaded = torch.load(tmp_path / "decoder.pt", weights_only=True)
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    assert loaded["decoder.lm_head.weight"].data_ptr() == loaded["decoder.transformer.wte.weight"].data_ptr()
    stored = 4 * sum(value.numel() for name, value in state.items() if "lm_head" not in name)
    assert stored < (tmp_path / "decoder.pt").stat().st_size < stored + 300 * len(state)
    decoder = decoder_from_state(dict(loaded), 40, "decoder.pt")
    assert decoder.config.prefix_width == 12
    assert decoder.config.num_layers == 2


def test_the_same_weights_are_the_same_bytes_whatever_the_file_is_called(tmp_path: Path) -> None:
    for name in ("a.pt", "another.pth"):
        save_whole(tmp_path / name, trained(SMALL))
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "another.pth").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_published_file_with_masks_is_trained_further(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in trained(SMALL).items()}
    masks = {
        f"decoder.transformer.h.{layer}.attn.{name}": value
        for layer in range(2)
        for name, value in (("bias", torch.ones(1, 1, 16, 16)), ("masked_bias", torch.tensor(-1e4)))
    }
    torch.save(state | masks, tmp_path / "published.pt")
    model = load_decoder(tmp_path / "published.pt", dropout=0.25)
    assert model.size == DecoderSize(12, vocab_size=40, width=8, layers=2, positions=16, dropout=0.25)
    assert model.state_dict().keys() == state.keys()
    assert all(value.equal(state[name].float()) for name, value in model.state_dict().items())
    assert model.decoder.lm_head.weight is model.decoder.transformer.wte.weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_project.model.0.weight": None}, "clip_project.model.0.weight"),
        ({"clip_project.model.0.bias": None}, "clip_project.model.0.bias"),
        ({"decoder.transformer.h.1.mlp.c_fc.bias": torch.zeros(3)}, "mlp.c_fc.bias"),
        ({"decoder.lm_head.weight": torch.zeros(40, 8)}, "lm_head.weight: expected the values of"),
        ({"module.decoder.transformer.wte.weight": torch.zeros(1)}, "module.decoder.transformer.wte.weight"),
    ],
)
def test_another_layout_is_refused_with_the_name_of_the_weight(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    state = trained(SMALL) | changes
    path = tmp_path / "other.pt"
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_decoder(path, 0)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
