"""The promises of SECURITY.md: nothing in a bundle is executed, and nothing outside it is read."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file

from runtime import BundleError, Captioner, PatchcaptionError, WholeImage
from runtime.bundle import MANIFEST, record_files
from tests.conftest import ROOT, SAMPLE

BACKENDS = ("cpu", "openvino")
WATCHED = """
import os
import sys
from runtime import Captioner, WholeImage
folder, backend, image = sys.argv[1:]
Captioner.load(folder, backend).caption(image, [WholeImage()], n_best=1)  # imports what it imports
EXECUTING = ("exec", "compile", "marshal.loads", "pickle.find_class", "ctypes.dlopen", "import", "os.exec", "os.system",
             "os.posix_spawn", "subprocess.Popen", "socket.connect")
events = []  # of several threads
def watch(event, arguments):
    if event in EXECUTING:
        events.append(f"{event} {arguments}")
    elif event == "open" and arguments[0] in os.listdir(folder):  # in the folder, which is open
        events.append(f"read {arguments[0]}")
    elif event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(folder):
        events.append("read " + arguments[0].removeprefix(folder + "/"))
sys.addaudithook(watch)
Captioner.load(folder, backend).caption(image, [WholeImage()], n_best=1)
print(*events, sep="\\n")
"""


def with_matching_manifest(folder: Path) -> Path:
    """Return the bundle with a manifest of its files as they are, as an attacker would send it."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).unlink()
    manifest["files"] = {name: record.model_dump() for name, record in record_files(folder).items()}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_loading_and_describing_execute_nothing(demo_bundle: Path, backend: str) -> None:
    command = [sys.executable, "-c", WATCHED, str(demo_bundle), backend, str(SAMPLE / "scene.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    events = done.stdout.splitlines()
    assert "read manifest.json" in events, "the watch sees nothing"
    of_this_process = "ctypes.dlopen (None,)"  # its own functions
    assert [event for event in events if not event.startswith("read ") and event != of_this_process] == []


@pytest.mark.parametrize("location", ["../outside.data", "{outside}", "./backbone.onnx.data", "*/_ORT_MEM_ADDR_/*", ""])
def test_a_graph_cannot_read_outside_its_bundle(bundle_copy: Callable[[], Path], location: str) -> None:
    folder = bundle_copy()
    outside = shutil.copy(folder / "backbone.onnx.data", folder.parent / "outside.data")
    location = location.format(outside=outside)
    graph = onnx.load(folder / "backbone.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / "backbone.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(BundleError, match=f"backbone.onnx: .* weights are in '{re.escape(location)}', which is no"):
        Captioner.load(with_matching_manifest(folder))


def test_a_graph_cannot_hold_a_compiled_engine(bundle_copy: Callable[[], Path]) -> None:
    folder = bundle_copy()
    node = onnx.helper.make_node(
        "EPContext", ["pixel_values"], ["tokens"], domain="com.microsoft", embed_mode=1, ep_cache_context=b"a plan"
    )
    graph = onnx.load(folder / "decoder.onnx", load_external_data=False)
    graph.graph.node.append(node)
    (folder / "decoder.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(BundleError, match=r"decoder.onnx: .*\(com.microsoft.EPContext\): the exporter does not write"):
        Captioner.load(with_matching_manifest(folder))


def test_a_graph_cannot_be_in_a_format_that_is_not_looked_at(bundle_copy: Callable[[], Path]) -> None:
    folder = bundle_copy()
    (folder / "backbone.onnx").rename(folder / "backbone.ort")
    manifest = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(manifest.replace('"backbone.onnx"', '"backbone.ort"'))
    with pytest.raises(BundleError, match=r"manifest.json: engines.backbone.file: .*should match pattern '.*onnx"):
        Captioner.load(with_matching_manifest(folder))


def test_a_graph_cannot_bring_operators(bundle_copy: Callable[[], Path]) -> None:
    folder = bundle_copy()
    graph = onnx.load(folder / "backbone.onnx", load_external_data=False)
    graph.graph.node[0].domain = "of.a.stranger"
    (folder / "backbone.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(BundleError, match=r"backbone.onnx: .*\(of.a.stranger.*\): the exporter does not write"):
        Captioner.load(with_matching_manifest(folder))


class Harm:
    """An object whose unpickling makes a folder."""

    def __init__(self, evidence: Path) -> None:
        self._evidence = evidence

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._evidence),)


@pytest.mark.parametrize("name", ["memory.safetensors", "tokenizer.json", "captions.jsonl", "backbone.onnx"])
def test_pickles_in_a_bundle_are_not_opened(bundle_copy: Callable[[], Path], tmp_path: Path, name: str) -> None:
    folder, evidence = bundle_copy(), tmp_path / "harm was done"
    (folder / name).write_bytes(pickle.dumps(Harm(evidence)))
    with pytest.raises(PatchcaptionError, match=name):
        Captioner.load(with_matching_manifest(folder)).caption(SAMPLE / "scene.jpg", [WholeImage()], n_best=1)
    assert not evidence.exists()


def bank(**changed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return the tensors of the demo's bank, some of them changed or left out."""
    valid: dict[str, torch.Tensor | None] = {"embeddings": torch.zeros(2520, 192), "inverse_norms": torch.ones(2520)}
    return {name: tensor for name, tensor in {**valid, **changed}.items() if tensor is not None}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (bank(embeddings=None), r"expected embeddings \(M, D\) in float32, float16, bfloat16 or int8"),
        (bank(embeddings=torch.zeros(2520)), r"expected embeddings \(M, D\) in float32, float16, bfloat16 or int8"),
        (
            bank(embeddings=torch.zeros(2520, 192).double()),
            "expected embeddings .* in float32, float16, bfloat16 or int8",
        ),
        (bank(embeddings=torch.zeros(2520, 191)), r"expected embeddings \(2520, 192\), got \(2520, 191\)"),
        (bank(inverse_norms=None), r"expected inverse_norms \(2520,\) in float32"),
        (bank(inverse_norms=torch.ones(8)), r"expected inverse_norms \(2520,\) in float32"),
        (bank(inverse_norms=torch.ones(2520).half()), r"expected inverse_norms \(2520,\) in float32"),
        (bank(scales=torch.ones(2519)), r"expected scales \(2520,\) in float32"),
        (
            {name: tensor[:2000] for name, tensor in bank().items()},
            r"expected embeddings \(2520, 192\), got \(2000, 192\)",
        ),
    ],
)
def test_kernels_are_not_sent_beyond_the_bank(
    bundle_copy: Callable[[], Path], tensors: dict[str, torch.Tensor], message: str
) -> None:
    folder = bundle_copy()
    save_file(tensors, folder / "memory.safetensors")
    with pytest.raises(BundleError, match=f"memory.safetensors: {message}"):
        Captioner.load(with_matching_manifest(folder))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"residual": torch.zeros(2520, 191, dtype=torch.int8)}, r"expected residual \(2520, 192\) in int8"),
        ({"residual": torch.zeros(2520, 192)}, r"expected residual \(2520, 192\) in int8"),
        ({"residual": torch.zeros(2520, 192, dtype=torch.int8)}, r"expected scales \(2520,\) in float32"),
    ],
)
def test_residuals_must_fit_the_bank(
    bundle_copy: Callable[[], Path], tensors: dict[str, torch.Tensor], message: str
) -> None:
    folder = bundle_copy()
    save_file(tensors, folder / "memory_residual.safetensors")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["memory"]["residual"] = "memory_residual.safetensors"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"memory_residual.safetensors: {message}"):
        Captioner.load(with_matching_manifest(folder))


@pytest.mark.parametrize("lines", ['"a"\n' * 2519, "1\n" * 2520, '"a"\n' * 2521, "[" * 9000 + "\n"])
def test_captions_must_fit_the_bank(bundle_copy: Callable[[], Path], lines: str) -> None:
    folder = bundle_copy()
    (folder / "captions.jsonl").write_text(lines)
    with (
        Captioner.load(with_matching_manifest(folder)) as captioner,
        pytest.raises(BundleError, match="captions.jsonl: "),
    ):
        captioner.caption(SAMPLE / "scene.jpg", [WholeImage()], n_best=1)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname", "a/b.json", "..", ".hidden", "a\\b.json", ""])
def test_a_manifest_cannot_name_what_is_not_in_its_folder(bundle_copy: Callable[[], Path], name: str) -> None:
    folder = bundle_copy()
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "tokenizer": name}))
    with pytest.raises(BundleError, match=f"{MANIFEST}: tokenizer: "):
        Captioner.load(folder)
