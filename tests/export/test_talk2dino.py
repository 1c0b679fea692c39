"""Talk2DINO's projection: its layers, its two layouts, and which published file it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.checkpoint import CheckpointError
from export.readers.talk2dino import PUBLISHED_FILES, read_talk2dino
from tests.export.conftest import talk2dino_state


@pytest.mark.parametrize("second", ["hidden_layers.0", "linear_layer2"])
def test_talk2dino_is_two_layers_with_a_tanh_between_under_either_name(second: str, tmp_path: Path) -> None:
    state = talk2dino_state(second)
    torch.save(state, tmp_path / "projection.pth")
    talk2dino = read_talk2dino(tmp_path / "projection.pth")
    texts = torch.randn(5, 4)
    hidden = torch.tanh(texts @ state["linear_layer.weight"].T + state["linear_layer.bias"])
    expected = hidden @ state[f"{second}.weight"].T + state[f"{second}.bias"]
    torch.testing.assert_close(talk2dino(texts), expected)
    assert (talk2dino.text_width, talk2dino.width) == (4, 3)


def test_published_files_of_one_name_are_told_apart_by_their_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vitb_mlp_infonce.pth"
    torch.save(talk2dino_state("hidden_layers.0"), path)
    unknown = read_talk2dino(path)
    assert unknown.identity == f"an unpublished file (sha256 {unknown.sha256[:12]})"
    assert unknown.text_space == f"t2d-{unknown.sha256[:12]}"
    monkeypatch.setitem(PUBLISHED_FILES, unknown.sha256, ("t2d-2024", "the one of 2024-11"))
    known = read_talk2dino(path)
    assert (known.text_space, known.identity) == ("t2d-2024", "the one of 2024-11")
    assert len(PUBLISHED_FILES) == 4
    assert len({text_space for text_space, _ in PUBLISHED_FILES.values()}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear_layer.bias": None}, "linear_layer.bias is missing"),
        ({"hidden_layers.0.weight": None}, "hidden_layers.0.weight is missing"),
        (
            {"hidden_layers.1.weight": torch.ones(2, 2)},
            "hidden_layers.1.weight is not a weight of Talk2DINO's two layers",
        ),
        ({"hidden_layers.0.weight": torch.ones(3, 5)}, "hidden_layers.0.weight: expected 6 columns, .* got 5"),
        (
            {"linear_layer.bias": torch.ones(5)},
            r"linear_layer: expected weight \(out, in\) and bias \(out\), got \(6, 4\)",
        ),
    ],
)
def test_a_projection_of_another_layout_is_refused_by_key(
    changes: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    state = {**talk2dino_state("hidden_layers.0"), **changes}
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "projection.pth")
    with pytest.raises(CheckpointError, match=f"projection.pth: {message}"):
        read_talk2dino(tmp_path / "projection.pth")
