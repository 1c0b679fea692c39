"""A hub on loopback, and machines that ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub.hub_server import Hub, Tree, serve_hub
from tests.hub.machine import Machine, new_machine

NAME = "acme/demo"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


@pytest.fixture
def machines(hub: Hub, tmp_path: Path) -> Callable[[str], Machine]:
    """A function that makes a machine, by a name of its own."""
    return lambda name: new_machine(tmp_path / name, hub.url)


@pytest.fixture
def machine(machines: Callable[[str], Machine]) -> Machine:
    return machines("machine")


@pytest.fixture(scope="session")
def demo_files(demo_bundle: Path) -> Tree:
    return {path.name: path.read_bytes() for path in demo_bundle.iterdir()}


@pytest.fixture
def published(hub: Hub, demo_files: Tree) -> Hub:
    """The hub, with the demo bundle under NAME."""
    hub.add(NAME, demo_files)
    return hub
