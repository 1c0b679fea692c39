"""What the ONNX package reads in a graph's bytes, as the project's own reader would say it."""

from __future__ import annotations

from typing import Any

from onnx import AttributeProto, ModelProto, TensorProto, ValueInfoProto

from runtime.bundle.admission.onnx_file import (
    AttributeValue,
    ExternalBytes,
    GraphTensor,
    GraphWeight,
    OnnxGraph,
    StoredNode,
)


def as_protobuf_reads(content: bytes) -> OnnxGraph:
    """Return the graph that protobuf reads in some bytes.

    Raises:
        DecodeError: it refuses them.
    """
    model = ModelProto.FromString(content)
    graph = model.graph
    return OnnxGraph(
        model.ir_version,
        {one.domain: one.version for one in model.opset_import},
        tuple(
            StoredNode(
                node.name,
                node.domain,
                node.op_type,
                tuple(node.input),
                tuple(node.output),
                {one.name: _value(one) for one in node.attribute},
            )
            for node in graph.node
        ),
        tuple(map(_weight, graph.initializer)),
        tuple(map(_declared, graph.input)),
        tuple(map(_declared, graph.output)),
        tuple(map(_declared, graph.value_info)),
    )


def _value(attribute: AttributeProto) -> AttributeValue:
    value: dict[int, Any] = {
        AttributeProto.FLOAT: attribute.f,
        AttributeProto.INT: attribute.i,
        AttributeProto.STRING: attribute.s.decode(),
        AttributeProto.INTS: tuple(attribute.ints),
    }
    result: AttributeValue = value[attribute.type]
    return result


def _weight(tensor: TensorProto) -> GraphWeight:
    values: bytes | ExternalBytes = tensor.raw_data
    if tensor.data_location == TensorProto.EXTERNAL:
        place = {entry.key: entry.value for entry in tensor.external_data}
        values = ExternalBytes(place["location"], int(place["offset"]), int(place["length"]))
    return GraphWeight(tensor.name, tensor.data_type, tuple(tensor.dims), values)


def _declared(value: ValueInfoProto) -> GraphTensor:
    tensor = value.type.tensor_type
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim)
    return GraphTensor(value.name, tensor.elem_type, dims)
