"""Torch modules to ONNX models in memory, by torch's exporter."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator

import onnx_ir
import torch

from export.graphs.specs import GraphSpec

OPSET = 20
"""The newest that TensorRT 10.3 (JetPack 6) reads completely."""
_COLLECTED_AFTER = 10_000
"""New objects after which Python looks for garbage among them."""


def trace(spec: GraphSpec) -> onnx_ir.Model:
    """Return the graph of a module in fp32, with its weights."""
    with _quiet(), _collecting_seldom():
        program = torch.onnx.export(
            spec.module,
            spec.example,
            input_names=spec.io.input_names,
            output_names=spec.io.output_names,
            opset_version=OPSET,
            dynamic_shapes=spec.dynamic_shapes,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None  # only the old exporter returns nothing
    _strip_metadata(program.model)
    _say_what_zeros_mean(program.model.graph)
    return program.model


def _say_what_zeros_mean(graph: onnx_ir.Graph) -> None:
    """Make every reshape to a constant shape without zeros say what all others do: that a zero would be a zero.

    The exporter leaves that out of the one that it makes of two.
    """
    for node in graph:
        if node.op_type == "Reshape" and "allowzero" not in node.attributes:
            shape = node.inputs[1].const_value if node.inputs[1] is not None else None
            if shape is not None and (shape.numpy() != 0).all():
                node.attributes["allowzero"] = onnx_ir.AttrInt64("allowzero", 1)


def _strip_metadata(model: onnx_ir.Model) -> None:
    """Drop what the exporter notes of the Python code behind each node, paths of this machine among it."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for part in (*model.graph, *model.graph.initializers.values(), *model.graph.inputs, *model.graph.outputs):
        part.metadata_props.clear()
        part.doc_string = None
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, whose own progress and internals are of no use to users of this command."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _collecting_seldom() -> Iterator[None]:
    """Let Python look for garbage more seldom: each time it goes through all that torch is, and a trace makes much."""
    thresholds = gc.get_threshold()
    gc.set_threshold(max(thresholds[0], _COLLECTED_AFTER), *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
