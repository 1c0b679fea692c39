"""Captions through a real Triton Inference Server are those of the library, whoever else asks at the time."""

from __future__ import annotations

import pytest

from runtime import Captioner
from runtime.output.as_json import caption_as_json
from tests.conftest import SAMPLE
from tests.triton.client import PROTOCOLS, ask
from tests.triton.server import TritonServer

SCENE = (SAMPLE / "scene.jpg").read_bytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_image_alone_is_described_as_a_whole(server: TritonServer, demo: Captioner, protocol: str) -> None:
    expected = demo.caption(SCENE, [{"kind": "whole_image"}])
    assert ask(protocol, server, [SCENE]) == [[caption_as_json(caption) for caption in expected]]
