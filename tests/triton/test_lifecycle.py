"""How models come up, say why they cannot, and end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from export import triton_repository
from tests.conftest import SAMPLE
from tests.triton.client import ask, open_client
from tests.triton.server import serving

SCENE = (SAMPLE / "scene.jpg").read_bytes()


@pytest.fixture
def models(demo_bundle: Path, bundle_copy: Callable[[], Path], tmp_path: Path) -> Path:
    """A repository with a model of two instances, whose bundle is elsewhere and without beams, and two bad models."""
    models, without_beams = tmp_path / "models", bundle_copy()
    manifest = json.loads((without_beams / "manifest.json").read_text())
    del manifest["engines"]["beam_decoder"]
    (without_beams / "manifest.json").write_text(json.dumps(manifest))
    for name, *flags in (
        ("two", "--bundle-path", str(without_beams), "--instances", "2"),
        ("missing", "--bundle-path", str(tmp_path / "nowhere")),
        ("mistaken", "--bundle-path", str(demo_bundle)),
    ):
        assert triton_repository.main([str(demo_bundle), "--out", str(models), "--name", name, *flags]) == 0
    config = models / "mistaken" / "config.pbtxt"
    config.write_text(config.read_text() + 'parameters { key: "thread" value: { string_value: "2" } }\n')
    return models


@pytest.mark.slow
def test_models_load_each_by_itself_and_end_without_a_word(models: Path, triton: Path, tmp_path: Path) -> None:
    with serving(triton, models, tmp_path, "--exit-on-error=false") as server:
        with open_client("http", server) as client:
            assert [client.is_model_ready(name) for name in ("two", "missing", "mistaken")] == [True, False, False]
            (group,) = client.get_model_config("two")["instance_group"]
            assert (group["count"], group["kind"]) == (2, "KIND_CPU")
        with ThreadPoolExecutor(4) as threads:
            asked = [threads.submit(ask, "http", server, [SCENE], model="two") for _ in range(8)]
            assert {one.result()[0][0]["text"] for one in asked} == {"five shapes on a checked white background"}
        for protocol, status in (("http", "501"), ("grpc", "StatusCode.UNIMPLEMENTED")):
            with pytest.raises(InferenceServerException, match="built without a decoder for beam search") as raised:
                ask(protocol, server, [SCENE], options=[b'{"beams": 2}'], model="two")
            assert raised.value.status() == status
        log = server.log.read_text()
        assert f"{tmp_path}/nowhere: " in log
        assert "config.pbtxt: parameters: expected some of bundle, backend, " in log
        assert "got 'thread'" in log
        assert server.end() == 0
        assert server.log.read_text()[len(log) :].count("successfully unloaded") == 1


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="this environment has NumPy 1")
def test_a_server_that_cannot_read_arrays_of_this_numpy_says_so_as_it_loads(
    demo_bundle: Path, triton: Path, tmp_path: Path
) -> None:
    assert triton_repository.main([str(demo_bundle), "--out", str(tmp_path / "models")]) == 0
    shutil.rmtree(tmp_path / "models" / "patchcaption" / "1" / "bundle")  # not looked at
    with serving(triton, tmp_path / "models", tmp_path, has_numpy_1=False) as server:
        assert server.process.wait(30) != 0
        assert f"numpy {np.__version__}: this server's Python backend cannot read its arrays" in server.log.read_text()
