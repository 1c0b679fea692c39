"""Coverage-guided fuzzing of what the runtime parses: `python -m tests.robustness.fuzz_targets TARGET -runs=100000`.

What follows the target goes to libFuzzer. Whatever is given, a target returns or raises a PatchcaptionError; all
else is a finding, which libFuzzer writes to a file that replays it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["runtime"]):
    import numpy as np

    from runtime.bundle import MANIFEST, SCHEMA, Bundle, TokenLayout
    from runtime.bundle.onnx_scan import graph_contents
    from runtime.cli.region_arguments import _mask, _polygon, _trace, _trace_pixels
    from runtime.errors import PatchcaptionError
    from runtime.image import Fit, View
    from runtime.regions import Canvas, Mask, Region, weight_rows

import onnx
import torch
from google.protobuf.message import DecodeError
from PIL import Image

_CANVAS = Canvas(View.of((64, 48), 56, Fit.STRETCH), TokenLayout.with_cls(4, 4), torch.zeros(2, 16))
_FOLDER = Path(tempfile.mkdtemp(prefix="patchcaption-fuzz-"))


_ENGINE = {"file": "backbone.onnx", "precision": "fp32", "opset": 20, "max_error": 1e-6}
_MANIFEST: dict[str, Any] = {
    "schema_version": SCHEMA,
    "backend": "tensorrt",
    "architecture": {
        **{"name": "dinov2", "width": 8, "depth": 2, "heads": 2, "patch": 14, "registers": 4, "size": 28, "resize": 30},
        **{"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "images_at_once": 4},
    },
    "backbone": _ENGINE,
    "decoder": _ENGINE,
    "plans": [
        {
            **{"graph": "backbone.onnx", "file": "backbone.plan", "key": "0" * 64, "tensorrt": "10.3.0", "gpu": "Orin"},
            **{"compute_capability": "8.7", "hardware": "same", "version_compatible": False},
            "profiles": [{"images": {"least": [1, 3], "best": [2, 3], "most": [4, 3]}}],
        }
    ],
    "decoding": {
        **{"width": 8, "layers": 1, "heads": 2, "head_width": 4, "steps": 30, "vocabulary": 9, "eos_token_id": 8},
        **{"cache": "fp16", "batches": [1, 4]},
    },
    "memory": {
        **{"embeddings": "backbone.plan", "captions": "captions.jsonl", "rows": 3, "temperature": 0.01},
        **{"normalize": True, "precision": "int8", "fine": "captions.jsonl", "rounding": 0.1, "best": 2},
    },
    "tokenizer": "captions.jsonl",
    "build": {"checkpoint": "demo", "built_at": "2026-11-24", "machine": "Linux", "versions": {"torch": "2.13.0"}},
    "files": {
        name: {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
        for name in ("backbone.onnx", "backbone.plan", "captions.jsonl")
    },
}


def laid(region: Region) -> None:
    """On an image, where it must be refused or come to finite weights."""
    weights = weight_rows([region], _CANVAS)
    assert torch.as_tensor(weights).isfinite().all()


def manifest(data: bytes) -> None:
    """The bytes as the file; then the right one with a few of its values, chosen by the bytes, put otherwise."""
    for name in _MANIFEST["files"]:
        (_FOLDER / name).touch()
    for written in (data, json.dumps(_altered(_MANIFEST, atheris.FuzzedDataProvider(data))).encode()):
        (_FOLDER / MANIFEST).write_bytes(written)
        with contextlib.suppress(PatchcaptionError):
            opened = Bundle(_FOLDER)
            for name in opened.manifest.files:
                assert opened.path(name).resolve().parent == _FOLDER.resolve(), f"{name} leaves the folder"


def _altered(right: dict[str, Any], provider: atheris.FuzzedDataProvider) -> dict[str, Any]:
    copy = json.loads(json.dumps(right))
    for _ in range(provider.ConsumeIntInRange(0, 3)):
        place: Any = copy
        while True:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = keys[provider.ConsumeIntInRange(0, len(keys) - 1)]
            if not place[key] or not isinstance(place[key], dict | list) or provider.ConsumeProbability() < 0.2:
                break
            place = place[key]
        value = _value(provider)
        if isinstance(place, dict) and isinstance(value, str) and provider.ConsumeBool():
            place[value] = place.pop(key)
        else:
            place[key] = value
    return copy


def _value(provider: atheris.FuzzedDataProvider) -> object:
    kinds: list[Callable[[], object]] = [
        lambda: None,
        lambda: [],
        lambda: {},
        provider.ConsumeBool,
        lambda: provider.ConsumeInt(8),
        lambda: provider.ConsumeIntInRange(-2, 40),
        provider.ConsumeFloat,
        lambda: provider.ConsumeUnicode(20),
        lambda: provider.PickValueInList(
            ["", ".", "..", "../outside", "/etc/hostname", "a/b", "a\\b", "a\0b", "int8", "1"]
        ),
    ]
    return kinds[provider.ConsumeIntInRange(0, len(kinds) - 1)]()


def mask(data: bytes) -> None:
    """A file of a mask, and an array of the image's size."""
    path = _FOLDER / "mask.png"
    path.write_bytes(data)
    with contextlib.suppress(PatchcaptionError):
        laid(_mask(str(path)))
    provider = atheris.FuzzedDataProvider(data)
    height, width = provider.ConsumeIntInRange(0, 50), provider.ConsumeIntInRange(0, 70)
    floats = [provider.ConsumeFloat() for _ in range(min(height * width, 64))]
    array = np.zeros(height * width)
    array[: len(floats)] = floats
    laid(Mask(array.reshape(height, width)))


def text_of(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def polygon(data: bytes) -> None:
    laid(_polygon(text_of(data)))


def trace(data: bytes) -> None:
    with contextlib.suppress(PatchcaptionError):
        laid(_trace(text_of(data)))
    laid(_trace_pixels(text_of(data)))


def graph(data: bytes) -> None:
    """What protobuf takes for a model is refused, or the files it names are all found."""
    path = _FOLDER / "graph.onnx"
    path.write_bytes(data)
    files = graph_contents(path).files
    with contextlib.suppress(DecodeError):
        tensors = onnx.ModelProto.FromString(data).graph.initializer
        for entries in ({entry.key: entry.value for entry in tensor.external_data} for tensor in tensors):
            named = entries.get("location", "")  # bytes where it is no UTF-8
            assert "location" not in entries or (named if isinstance(named, str) else text_of(named)) in files


def small_graph() -> bytes:
    tensor = onnx.TensorProto(name="w", dims=[1], data_type=1, data_location=1)
    tensor.external_data.add(key="location", value="a.data")
    inner = onnx.GraphProto(name="inner", initializer=[tensor])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner)
    return onnx.ModelProto(ir_version=10, graph=onnx.GraphProto(node=[node], initializer=[tensor])).SerializeToString()


TARGETS = {target.__name__: target for target in (manifest, graph, mask, polygon, trace)}


def seeds(target: str, folder: Path) -> None:
    """Write what is right, to begin with."""
    picture = io.BytesIO()
    Image.new("1", (64, 48), 1).save(picture, "PNG")
    right = {
        "manifest": [json.dumps(_MANIFEST).encode()],
        "graph": [small_graph()],
        "mask": [picture.getvalue()],
        "polygon": [b"0,0 50,0 25,40", b"-5,-5 70,1e1 3.5,nan"],
        "trace": [b"0.1,0.2 0.3,0.4", b"10,20 30,40 1e3,2", b"inf,0"],
    }
    for number, data in enumerate(right[target]):
        (folder / f"seed{number}").write_bytes(data)


def main() -> None:
    target = TARGETS[sys.argv[1]]
    corpus = _FOLDER / "corpus"
    corpus.mkdir()
    seeds(sys.argv[1], corpus)

    def fuzzed(data: bytes) -> None:
        with contextlib.suppress(PatchcaptionError):
            target(data)

    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], fuzzed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
