"""The graphs that are admitted are those that the exporter writes: all of them, and no row of a table for others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import Message

from export.graphs.tracing import OPSET
from runtime.bundle import Bundle, HeldFile
from runtime.bundle.admission import admission, admit, engine_contract
from runtime.bundle.admission.onnx_file import FIELDS
from runtime.bundle.admission.operators import ELEMENT_BYTES, ELEMENT_TYPES, IR_VERSIONS, OPERATORS, OPSETS
from runtime.bundle.admission.shape_rules import Made, OperatorCall, ShapeRule
from tests.exported_forms import ExportedGraph, export_all_forms

Uses = dict[tuple[str, str], list[OperatorCall]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, demo_bundle: Path) -> list[ExportedGraph]:
    """The graphs of small models in every form, and those of the demo."""
    demo = Bundle(demo_bundle).manifest
    graphs = list(export_all_forms(tmp_path_factory.mktemp("forms")))
    return [*graphs, *(ExportedGraph(demo_bundle / one.file, name, demo) for name, one in demo.engines.items())]


def admit_exported(graph: ExportedGraph) -> None:
    files = {file.name: HeldFile(file) for file in graph.path.parent.iterdir()}
    admit(files[graph.path.name], engine_contract(graph.manifest, graph.engine), files)


def recording(key: tuple[str, str], rule: ShapeRule, uses: Uses) -> ShapeRule:
    def record(call: OperatorCall) -> Made:
        uses[key].append(call)
        return rule(call)

    return record


@pytest.fixture(scope="module")
def uses(exported: list[ExportedGraph]) -> Uses:
    """Every use of an operator in exported graphs, all of which are admitted."""
    found: Uses = defaultdict(list)
    table = {key: replace(row, rule=recording(key, row.rule, found)) for key, row in OPERATORS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, "OPERATORS", table)
        for graph in exported:
            admit_exported(graph)
    return found


@pytest.mark.slow
def test_every_row_of_the_table_is_of_an_operator_that_is_exported(uses: Uses) -> None:
    assert set(OPERATORS) - set(uses) == set(), "the exporter no longer writes these operators: remove their rows"


@pytest.mark.slow
def test_every_element_type_of_the_table_is_exported(uses: Uses) -> None:
    unused = {
        (*key, types)
        for key, row in OPERATORS.items()
        for types in row.types
        if types not in {types_of(row.made_of, call) for call in uses[key]}
    }
    assert unused == set(), "the exporter no longer writes operators with these types: remove them from their rows"


def types_of(made_of: Mapping[str, tuple[str, ...]], call: OperatorCall) -> str:
    taken = " ".join(one.dtype for one in call.inputs)
    to = call.attributes.get("to")
    return f"{taken} -> {ELEMENT_TYPES[to] if isinstance(to, int) else made_of[taken][0]}"


@pytest.mark.slow
def test_every_attribute_of_the_table_is_exported_with_each_of_its_values(uses: Uses) -> None:
    unused = set[tuple[object, ...]]()
    for key, row in OPERATORS.items():
        for name, admitted in row.attributes.items():
            found = {call.attributes.get(name) for call in uses[key]}
            unused |= {(*key, name, value) for value in admitted.values or () if value not in found}
            if admitted.optional and None not in found:
                unused.add((*key, name, "optional"))
    assert unused == set(), "the exporter no longer writes these values: remove them from their rows"


@pytest.mark.slow
def test_every_admitted_field_element_type_and_version_is_exported(exported: list[ExportedGraph]) -> None:
    models = [onnx.load(graph.path, load_external_data=False) for graph in exported]
    written = {found for model in models for found in fields_of(model)}
    admitted = {(message, number) for message, fields in FIELDS.items() for number in fields}
    assert written == admitted
    assert {model.ir_version for model in models} == IR_VERSIONS
    opsets = {(one.domain, one.version) for model in models for one in model.opset_import}
    assert opsets == {(domain, version) for domain, versions in OPSETS.items() for version in versions}
    assert OPSET in OPSETS[""]
    assert set(ELEMENT_TYPES.values()) == set(ELEMENT_BYTES)


def fields_of(message: Message) -> Iterator[tuple[str, int]]:
    """Yield the name of each message and the number of each of its fields that are there."""
    for field, value in message.ListFields():
        yield field.containing_type.full_name.removeprefix("onnx."), field.number
        if field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                yield from fields_of(one)


def test_names_and_numbers_of_fields_are_those_of_onnx() -> None:
    described = onnx.ModelProto.DESCRIPTOR.file.message_types_by_name
    for message, fields in FIELDS.items():
        outer, *inner = message.split(".")
        descriptor = described[outer]
        for name in inner:
            descriptor = descriptor.nested_types_by_name[name]
        for number, known in fields.items():
            field = descriptor.fields_by_number[number]
            assert (field.name, field.is_repeated) == (known.name, known.most > 1), (message, number)
            held = "" if field.message_type is None else field.message_type.full_name.removeprefix("onnx.")
            assert held == known.message
