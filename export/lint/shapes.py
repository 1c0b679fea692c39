"""Rules on shapes: inputs that fit each other, and profiles that cover every dynamic dimension and agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
import onnx_ir

from export.lint.finding import LintContext, LintFinding, error, without_weights
from export.lint.shape_inference import MAX_RANK, is_checked_later
from export.lint.support_table import MAX_RANKS, MIN_RANKS
from runtime.bundle import ShapeRange


def check_shapes(context: LintContext) -> Iterator[LintFinding]:
    """Check that the inputs of each node fit each other in shape, where the shapes are known."""
    for node, reason in context.inference.misfits:
        yield error("shape", node, reason, "build" if is_checked_later(node) else "parse")


def check_ranks(context: LintContext) -> Iterator[LintFinding]:
    """Check that tensors have as many dimensions as TensorRT takes."""
    for value in (*context.graph.inputs, *context.graph.initializers.values()):
        rank = len(context.shape(value) or ())
        if rank > MAX_RANK:
            yield LintFinding("error", "shape", str(value.name), f"has {rank} dimensions; expected {MAX_RANK} at most")
    for node in context.nodes:
        shape = context.shape(node.inputs[0]) if node.inputs else None
        least = MIN_RANKS.get(node.op_type, 0)
        if shape is not None and len(shape) < least:
            yield error("shape", node, f"its input has {len(shape)} dimensions; expected {least} at least")
        if shape is not None and node.op_type in MAX_RANKS and len(shape) > MAX_RANKS[node.op_type]:
            yield error("shape", node, f"its input has {len(shape)} dimensions; expected {MAX_RANKS[node.op_type]}")


def check_profiles(context: LintContext) -> Iterator[LintFinding]:
    """Check that every dynamic dimension has a range in each profile, and that shapes resolve at all of its points."""
    dynamic = {
        str(value.name)
        for value in context.graph.inputs
        if any(not isinstance(size, int) for size in value.shape or ())
    }
    for number, profile in enumerate(context.profiles):
        location = f"profile {number}"
        messages = [f"does not cover {name}, which has dynamic dimensions" for name in dynamic - profile.keys()]
        for name, shapes in profile.items():
            messages += _find_misfits(context.graph, name, shapes)
        if messages:
            yield from (LintFinding("error", "profile", location, message, "build") for message in messages)
        else:
            yield from _check_points(context, location, profile)


def _find_misfits(graph: onnx_ir.Graph, name: str, shapes: ShapeRange) -> Iterator[str]:
    """Yield a message if the input of that name cannot have these shapes."""
    value = next((one for one in graph.inputs if one.name == name), None)
    if value is None:
        yield f"names {name}, which is no input"
        return
    for shape in (shapes.min, shapes.opt, shapes.max):
        sizes = [size if isinstance(size, int) else None for size in value.shape]
        if len(shape) != len(sizes) or any(size not in (None, got) for size, got in zip(sizes, shape, strict=True)):
            yield f"{name} cannot be {shape}; the graph has {value.shape}"
            return


def _check_points(context: LintContext, location: str, profile: Mapping[str, ShapeRange]) -> Iterator[LintFinding]:
    """Check that a dimension has one size at each point, and that every output's shape follows from the sizes."""
    for point in ("min", "opt", "max"):
        sizes: dict[str, int] = {}
        for value in context.graph.inputs:
            if value.name not in profile:
                continue
            shape = getattr(profile[str(value.name)], point)
            for dimension, size in zip(value.shape, shape, strict=True):
                known = size if isinstance(dimension, int) else sizes.setdefault(str(dimension), size)
                if known != size:
                    message = f"{dimension} is {known} in one input and {size} in {value.name} at {point}"
                    yield LintFinding("error", "profile", location, message, "build")
                    return
        yield from _check_inference(context, location, point, profile)


def _check_inference(
    context: LintContext, location: str, point: str, profile: Mapping[str, ShapeRange]
) -> Iterator[LintFinding]:
    """Check that shape inference gives every output a shape at one point of a profile."""
    model = without_weights(context.model)
    for value in model.graph.input:
        if value.name in profile:
            dimensions, shape = value.type.tensor_type.shape.dim, getattr(profile[value.name], point)
            for dimension, size in zip(dimensions, shape, strict=True):
                dimension.dim_value = size
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as failure:
        yield LintFinding("error", "profile", location, f"at {point}: {' '.join(str(failure).split())[:300]}", "build")
        return
    for value in inferred.graph.output:
        if not all(dimension.HasField("dim_value") for dimension in value.type.tensor_type.shape.dim):
            message = f"at {point}: the shape of {value.name} cannot be inferred"
            yield LintFinding("warning", "profile", location, message, "build")


RULES = (check_shapes, check_ranks, check_profiles)
