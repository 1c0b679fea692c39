"""Coverage-guided fuzzing of what the runtime parses: `python -m tests.robustness.fuzz_targets TARGET -runs=100000`.

What follows the target goes to libFuzzer. Whatever is given, a target returns or raises a PatchcaptionError; all
else is a finding, which libFuzzer writes to a file that replays it.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import atheris

with atheris.instrument_imports(include=["runtime"]):
    import numpy as np

    from runtime.bundle import MANIFEST, SCHEMA, Bundle, TokenLayout, reading
    from runtime.bundle.admission.onnx_file import NotAdmittedError, parse_graph
    from runtime.cli.region_arguments import _mask, _polygon, _trace, _trace_pixels
    from runtime.errors import PatchcaptionError
    from runtime.image import Fit, View, open_image
    from runtime.output.csv_table import CsvTable
    from runtime.output.recording import RecordFile
    from runtime.output.subtitles import SUBRIP, WEBVTT, _SubtitleRecorder
    from runtime.regions import (
        AttentionHead,
        Box,
        BoxSet,
        Canvas,
        Crop,
        Mask,
        Patch,
        Point,
        Polygon,
        Region,
        Register,
        Trace,
        WholeImage,
        from_dict,
        regions_from_json,
        to_dict,
        weight_rows,
    )
    from runtime.regions.detections import as_rows
    from runtime.results import Caption
    from runtime.system.outputs import Output
    from runtime.system.standard_streams import one_line, printable
    from runtime.video.frames import Frame
    from runtime.video.stream import FrameCaptions

import onnx
import torch
from PIL import Image

from tests.graph_reading import as_protobuf_reads

_CANVAS = Canvas(View.of((64, 48), 56, Fit.STRETCH), TokenLayout.with_cls(4, 4), torch.zeros(2, 16))
_FOLDER = Path(tempfile.mkdtemp(prefix="patchcaption-fuzz-"))


_EMPTY_FILE = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
_MANIFEST: dict[str, Any] = {
    "schema_version": SCHEMA,
    "backend": "tensorrt",
    "backbone": {
        **{"family": "dinov2", "name": "dinov2_vits14_reg", "text_space": "fuzz", "embed_dim": 8, "output_dim": 8},
        **{"depth": 2, "num_heads": 2, "patch_size": 14, "attention_heads": 2, "max_batch_size": 4},
        "tokens": {"global_tokens": ["cls", "register"], "grid": 2},
        "preprocessing": {
            **{"image_size": 28, "resize_short_side": 30, "resample": "bicubic"},
            **{"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
        },
    },
    "decoder": {
        **{"kind": "decap", "text_space": "fuzz", "embed_dim": 8, "num_layers": 1, "num_heads": 2, "head_dim": 4},
        **{
            "max_new_tokens": 30,
            "vocab_size": 9,
            "eos_token_ids": [8],
            "cache_precision": "fp16",
            "batch_sizes": [1, 4],
        },
    },
    "memory": {
        **{"text_space": "fuzz", "embeddings": "backbone.plan", "captions": "captions.jsonl", "num_rows": 3},
        **{"temperature": 0.01, "normalize": True, "precision": "int8", "residual": "captions.jsonl"},
        **{"max_relative_error": 0.1, "refine_top_k": 2},
    },
    "engines": {
        name: {"file": "backbone.onnx", "precision": "fp32", "opset": 20, "max_error": 1e-6}
        for name in ("backbone", "decoder", "reencoder", "beam_decoder")
    },
    "plans": [
        {
            **{"graph": "backbone.onnx", "file": "backbone.plan", "key": "0" * 64, "product": "tensorrt"},
            **{"version": "10.3.0", "gpu": "Orin", "compute_capabilities": ["8.7"], "hardware": "same"},
            "version_compatible": False,
            "profiles": [{"pixel_values": {"min": [1, 3], "opt": [2, 3], "max": [4, 3]}}],
        }
    ],
    "tokenizer": "captions.jsonl",
    "build": {"checkpoint": "demo", "built_at": "2026-11-24", "machine": "Linux", "versions": {"torch": "2.13.0"}},
    "files": dict.fromkeys(("backbone.onnx", "backbone.plan", "captions.jsonl"), _EMPTY_FILE),
}

_PROMPT: dict[str, Any] = {
    **{"soft_tokens": 2, "order": "soft_first", "max_tokens": 9, "unit_vectors": True},
    "hard": {
        **{"source": "entities", "embeddings": "backbone.plan", "pieces": "captions.jsonl", "num_entities": 4},
        **{"temperature": 0.1, "top_k": 3, "threshold": 0.2},
    },
}
_PROMPTED_MANIFEST: dict[str, Any] = {
    **_MANIFEST,
    "decoder": {**_MANIFEST["decoder"], "kind": "viecap", "text_end": ".", "prompt": _PROMPT},
    "engines": {**_MANIFEST["engines"], **dict.fromkeys(("mapping", "prefill"), _MANIFEST["engines"]["decoder"])},
}


def check_weights(region: Region) -> None:
    """Lay a region on an image, where it must be refused or have finite weights."""
    weights = weight_rows([region], _CANVAS)
    assert torch.as_tensor(weights).isfinite().all()


@contextlib.contextmanager
def short_errors() -> Iterator[None]:
    """Let errors of this project pass, whose messages do not grow with what they quote."""
    message = ""
    try:
        yield
    except PatchcaptionError as error:
        message = str(error)
    assert len(message) <= 2000, "it grows with what it quotes"


def manifest(data: bytes) -> None:
    """Open the bytes as a manifest, then the right one with a few of its values, chosen by the bytes, changed."""
    for text in (data, json.dumps(_altered_manifest(atheris.FuzzedDataProvider(data))).encode()):
        with short_errors():
            opened = open_manifest(text)
            for name in opened.manifest.files:
                assert opened.path(name).resolve().parent == _FOLDER.resolve(), f"{name} leaves the folder"


def open_manifest(text: bytes) -> Bundle:
    for name in _MANIFEST["files"]:
        (_FOLDER / name).touch()
    (_FOLDER / MANIFEST).write_bytes(text)
    with mock.patch.object(reading, "admit", return_value=parse_graph(b"")):  # its graphs are empty
        return Bundle(_FOLDER)


def _altered_manifest(provider: atheris.FuzzedDataProvider) -> dict[str, Any]:
    altered = json.loads(json.dumps(provider.PickValueInList([_MANIFEST, _PROMPTED_MANIFEST])))
    for _ in range(provider.ConsumeIntInRange(0, 3)):
        part: Any = altered
        while True:
            keys = sorted(part) if isinstance(part, dict) else range(len(part))
            key = keys[provider.ConsumeIntInRange(0, len(keys) - 1)]
            if not part[key] or not isinstance(part[key], dict | list) or provider.ConsumeProbability() < 0.2:
                break
            part = part[key]
        value = _value(provider)
        if isinstance(part, dict) and isinstance(value, str) and provider.ConsumeBool():
            part[value] = part.pop(key)
        else:
            part[key] = value
    return altered


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
            ["", ".", "..", "../outside", "/etc/hostname", "a/b", "a\\b", "a\0b", "int8", "1", "\ud800", "x" * 5000]
        ),
        lambda: provider.PickValueInList([10**30, 10**300, 2**63, -(2**63), 1e-320, 1e308, float("inf"), float("nan")]),
    ]
    return kinds[provider.ConsumeIntInRange(0, len(kinds) - 1)]()


def mask(data: bytes) -> None:
    """Read a mask's file, and take an array of the image's size."""
    path = _FOLDER / "mask.png"
    path.write_bytes(data)
    with contextlib.suppress(PatchcaptionError):
        check_weights(_mask(str(path)))
    provider = atheris.FuzzedDataProvider(data)
    height, width = provider.ConsumeIntInRange(0, 50), provider.ConsumeIntInRange(0, 70)
    floats = [provider.ConsumeFloat() for _ in range(min(height * width, 64))]
    array = np.zeros(height * width)
    array[: len(floats)] = floats
    check_weights(Mask(array.reshape(height, width)))


def as_text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def polygon(data: bytes) -> None:
    check_weights(_polygon(as_text(data)))


def trace(data: bytes) -> None:
    with contextlib.suppress(PatchcaptionError):
        check_weights(_trace(as_text(data)))
    check_weights(_trace_pixels(as_text(data)))


def regions(data: bytes) -> None:
    """Read a JSON list of regions; what is read can be written and read again. Take any JSON as regions."""
    with contextlib.suppress(ValueError, RecursionError):
        given = json.loads(data)
        with short_errors():
            as_rows(given, (64, 48))
    for region in regions_from_json(data):
        assert from_dict(json.loads(json.dumps(to_dict(region)))) == region or isinstance(region, Mask)
        with contextlib.suppress(PatchcaptionError):
            check_weights(region)


def graph(data: bytes) -> None:
    """Refuse a graph's bytes, or read in them what protobuf does."""
    with contextlib.suppress(NotAdmittedError):
        assert parse_graph(data) == as_protobuf_reads(data)


def small_graph() -> bytes:
    weight = onnx.TensorProto(name="w", dims=[1], data_type=1, data_location=1)
    for key, value in (("location", "a.data"), ("offset", "0"), ("length", "4")):
        weight.external_data.add(key=key, value=value)
    node = onnx.helper.make_node("Slice", ["x", "w"], ["y"], "n", domain="d", axes=[1, -2], scale=0.5, mode="a")
    values = [onnx.helper.make_tensor_value_info(name, 1, ["rows", 3]) for name in "xyz"]
    made = onnx.helper.make_graph([node], "g", values[:1], values[1:2], [weight], value_info=values[2:])
    opsets = [onnx.helper.make_opsetid("", 20)]
    return onnx.helper.make_model(made, ir_version=10, opset_imports=opsets).SerializeToString()


def texts(data: bytes) -> None:
    """Write any text as a caption wherever captions are written, and take it for the name of a file."""
    text = atheris.FuzzedDataProvider(data).ConsumeUnicode(len(data))
    assert _ACTS_ON_TERMINALS.search(printable(one_line(text))) is None
    described = FrameCaptions(Frame(0, 0.0, text), [Caption(text, 0.5, ())], 0, 0.0, error=text)
    (field, _) = (row["caption"] for row in csv.DictReader(io.StringIO(_written("csv", described), newline="")))
    assert not field.startswith(("=", "+", "-", "@", "\t", "\r"))
    for suffix in ("srt", "vtt"):
        cue = _written(suffix, described)
        assert cue.count("-->") <= 1, cue
    for call in (open_image, Bundle):
        with short_errors():
            call(text)


_ACTS_ON_TERMINALS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _written(suffix: str, described: FrameCaptions) -> str:
    path = _FOLDER / f"captions.{suffix}"
    with path.open("w+b", buffering=0) as file:
        records = RecordFile(Output(path), file)
        if suffix == "csv":
            CsvTable(records).add(described)
        else:
            recorder = _SubtitleRecorder(records, {"srt": SUBRIP, "vtt": WEBVTT}[suffix], Fraction(1, 4), 0.0)
            recorder.add(described)
            recorder.end()
        file.seek(0)
        return file.read().decode()


TARGETS = {target.__name__: target for target in (manifest, graph, mask, polygon, trace, regions, texts)}


_HOSTILE_TEXTS = (
    "a dog",
    "=cmd|'/C calc'!A0",
    "\x1b[2J\x00\n\n2\n00:00:01,000 --> 00:00:02,000\n<b>{\\an8}",
    "\u202eexe.\u2066\ufeff\u2028",
    "../../etc/passwd\0.png",
    "x" * 1500,
)


def write_seeds(target: str, folder: Path) -> None:
    """Write valid inputs, which the fuzzer begins with."""
    image = io.BytesIO()
    Image.new("1", (64, 48), 1).save(image, "PNG")
    manifests = [json.dumps(one).encode() for one in (_MANIFEST, _PROMPTED_MANIFEST)]
    for text in manifests:
        open_manifest(text)  # which is valid
    kinds: list[Region] = [
        Box(1, 2, 30, 40),
        BoxSet([(1, 2, 3, 4)]),
        Crop(1, 2, 30, 40),
        Mask(np.eye(4)),
        Patch(1, 1),
        Point(5, 6),
        Polygon([(0, 0), (50, 0), (25, 40)]),
        Trace([(5, 5), (9, 9)]),
        WholeImage(),
        Register(0),
        AttentionHead(1),
    ]
    valid = {
        "manifest": manifests,
        "graph": [small_graph()],
        "mask": [image.getvalue()],
        "polygon": [b"0,0 50,0 25,40", b"-5,-5 70,1e1 3.5,nan"],
        "trace": [b"0.1,0.2 0.3,0.4", b"10,20 30,40 1e3,2", b"inf,0"],
        "regions": [
            *(json.dumps([to_dict(region)]).encode() for region in kinds),
            b'[{"xyxy": [1, 2, 30, 40], "score": 0.5, "id": 7, "class_name": "dog"}]',
            b'[{"segmentation": [[0, 0, 50, 0, 25, 40]]}, [1, 2, 30, 40], 1e999, null, "box"]',
            b'{"boxes": [[1, 2, 30, 40]], "scores": [0.5], "labels": [3]}',
            b"[[1" + b"0" * 400 + b", 2, 3, 4]]",
            b"[" * 100 + b"]" * 100,
        ],
        "texts": [text.encode() for text in _HOSTILE_TEXTS],
    }
    for number, data in enumerate(valid[target]):
        (folder / f"seed{number}").write_bytes(data)


def main() -> None:
    target = TARGETS[sys.argv[1]]
    corpus = _FOLDER / f"corpus-{sys.argv[1]}"
    corpus.mkdir()
    write_seeds(sys.argv[1], corpus)

    def run_target(data: bytes) -> None:
        with contextlib.suppress(PatchcaptionError):
            target(data)

    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], run_target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
