"""One server for all tests of Triton, with the model that `patchcaption triton-repository` makes of the demo bundle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from export import triton_repository
from tests.triton.server import TritonServer, installed, serving


@pytest.fixture(scope="session")
def triton() -> Path:
    """The server's files: there in CI, and wherever somebody has installed them."""
    folder = installed()
    if folder is None:
        told = "no Triton: .ci/install-triton installs it"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    return folder


@pytest.fixture(scope="package")
def server(triton: Path, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    models, work = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("triton")
    assert triton_repository.main([str(demo_bundle), "--out", str(models), "--threads", "1"]) == 0
    with serving(triton, models, work) as server:
        assert server.process.poll() is None, server.log.read_text()
        yield server
