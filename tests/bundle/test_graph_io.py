"""The contract of a bundle's graphs, held to the graphs of the demo."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from runtime.bundle import Bundle, Manifest
from runtime.bundle.engine_io import fixed_sizes
from runtime.bundle.graph_io import (
    IMAGES,
    REENCODER,
    REGION_TOKENS,
    REGIONS,
    GraphIo,
    TensorSpec,
    backbone,
    beam_decoder_step,
    decoder_step,
    is_cache,
    past_names,
    present_names,
)

DTYPES = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
    "cache": TensorProto.FLOAT,  # the demo's cache_precision is fp32
}
DYNAMIC_AXES = {IMAGES, REGIONS, REGION_TOKENS}


@pytest.fixture(scope="module")
def manifest(demo_bundle: Path) -> Manifest:
    return Bundle(demo_bundle, verify=False).manifest


def contracts(manifest: Manifest) -> dict[str, GraphIo]:
    """Return the contract of each of a bundle's graphs, by its file."""
    num_layers = manifest.decoder.num_layers
    graphs = (backbone(has_attention=True), REENCODER, decoder_step(num_layers), beam_decoder_step(num_layers))
    return {io.file: io for io in graphs}


def expected_axes(spec: TensorSpec, sizes: dict[str, int]) -> list[str | int]:
    return [axis if isinstance(axis, int) or axis in DYNAMIC_AXES else sizes[axis] for axis in spec.axes]


def axes_of(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_every_graph_of_a_bundle_has_a_contract(manifest: Manifest) -> None:
    assert {record.file for record in manifest.engines.values()} == set(contracts(manifest))
    for name, record in manifest.engines.items():
        assert contracts(manifest)[record.file].name == name


@pytest.mark.parametrize("file", ["backbone.onnx", "reencoder.onnx", "decoder.onnx", "beam_decoder.onnx"])
def test_names_dtypes_and_axes_are_those_of_the_graph(demo_bundle: Path, manifest: Manifest, file: str) -> None:
    graph, io = onnx.load(demo_bundle / file, load_external_data=False).graph, contracts(manifest)[file]
    assert [value.name for value in graph.input] == io.input_names
    assert [value.name for value in graph.output] == io.output_names
    # The words that have text are fewer than the vocabulary: those without a text are never chosen.
    words = axes_of(graph.output[0])[-1] if file == "beam_decoder.onnx" else 0
    assert isinstance(words, int)
    sizes = {**fixed_sizes(manifest), "vocabulary": words}
    for value, spec in zip([*graph.input, *graph.output], [*io.inputs, *io.outputs], strict=True):
        assert value.type.tensor_type.elem_type == DTYPES[spec.dtype], spec.name
        assert axes_of(value) == expected_axes(spec, sizes), spec.name
    assert 0 <= words <= manifest.decoder.vocab_size


def test_a_cache_has_a_key_and_a_value_for_each_layer() -> None:
    assert past_names(2) == [
        "past_key_values.0.key",
        "past_key_values.0.value",
        "past_key_values.1.key",
        "past_key_values.1.value",
    ]
    assert present_names(2) == ["present.0.key", "present.0.value", "present.1.key", "present.1.value"]
    for io in (decoder_step(3), beam_decoder_step(3)):
        assert [name for name in io.input_names if is_cache(name)] == past_names(3)
        assert [name for name in io.output_names if is_cache(name)] == present_names(3)
        assert {spec.name for spec in (*io.inputs, *io.outputs) if spec.dtype == "cache"} == {
            *past_names(3),
            *present_names(3),
        }


def test_both_steps_of_a_decoder_take_the_same_inputs() -> None:
    assert decoder_step(4).inputs == beam_decoder_step(4).inputs
    assert decoder_step(4).outputs[2:] == beam_decoder_step(4).outputs[1:]
