"""Scene graphs of captions: a parser's text -> entities, attributes, objects (published-system.md, section 19).

"( man , ride , wave ) , ( wave , is , big )" has the entities "man" and "wave"; "wave" is an object of "man", and has
the attribute "big".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from export.checkpoint import CheckpointError
from export.concepts.graph_file import read_graph_lines
from runtime.bundle.concept_arrays import MAX_GRAPH_CHARACTERS, MAX_SEGMENTS

_HAS_ATTRIBUTE = "is"
_NUMERALS = dict(zip("23456789", ["two", "three", "four", "five", "six", "seven", "eight", "nine"], strict=True))


@dataclass
class SceneGraph:
    """What a caption names; dicts keep the order of appearance.

    Attributes:
        attributes: the attributes of each entity; its keys are all entities.
        objects: the entities that are objects of each entity.
    """

    attributes: dict[str, dict[str, None]] = field(default_factory=dict)
    objects: dict[str, dict[str, None]] = field(default_factory=dict)

    @property
    def entities(self) -> list[str]:
        """The entities, in the order of their appearance."""
        return list(self.attributes)

    def add(self, entity: str, attribute: str | None = None) -> None:
        """Add an entity, and an attribute that it has."""
        attributes = self.attributes.setdefault(entity, {})
        self.objects.setdefault(entity, {})
        if attribute is not None:
            attributes[attribute] = None

    def relate(self, subject: str, target: str) -> None:
        """Add two entities, of which the second is an object of the first."""
        self.add(subject)
        self.add(target)
        self.objects[subject][target] = None


def format_graph(text: str) -> str:
    """Return a graph's text with one space round each bracket and comma."""
    for mark in "(),":
        text = text.replace(mark, f" {mark} ")
    return " ".join(text.split())


def parse_graph(text: str) -> SceneGraph:
    """Return the scene graph that a parser has written.

    Raises:
        ValueError: it is longer than any parser writes.
    """
    if len(text) > MAX_GRAPH_CHARACTERS:
        raise ValueError(f"expected at most {MAX_GRAPH_CHARACTERS} characters, got {len(text)}")
    segments = format_graph(text).split(") , (")
    if len(segments) > MAX_SEGMENTS:
        raise ValueError(f"expected at most {MAX_SEGMENTS} parts '( ... )', got {len(segments)}")
    graph = SceneGraph()
    for segment in segments:
        items = [item.strip() for item in segment.replace("(", "").replace(")", "").split(",")]
        _add_segment(graph, items, is_only=len(segments) == 1)
    return graph


def _add_segment(graph: SceneGraph, items: Sequence[str], is_only: bool) -> None:
    if len(items) == 1:
        if is_only:
            graph.add(items[0])
    elif len(items) == 2:
        graph.add(items[0], items[1])
    elif len(items) == 3:
        subject, relation, target = items
        target = _NUMERALS.get(target, target)
        if relation == _HAS_ATTRIBUTE:
            graph.add(subject, target)
        else:
            graph.relate(subject, target)
    else:
        graph.relate(items[0], items[-1])


def match_graphs(captions: Sequence[str], path: Path) -> list[SceneGraph]:
    """Return the graph of each caption (M), from a file of them.

    Args:
        path: lines as `patchcaption parse-captions` writes them, in any order.

    Raises:
        CheckpointError: it cannot be read, a graph is no graph, or captions have none.
    """
    texts = read_graph_lines(path)
    found = [texts.get(caption, texts.get(caption.strip())) for caption in captions]
    missing = [caption for caption, text in zip(captions, found, strict=True) if text is None]
    if missing:
        raise CheckpointError(
            f"{path}: the scene graphs of {len(missing)} of {len(captions)} captions are missing, for example of "
            f"{missing[0]!r}; add them with patchcaption parse-captions CAPTIONS --out {path}"
        )
    return parse_graphs(dict(zip(captions, (text or "" for text in found), strict=True)), captions, str(path))


def parse_graphs(texts: Mapping[str, str], captions: Sequence[str], source: str) -> list[SceneGraph]:
    """Return the graph of each caption (M); captions that are alike share one.

    Raises:
        CheckpointError: a text is longer than any parser writes; it names the caption.
    """
    graphs: dict[str, SceneGraph] = {}
    for caption, text in texts.items():
        try:
            graphs[caption] = parse_graph(text)
        except ValueError as error:
            raise CheckpointError(f"{source}: the scene graph of {caption!r}: {error}; shorten it there") from None
    return [graphs[caption] for caption in captions]
