"""The demo's service, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from runtime import Captioner
from tests.conftest import SAMPLE
from tests.serving.http.served import served


@pytest.fixture(scope="module")
def url(demo: Captioner) -> Iterator[str]:
    with served(demo) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def scene_file() -> bytes:
    return (SAMPLE / "scene.jpg").read_bytes()
