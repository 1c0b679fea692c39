"""docs/triton.md and the example: their code asks a real server, and their tables are what the model has."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import fields
from io import StringIO
from pathlib import Path

import httpx
import pytest

from benchmarks import triton_server
from export import triton_repository
from runtime.serving.limits import InputLimits
from tests.conftest import ROOT, SAMPLE
from tests.documents.test_documents import ASKING_TRITON, blocks, text_of
from tests.triton.server import TritonServer

WRITTEN = "127.0.0.1:8000"
SCENE = str(SAMPLE / "scene.jpg")


def test_the_python_is_answered(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    ((name, snippet),) = blocks("python", [ASKING_TRITON])
    assert WRITTEN in snippet
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(snippet.replace(WRITTEN, server.http), name, "exec"), {})
    assert printed.getvalue().splitlines() == re.findall(r"^# (.+)$", snippet, flags=re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_probe_is_answered(server: TritonServer) -> None:
    (probe,) = (block for _, block in blocks("sh", [ASKING_TRITON]) if "curl" in block)
    done = subprocess.run(
        ["bash", "-c", probe.replace(WRITTEN, server.http)], capture_output=True, text=True, check=True
    )
    assert '"name":"CAPTIONS"' in done.stdout
    assert "error" not in done.stdout


def client(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples" / "triton_client.py"), address, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_example_asks_for_boxes_and_for_the_whole_image(server: TritonServer, tmp_path: Path) -> None:
    triangle, square, outside = client(
        server.grpc, SCENE, "276,174,507,399", "90,420,321,648", "9000,0,9001,1"
    ).stdout.splitlines()
    assert (triangle, square) == ("a large striped red triangle", "a large solid green square")
    assert "outside the image of 672 x 672 pixels" in outside
    assert client(server.grpc, SCENE).stdout == "five shapes on a checked white background\n"
    (tmp_path / "no.jpg").write_text("no image")
    refused = client(server.grpc, str(tmp_path / "no.jpg"))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"{server.grpc}: image: not an image that Pillow can read")


def test_the_metrics_are_those_of_the_server(server: TritonServer) -> None:
    names = set(re.findall(r"`(nv_\w+)`", text_of(ASKING_TRITON)))
    told = set(re.findall(r'^(\w+)\{model="patchcaption"', httpx.get(server.metrics).text, flags=re.MULTILINE))
    assert names
    assert names <= told


def test_the_options_are_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        triton_repository.main(["--help"])
    flags = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help", "--out", "--name"}
    assert flags <= set(re.findall(r"`(--[a-z-]+)", text_of(ASKING_TRITON)))


def test_the_limits_are_written_with_their_defaults() -> None:
    for field in fields(InputLimits):
        assert f"`max_{field.name}` ({field.default}" in text_of(ASKING_TRITON)


def test_the_benchmark_compares_the_server_with_the_library(
    server: TritonServer, demo_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--clients", "2", "--images", "4", "--rounds", "1"]
    assert triton_server.main([server.http, str(demo_bundle), *flags]) == 0
    rows = [row.split("|") for row in capsys.readouterr().out.splitlines() if "Triton" in row or "library" in row]
    assert [row[1].strip() for row in rows] == [
        *("the library, one by one", "the library, 2 at a time", "Triton, 1 client", "Triton, 2 clients")
    ]
    assert all(float(row[2]) > 0 for row in rows)
