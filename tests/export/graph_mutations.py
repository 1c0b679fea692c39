"""Changes of graphs that NVIDIA's parser may or may not take, one at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
INTEGERS = (TensorProto.INT32, TensorProto.INT64)
DTYPES = (*FLOATS, *INTEGERS, TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL)
FOREIGN = (TensorProto.INT16, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64, TensorProto.FLOAT8E5M2)
"""Dtypes that TensorRT does not have."""

Mutation = Callable[[onnx.ModelProto, random.Random], None]
"""Changes a model by what a generator of random numbers picks."""


def _pick_node(model: onnx.ModelProto, picks: random.Random, *kinds: str) -> onnx.NodeProto | None:
    nodes = [node for node in model.graph.node if not kinds or node.op_type in kinds]
    return picks.choice(nodes) if nodes else None


def _rename_uses(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def drop_cast(model: onnx.ModelProto, picks: random.Random) -> None:
    outputs = {value.name for value in model.graph.output}
    casts = [node for node in model.graph.node if node.op_type == "Cast" and node.output[0] not in outputs]
    if casts:
        cast = picks.choice(casts)
        _rename_uses(model, cast.output[0], cast.input[0])
        model.graph.node.remove(cast)


def change_cast(model: onnx.ModelProto, picks: random.Random) -> None:
    cast = _pick_node(model, picks, "Cast")
    if cast is not None:
        cast.attribute[0].i = picks.choice((*DTYPES, *FOREIGN))


def insert_node(model: onnx.ModelProto, picks: random.Random) -> None:
    node = _pick_node(model, picks)
    assert node is not None
    slots = [index for index, name in enumerate(node.input) if name]
    if not slots:
        return
    slot = picks.choice(slots)
    kind = picks.choice(
        ("Identity", "Cast", "Cast", "Relu", "Neg", "Not", "Transpose", "Softmax", "Abs", "Sqrt", "Size")
    )
    attributes = {"to": picks.choice(DTYPES)} if kind == "Cast" else {}
    index = next(place for place, one in enumerate(model.graph.node) if one is node or one == node)
    model.graph.node.insert(index, helper.make_node(kind, [node.input[slot]], ["inserted"], "inserted", **attributes))
    model.graph.node[index + 1].input[slot] = "inserted"


def change_operator(model: onnx.ModelProto, picks: random.Random) -> None:
    node = _pick_node(model, picks)
    assert node is not None
    alike = (
        "Add",
        "Sub",
        "Div",
        "Mul",
        "Max",
        "Equal",
        "Less",
        "And",
        "Or",
        "MatMul",
        "Pow",
        "Relu",
        "Exp",
        "Not",
        "Neg",
    )
    node.op_type = picks.choice(picks.choice((_operator_names(), alike)))


@cache
def _operator_names() -> Sequence[str]:
    return sorted({one.name for one in onnx.defs.get_all_schemas() if one.domain == ""})


def remove_attribute(model: onnx.ModelProto, picks: random.Random) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    if nodes:
        attributes = picks.choice(nodes).attribute
        del attributes[picks.randrange(len(attributes))]


def change_attribute(model: onnx.ModelProto, picks: random.Random) -> None:
    nodes = [node for node in model.graph.node if node.attribute and node.op_type != "Cast"]
    if not nodes:
        return
    attribute = picks.choice(picks.choice(nodes).attribute)
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i += picks.choice((-3, -1, 1, 2, 5))
    elif attribute.type == onnx.AttributeProto.INTS and attribute.ints:
        index = picks.randrange(len(attribute.ints))
        attribute.ints[index] += picks.choice((-2, -1, 1, 2))
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f *= picks.choice((-1.0, 0.0, 2.0))


def change_weight_dtype(model: onnx.ModelProto, picks: random.Random) -> None:
    """Parameters that ONNX says are integers stay integers: see the test's docstring."""
    weight = picks.choice(model.graph.initializer)
    is_integer = weight.data_type in INTEGERS
    _retype(weight, picks.choice(INTEGERS if is_integer else (*FLOATS, *DTYPES)))


def _retype(weight: onnx.TensorProto, dtype: int) -> None:
    values = numpy_helper.to_array(weight).astype(np.float64)
    weight.CopyFrom(helper.make_tensor(weight.name, dtype, values.shape, _convertible(values, dtype)))


def _convertible(values: np.ndarray, dtype: int) -> list[float] | list[int]:
    if dtype in FLOATS:
        return values.flatten().tolist()
    if dtype not in INTEGERS:
        values = np.clip(values, 0 if dtype == TensorProto.UINT8 else -128, 127)
    return values.astype(np.int64).flatten().tolist()


def change_weight_values(model: onnx.ModelProto, picks: random.Random) -> None:
    """Change axes, shapes, starts or ends."""
    weights = [
        weight for weight in model.graph.initializer if weight.data_type in INTEGERS and np.prod(weight.dims) < 9
    ]
    if weights:
        weight = picks.choice(weights)
        values = numpy_helper.to_array(weight).copy()
        flat = values.reshape(-1)
        if flat.size:
            flat[picks.randrange(flat.size)] += picks.choice((-9, -1, 1, 2, 7))
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def change_weight_shape(model: onnx.ModelProto, picks: random.Random) -> None:
    weight = picks.choice(model.graph.initializer)
    values = numpy_helper.to_array(weight)
    changes: Sequence[Callable[[np.ndarray], np.ndarray]] = (
        np.transpose,
        lambda one: one[None],
        np.ravel,
        lambda one: one[..., :-1] if one.ndim else one,
    )
    dtype = weight.data_type
    changed = np.ascontiguousarray(picks.choice(changes)(values))
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    weight.data_type = dtype


def change_input_dtype(model: onnx.ModelProto, picks: random.Random) -> None:
    picks.choice(model.graph.input).type.tensor_type.elem_type = picks.choice((*DTYPES, *FOREIGN))


def change_output_dtype(model: onnx.ModelProto, picks: random.Random) -> None:
    picks.choice(model.graph.output).type.tensor_type.elem_type = picks.choice((*DTYPES, *FOREIGN))


def change_input_shape(model: onnx.ModelProto, picks: random.Random) -> None:
    sizes = picks.choice(model.graph.input).type.tensor_type.shape.dim
    change = picks.choice(("fix", "free", "grow", "drop", "add"))
    if change == "add":
        sizes.add().dim_value = 3
    elif sizes and change == "drop":
        sizes.pop()
    elif sizes:
        size = picks.choice(sizes)
        if change == "free":
            size.dim_param = "free"
        else:
            size.dim_value = 5 if change == "fix" else size.dim_value + 1


def swap_inputs(model: onnx.ModelProto, picks: random.Random) -> None:
    nodes = [node for node in model.graph.node if len(node.input) > 1]
    if nodes:
        node = picks.choice(nodes)
        first, second = picks.sample(range(len(node.input)), 2)
        node.input[first], node.input[second] = node.input[second], node.input[first]


def drop_input(model: onnx.ModelProto, picks: random.Random) -> None:
    node = _pick_node(model, picks)
    if node is not None and node.input:
        node.input.pop()


def redirect_input(model: onnx.ModelProto, picks: random.Random) -> None:
    """Make a node read another tensor, of any dtype and shape."""
    place = picks.randrange(len(model.graph.node))
    node = model.graph.node[place]
    if node.input:
        known = [name for one in model.graph.node[:place] for name in one.output]
        known += [value.name for value in (*model.graph.input, *model.graph.initializer)]
        node.input[picks.randrange(len(node.input))] = picks.choice(known)


def change_opset(model: onnx.ModelProto, picks: random.Random) -> None:
    model.opset_import[0].version = picks.randrange(13, 27)


def change_domain(model: onnx.ModelProto, picks: random.Random) -> None:
    node = _pick_node(model, picks)
    assert node is not None
    node.domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def remove_node(model: onnx.ModelProto, picks: random.Random) -> None:
    del model.graph.node[picks.randrange(len(model.graph.node))]


def add_output(model: onnx.ModelProto, picks: random.Random) -> None:
    node = _pick_node(model, picks)
    assert node is not None
    node.output.append("added")


MUTATIONS: Mapping[str, Mutation] = {
    one.__name__: one
    for one in (
        *(drop_cast, change_cast, insert_node, change_operator, remove_attribute, change_attribute),
        *(change_weight_dtype, change_weight_values, change_weight_shape),
        *(change_input_dtype, change_output_dtype, change_input_shape),
        *(swap_inputs, drop_input, redirect_input, change_opset, change_domain, remove_node, add_output),
    )
}


def mutated(model: onnx.ModelProto, mutation: str, seed: int) -> onnx.ModelProto:
    """Return a changed copy of a model whose weights are in it."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    MUTATIONS[mutation](changed, random.Random(seed))
    return changed


def has_odd_parameter(model: onnx.ModelProto) -> bool:
    """Return whether an integer parameter, such as axes or a shape, is a constant of another dtype than ONNX allows."""
    constants = {weight.name: weight.data_type for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Cast", "CastLike", "Identity") and node.input and node.input[0] in constants:
            cast_to = [attribute.i for attribute in node.attribute if attribute.name == "to"]
            constants[node.output[0]] = cast_to[0] if cast_to else constants[node.input[0]]
        for name, allowed in zip(node.input, _integer_inputs(node.op_type), strict=False):
            if allowed and constants.get(name, TensorProto.INT64) not in INTEGERS:
                return True
    return False


def _integer_inputs(operator: str) -> Sequence[bool]:
    """Return of each input of an operator whether ONNX allows integers alone."""
    if not onnx.defs.has(operator):
        return []
    integers = {"tensor(int32)", "tensor(int64)"}
    return [set(formal.types) <= integers for formal in onnx.defs.get_schema(operator).inputs]
