"""What tests of the exporter share: a copy of the demo checkpoint to change, and small parts of checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from export.checkpoint import MemorySource
from export.readers import DEMO_CONFIG


@pytest.fixture
def demo_files(tmp_path: Path) -> Path:
    """A folder with a copy of the demo checkpoint's files."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in DEMO_CONFIG.parent.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[tuple[str, str], Path]:
    """A hub that serves these files of its repositories and nothing else."""
    served: dict[tuple[str, str], Path] = {}

    def metadata(url: str) -> None:
        if not any(url == f"{repository}/{name}" for repository, name in served):
            raise ConnectionError("Name or service not known\nand more")

    def files_of(repository: str) -> list[str]:
        if not any(served_by == repository for served_by, _ in served):
            raise ConnectionError("Name or service not known\nand more")
        return [name for served_by, name in served if served_by == repository]

    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda repository, name: f"{repository}/{name}")
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", metadata)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name: str(served[repository, name]))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.list_repo_files", files_of)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, **_: files_of(repository))
    monkeypatch.chdir(tmp_path)
    return served


def change_config(folder: Path, **settings: object) -> Path:
    """Change settings of the configuration in a folder, remove those that are None, and return its path."""
    path = folder / "config.yaml"
    changed = yaml.safe_load(path.read_text()) | settings
    path.write_text(yaml.safe_dump({key: value for key, value in changed.items() if value is not None}))
    return path


def whole_bank(memory: MemorySource) -> tuple[Tensor, list[str]]:
    """Return all rows and captions of a bank."""
    blocks = list(memory.rows())
    return torch.cat([embeddings for embeddings, _ in blocks]), [text for _, texts in blocks for text in texts]


def talk2dino_state(second: str) -> dict[str, Tensor]:
    """Return random weights of a projection from width 4 to 3, its second layer named ``second``."""
    torch.manual_seed(0)
    return {
        "linear_layer.weight": torch.randn(6, 4),
        "linear_layer.bias": torch.randn(6),
        f"{second}.weight": torch.randn(3, 6),
        f"{second}.bias": torch.randn(3),
    }
