"""Engines do not depend on the files that they were opened from: nothing of a bundle stays mapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from runtime import Captioner, WholeImage
from runtime.backends import open_backend
from runtime.bundle import Bundle
from runtime.errors import BundleError
from tests.conftest import SAMPLE

BACKENDS = ("cpu", "openvino")
SCENE = SAMPLE / "scene.jpg"


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    elif not hasattr(onnxruntime.SessionOptions, "add_external_initializers_from_files_in_memory"):
        pytest.skip("this version of ONNX Runtime maps weights")
    return str(request.param)


def mapped_files(folder: Path) -> list[str]:
    """Return the files of a folder that are mapped into this process."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return sorted({line.split(maxsplit=5)[5] for line in lines if str(folder) in line})


def test_an_open_bundle_maps_none_of_its_files(bundle_copy: Callable[[], Path], backend: str) -> None:
    folder = bundle_copy()
    with Captioner.load(folder, backend) as captioner:
        captioner.caption(SCENE, [WholeImage()], n_best=1, beams=2)
        assert mapped_files(folder) == []


@pytest.mark.parametrize("change", ["truncated", "overwritten", "removed"])
def test_files_that_change_do_not_reach_what_was_loaded(
    bundle_copy: Callable[[], Path], backend: str, change: str
) -> None:
    folder = bundle_copy()
    with Captioner.load(folder, backend) as captioner:
        before = captioner.caption(SCENE, [WholeImage()])
        for path in folder.iterdir():
            if change == "removed":
                path.unlink()
            else:
                path.write_bytes(b"" if change == "truncated" else bytes(path.stat().st_size))
        assert captioner.caption(SCENE, [WholeImage()]) == before


@pytest.mark.parametrize("name", ["beam_decoder", "reencoder"])
def test_what_is_opened_later_is_not_of_files_that_were_written_to(
    bundle_copy: Callable[[], Path], backend: str, name: str
) -> None:
    folder = bundle_copy()
    bundle = Bundle(folder)
    (folder / f"{name}.onnx").write_bytes((folder / "decoder.onnx").read_bytes())
    with pytest.raises(BundleError, match=f"{name}.onnx: it was changed while in use; load the bundle again"):
        open_backend(backend).open(bundle.engine(name))  # type: ignore[arg-type]
