"""Scene graphs: the rules of a parser's text, and files of graphs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.checkpoint import CheckpointError
from export.concepts.graph_file import graph_line, parser_line, read_graph_lines
from export.concepts.scene_graphs import SceneGraph, format_graph, match_graphs, parse_graph


def as_lists(graph: SceneGraph) -> tuple[list[str], dict[str, list[str]], dict[str, list[str]]]:
    """Entities, attributes and objects, without those that have none."""
    attributes = {entity: list(names) for entity, names in graph.attributes.items() if names}
    objects = {entity: list(names) for entity, names in graph.objects.items() if names}
    return graph.entities, attributes, objects


@pytest.mark.parametrize(
    ("text", "entities", "attributes", "objects"),
    [
        ("( man , ride , wave ) , ( wave , is , big )", ["man", "wave"], {"wave": ["big"]}, {"man": ["wave"]}),
        ("(man,ride,wave),(wave,is,big)", ["man", "wave"], {"wave": ["big"]}, {"man": ["wave"]}),
        ("  ( man ,\tride ,\n wave )  ", ["man", "wave"], {}, {"man": ["wave"]}),
        ("man , ride , wave", ["man", "wave"], {}, {"man": ["wave"]}),
        ("( dog )", ["dog"], {}, {}),
        ("dog", ["dog"], {}, {}),
        ("", [""], {}, {}),
        ("( )", [""], {}, {}),
        ("( dog ) , ( cat )", [], {}, {}),
        ("( dog ) , ( cat , on , mat )", ["cat", "mat"], {}, {"cat": ["mat"]}),
        ("( dog , brown )", ["dog"], {"dog": ["brown"]}, {}),
        ("( dog , 2 )", ["dog"], {"dog": ["2"]}, {}),
        ("( dog , )", ["dog"], {"dog": [""]}, {}),
        ("( , )", [""], {"": [""]}, {}),
        ("( dog , is , 2 )", ["dog"], {"dog": ["two"]}, {}),
        ("( dog , with , 9 )", ["dog", "nine"], {}, {"dog": ["nine"]}),
        ("( dog , with , 1 ) , ( dog , with , 10 )", ["dog", "1", "10"], {}, {"dog": ["1", "10"]}),
        ("( dog , on , top , 2 )", ["dog", "2"], {}, {"dog": ["2"]}),
        ("( dog , is , on , top , of , hill )", ["dog", "hill"], {}, {"dog": ["hill"]}),
        ("( dog , Is , big )", ["dog", "big"], {}, {"dog": ["big"]}),
        ("( Dog , is , big ) , ( dog , is , big )", ["Dog", "dog"], {"Dog": ["big"], "dog": ["big"]}, {}),
        ("( dog , is , big ) , ( dog , is , big ) , ( dog , big )", ["dog"], {"dog": ["big"]}, {}),
        ("( dog , is , red ) , ( dog , is , big )", ["dog"], {"dog": ["red", "big"]}, {}),
        ("( man , on , man )", ["man"], {}, {"man": ["man"]}),
        ("( b , on , a ) , ( a , on , b )", ["b", "a"], {}, {"b": ["a"], "a": ["b"]}),
        ("( man ( old ) , ride , horse )", ["man  old", "horse"], {}, {"man  old": ["horse"]}),
        ("( a , on , b ) ( c , on , d )", ["a", "d"], {}, {"a": ["d"]}),
        ("( a , on , b ) , c , on , d", ["a", "d"], {}, {"a": ["d"]}),
        (") , (", [], {}, {}),
    ],
)
def test_the_rules_of_a_graphs_text(
    text: str, entities: list[str], attributes: dict[str, list[str]], objects: dict[str, list[str]]
) -> None:
    assert as_lists(parse_graph(text)) == (entities, attributes, objects)
    assert as_lists(parse_graph(format_graph(text))) == (entities, attributes, objects)


def test_texts_are_formatted_with_one_space() -> None:
    assert format_graph("(a,is  b) ,(c)") == "( a , is b ) , ( c )"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" , ".join(["( a , is , b )"] * 65), "expected at most 64 parts '( ... )', got 65"),
        ("x" * 20_000, "expected at most 16384 characters, got 20000"),
    ],
)
def test_graphs_that_no_parser_writes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "graphs.jsonl").write_text(graph_line("a", text))
    with pytest.raises(CheckpointError) as raised:
        match_graphs(["a"], tmp_path / "graphs.jsonl")
    assert str(raised.value) == f"{tmp_path}/graphs.jsonl: the scene graph of 'a': {message}; shorten it there"


def test_graphs_are_matched_to_captions_by_their_text(tmp_path: Path) -> None:
    lines = [parser_line("t5 0"), graph_line("a cat", "( cat )"), graph_line("a dog\u2028", "( dog )")]
    (tmp_path / "graphs.jsonl").write_text("".join(lines), encoding="utf-8")
    graphs = match_graphs(["a dog\u2028", " a cat ", "a cat"], tmp_path / "graphs.jsonl")
    assert [graph.entities for graph in graphs] == [["dog"], ["cat"], ["cat"]]


def test_a_users_own_file_of_graphs_needs_no_first_line(tmp_path: Path) -> None:
    (tmp_path / "graphs.jsonl").write_text(
        '{"caption": "a", "graph": "( b )", "by": "hand"}\n{"graph": "", "caption": ""}'
    )
    assert read_graph_lines(tmp_path / "graphs.jsonl") == {"a": "( b )", "": ""}


def test_all_captions_without_a_graph_are_counted_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "graphs.jsonl").write_text(graph_line("b", "( b )"))
    with pytest.raises(CheckpointError) as raised:
        match_graphs(["a", "b", "c", "d"], tmp_path / "graphs.jsonl")
    assert str(raised.value) == (
        f"{tmp_path}/graphs.jsonl: the scene graphs of 3 of 4 captions are missing, for example of 'a'; add them with "
        f"patchcaption parse-captions CAPTIONS --out {tmp_path}/graphs.jsonl"
    )


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "3",
        "{}",
        '{"caption": "a"}',
        '{"caption": "a", "graph": 3}',
        "",
        '{"caption": "\\ud800", "graph": ""}',
        "[" * 99_999,
    ],
)
def test_lines_that_are_no_graphs_are_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "graphs.jsonl").write_text(graph_line("a", "( b )") + line + "\n")
    with pytest.raises(CheckpointError, match=r'graphs\.jsonl: line 2: expected \{"caption": ..., "graph": ...\}, got'):
        read_graph_lines(tmp_path / "graphs.jsonl")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone.jsonl: no such file"):
        read_graph_lines(tmp_path / "gone.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(json.dumps({"caption": "a", "graph": "b"}).encode("utf-16"))
    with pytest.raises(CheckpointError, match="bytes.jsonl: cannot be read: "):
        read_graph_lines(tmp_path / "bytes.jsonl")
