"""The rules of published-system.md, section 19, a second time: on strings, and as plainly as they are written there."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np

NUMERALS = {"2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven", "8": "eight", "9": "nine"}


def facts(graph: str) -> list[tuple[str, ...]]:
    """The facts of a graph: (entity,), ("attribute", entity, attribute) or ("object", subject, object)."""
    spaced = re.sub(r"\s+", " ", re.sub(r"([(),])", r" \1 ", graph)).strip()
    parts = [re.sub(r"[()]", "", part).split(",") for part in spaced.split(") , (")]
    found: list[tuple[str, ...]] = []
    for part in parts:
        items = [item.strip() for item in part]
        if len(items) == 1 and len(parts) == 1:
            found.append((items[0],))
        if len(items) == 2:
            found.append(("attribute", items[0], items[1]))
        if len(items) == 3:
            last = NUMERALS.get(items[2], items[2])
            found.append(("attribute" if items[1] == "is" else "object", items[0], last))
        if len(items) > 3:
            found.append(("object", items[0], items[-1]))
    return found


def entities_of(graph: str) -> list[str]:
    """The entities of a graph, in the order of their appearance."""
    found: list[str] = []
    for fact in facts(graph):
        named = fact if len(fact) == 1 else fact[1:] if fact[0] == "object" else fact[1:2]
        found += [name for name in dict.fromkeys(named) if name not in found]
    return found


def concepts_by_the_rules(
    graphs: Sequence[str], captions: Sequence[str], similar: Collection[frozenset[str]]
) -> list[str]:
    """The concepts of a region: its captions' graphs, the captions, and the pairs of similar entities."""
    appearance: list[str] = []
    count: dict[str, int] = {}
    attributes: dict[str, dict[str, int]] = {}
    objects: dict[str, list[str]] = {}
    for graph in graphs:
        for entity in entities_of(graph):
            if entity not in appearance:
                appearance.append(entity)
                attributes[entity], objects[entity] = {}, []
            count[entity] = count.get(entity, 0) + 1
        for fact in dict.fromkeys(facts(graph)):
            if fact[0] == "attribute" and len(fact) == 3:
                attributes[fact[1]][fact[2]] = attributes[fact[1]].get(fact[2], 0) + 1
            if fact[0] == "object" and len(fact) == 3 and fact[2] not in objects[fact[1]]:
                objects[fact[1]].append(fact[2])
    order = sorted(appearance, key=lambda entity: (-count[entity], appearance.index(entity)))
    removed, stand = merge_by_the_rules(order, count, attributes, objects, similar)
    left = [entity for entity in order if entity not in removed and count[entity] > 2]
    noted: list[str] = []
    for entity in left:
        for name in [entity, *(one if one in left else stand.get(one) for one in objects[entity])]:
            if name in left and name not in noted:
                noted.append(name)
    positions = []
    for entity in noted:
        where = [caption.find(entity) / len(caption) for caption in captions if caption.find(entity) > 0]
        positions.append(float(np.mean(where)) if where else 1.0)
    in_order = [noted[index] for index in sorted(range(len(noted)), key=lambda index: (positions[index], index))]
    return [named(entity, attributes[entity]) for entity in in_order[:4]]


def merge_by_the_rules(
    order: Sequence[str],
    count: dict[str, int],
    attributes: dict[str, dict[str, int]],
    objects: dict[str, list[str]],
    similar: Collection[frozenset[str]],
) -> tuple[set[str], dict[str, str]]:
    """The entities that are removed, and what stands for them; counts, attributes and objects are merged in place."""
    kept: dict[str, list[str]] = {}
    dropped: list[str] = []
    alias: dict[str, list[str]] = {}
    for x, y in [(x, y) for x in order for y in order if x != y and frozenset((x, y)) in similar]:
        if x in dropped:
            alias[x] = [*alias.get(x, []), y]
        else:
            kept[x] = [*kept.get(x, []), y]
            count[x] += count[y]
        if y not in kept:
            dropped.append(y)
        attributes[x] |= {one: attributes[x].get(one, 0) + number for one, number in attributes[y].items()}
        objects[x] += [name for name in objects[y] if name not in objects[x]]
    removed = {y for taken in kept.values() for y in taken}
    stands = {y: [one for one in alias.get(y, []) if one not in removed] for y in removed}
    return removed, {y: found[0] for y, found in stands.items() if found}


def named(entity: str, attributes: dict[str, int]) -> str:
    """The entity, with the first attribute that is said often enough in front."""
    often = [attribute for attribute, number in attributes.items() if number >= 3]
    return f"{often[0]} {entity}" if often else entity
