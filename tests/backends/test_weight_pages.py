"""Weights that backends have mapped and repacked do not stay in this process's memory."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.backends import open_backend
from runtime.backends.weight_pages import release_weight_pages
from runtime.bundle import Bundle

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps")

MIB = 2**20


def resident_kib(path: Path) -> int:
    """Return how much of a file is in this process's memory."""
    total, of_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split()[0].endswith(":"):
            of_file = line.endswith(str(path))
        elif of_file and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "backbone.onnx.data"
    path.write_bytes(bytes(range(256)) * (MIB // 256))
    return path


@pytest.fixture(params=["shared", "private"])
def mapped(request: pytest.FixtureRequest, weights: Path) -> Iterator[mmap.mmap]:
    access = {"shared": mmap.ACCESS_READ, "private": mmap.ACCESS_COPY}[request.param]
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, access=access) as mapping:
        sum(mapping[::4096])
        yield mapping


def test_pages_that_were_only_read_leave_and_come_back(mapped: mmap.mmap, weights: Path) -> None:
    assert resident_kib(weights) == 1024
    release_weight_pages(weights.parent)
    assert resident_kib(weights) == 0
    assert mapped[:] == weights.read_bytes()


def test_a_mapping_that_was_written_to_keeps_what_was_written(weights: Path) -> None:
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
        mapping[5000] = 7
        sum(mapping[::4096])
        release_weight_pages(weights.parent)
        assert mapping[5000] == 7
        assert resident_kib(weights) == 1024


@pytest.mark.usefixtures("mapped")
def test_other_files_stay(weights: Path, tmp_path: Path) -> None:
    release_weight_pages(tmp_path / "elsewhere")
    assert resident_kib(weights) == 1024
    memory = tmp_path / "memory.safetensors"
    memory.write_bytes(weights.read_bytes())
    with memory.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        sum(mapping[::4096])
        release_weight_pages(tmp_path)
        assert resident_kib(memory) == 1024


def test_a_folder_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "with two  spaces"
    folder.mkdir()
    path = folder / "decoder.onnx.data"
    path.write_bytes(bytes(MIB))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        sum(mapping[::4096])
        release_weight_pages(folder)
        assert resident_kib(path) == 0


def test_an_open_engine_holds_no_page_of_the_file_it_was_read_from(demo_bundle: Path) -> None:
    engine = open_backend("cpu").open(Bundle(demo_bundle, verify=False).engine("decoder"))
    assert resident_kib(demo_bundle / "decoder.onnx.data") == 0
    engine.close()
