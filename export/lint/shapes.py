"""Rules on shapes: profiles that cover what is dynamic, and agree with each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
import onnx_ir

from export.lint.finding import Finding, Subject, without_weights
from runtime.bundle import ShapeRange


def profiles(subject: Subject) -> Iterator[Finding]:
    """Every dynamic dimension has a range in each profile, and shapes resolve at all of its points."""
    dynamic = {
        str(value.name): value
        for value in subject.graph.inputs
        if any(not isinstance(size, int) for size in value.shape)
    }
    for number, profile in enumerate(subject.profiles):
        place, broken = f"profile {number}", False
        for name in [*(dynamic.keys() - profile.keys())]:
            broken = True
            yield Finding("error", "profile", place, f"does not cover {name}, which has dynamic dimensions")
        for name, shapes in profile.items():
            for what in _misfits(subject.graph, name, shapes):
                broken = True
                yield Finding("error", "profile", place, what)
        if not broken:
            yield from _resolved(subject, place, profile)


def _misfits(graph: onnx_ir.Graph, name: str, shapes: ShapeRange) -> Iterator[str]:
    value = next((one for one in graph.inputs if one.name == name), None)
    if value is None:
        yield f"names {name}, which is no input"
        return
    for shape in (shapes.min, shapes.opt, shapes.max):
        sizes = [size if isinstance(size, int) else None for size in value.shape]
        if len(shape) != len(sizes) or any(size not in (None, got) for size, got in zip(sizes, shape, strict=True)):
            yield f"{name} cannot be {shape}; the graph has {value.shape}"
            return


def _resolved(subject: Subject, place: str, profile: Mapping[str, ShapeRange]) -> Iterator[Finding]:
    """Names of dimensions have one size at each point, and every tensor's shape follows from them."""
    for point in ("min", "opt", "max"):
        sizes: dict[str, int] = {}
        for value in subject.graph.inputs:
            if value.name not in profile:
                continue
            shape = getattr(profile[str(value.name)], point)
            for dimension, size in zip(value.shape, shape, strict=True):
                if not isinstance(dimension, int) and sizes.setdefault(str(dimension), size) != size:
                    what = f"{dimension} is {sizes[str(dimension)]} in one input and {size} in {value.name} at {point}"
                    yield Finding("error", "profile", place, what)
                    return
        yield from _inferred(subject, place, point, profile)


def _inferred(subject: Subject, place: str, point: str, profile: Mapping[str, ShapeRange]) -> Iterator[Finding]:
    model = without_weights(subject.model)
    for value in model.graph.input:
        if value.name in profile:
            for dimension, size in zip(
                value.type.tensor_type.shape.dim, getattr(profile[value.name], point), strict=True
            ):
                dimension.dim_value = size
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as wrong:
        yield Finding("error", "profile", place, f"at {point}: {' '.join(str(wrong).split())[:300]}")
        return
    for value in inferred.graph.output:
        if not all(dimension.HasField("dim_value") for dimension in value.type.tensor_type.shape.dim):
            yield Finding("warning", "profile", place, f"at {point}: the shape of {value.name} cannot be inferred")


RULES = (profiles,)
