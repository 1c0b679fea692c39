"""Captions and frames as JSON, from which their regions can be read again."""

from __future__ import annotations

import doctest
import json

import numpy as np

from runtime import Box, BoxSet, Caption, Frame, FrameCaptions, Mask, MemoryMatch, Patch, Point
from runtime.output import as_json
from runtime.output.as_json import caption_as_json, frame_as_json, region_as_json
from runtime.regions import from_dict

BOX = {"kind": "box", "xyxy": [1.0, 2.0, 3.0, 4.0], "pool": "mean", "variance": 0.5}


class LeftHalf:
    """A region of somebody else's."""

    def weights(self, canvas: object) -> None: ...


class Square(Box):
    """A kind of box that nobody can read again."""


def test_a_caption_has_its_region_in_the_form_that_can_be_read_again() -> None:
    caption = Caption("a star", 0.75, (3, 4), Box(1, 2, 3, 4))
    written = caption_as_json(caption)
    assert written == {"text": "a star", "score": 0.75, "ids": [3, 4], "region": BOX}
    assert from_dict(json.loads(json.dumps(written))["region"]) == caption.region


def test_the_nearest_captions_are_there_if_they_were_asked_for() -> None:
    caption = Caption("a star", 0.75, (), None, (MemoryMatch("a moon", 0.5),))
    written = caption_as_json(caption)
    assert written["nearest"] == [{"text": "a moon", "similarity": 0.5}]
    assert written["region"] is None


def test_a_mask_is_whole() -> None:
    region = region_as_json(Mask(np.eye(2)))
    assert region == {"kind": "mask", "size": [2, 2], "counts": [0, 1, 2, 1]}


def test_of_a_class_that_nobody_knows_there_is_the_kind() -> None:
    assert region_as_json(LeftHalf()) == {"kind": "left_half"}  # type: ignore[arg-type]
    assert region_as_json(Square(1, 2, 3, 4)) == {"kind": "square"}
    assert region_as_json(BoxSet([Square(1, 2, 3, 4)])) == {"kind": "box_set"}


def test_a_frame_has_its_captions_and_its_times() -> None:
    caption = Caption("a star", 0.75, (), Box(1, 2, 3, 4), reused=True)
    described = FrameCaptions(Frame(5, 0.5, "image.png"), [caption], dropped=2, latency_ms=12.345)
    assert frame_as_json(described) == {
        **{"frame": 5, "seconds": 0.5, "dropped": 2, "latency_ms": 12.3},
        "captions": [{"text": "a star", "score": 0.75, "ids": [], "region": BOX, "reused": True}],
    }


def test_the_examples_say_what_they_print() -> None:
    names = {"Caption": Caption, "Patch": Patch, "Point": Point}
    assert doctest.testmod(as_json, extraglobs=names) == (0, 2)
