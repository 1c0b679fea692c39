"""The page of the service: its code runs against one, and its tables are what the service has."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path

import httpx
import pytest
import yaml

from runtime import Captioner
from runtime.cli.main import main
from runtime.serving.http.app import create_app
from runtime.serving.http.settings import ServiceLimits
from tests.conftest import ROOT, SAMPLE
from tests.documents.test_documents import ASKING, PAGES, blocks, text_of, whole_lines
from tests.serving.http.served import served

WRITTEN = "http://127.0.0.1:8000"
SCENE = SAMPLE / "scene.jpg"
OPEN_FILE = 'const file = await (await import("node:fs")).openAsBlob(process.argv[1], { type: "image/jpeg" });'


@pytest.fixture(scope="module")
def service(demo: Captioner) -> Iterator[str]:
    with served(demo) as url:
        yield url


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder that looks like a clone the working directory."""
    (tmp_path / "export").symlink_to(ROOT / "export")
    monkeypatch.chdir(tmp_path)


def asking(page: str) -> list[str]:
    """Return the blocks of a page that ask a service, without the commands that install and start one."""
    kept = [
        [line for line in whole_lines(block) if not line.startswith(("pip ", "patchcaption "))]
        for _, block in blocks("sh", [page])
    ]
    return ["\n".join(lines) for lines in kept if any("curl" in line for line in lines)]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("block", [block for page in (ASKING, "README.md") for block in asking(page)])
def test_the_commands_are_answered(block: str, service: str) -> None:
    strict = block.replace(WRITTEN, service).replace("curl ", "curl --fail-with-body ")
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", strict], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a large striped red triangle" in done.stdout or '"version"' in done.stdout


def test_the_python_is_answered(service: str) -> None:
    ((name, snippet),) = blocks("python", [ASKING])
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(snippet.replace(WRITTEN, service), name, "exec"), {})
    assert printed.getvalue().splitlines() == re.findall(r"^# (.+)$", snippet, flags=re.MULTILINE)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_javascript_is_answered(service: str) -> None:
    ((_, snippet),) = blocks("js", [ASKING])
    program = f"(async () => {{ {OPEN_FILE}\n{snippet.replace(WRITTEN, service)} }})();"
    done = subprocess.run(["node", "-e", program, str(SCENE)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == re.findall(r"^// (.+)$", snippet, flags=re.MULTILINE)


def starting() -> list[str]:
    """Return every command that starts a service: in the documents, of the systemd unit and of the pod."""
    lines = [line for page in PAGES for _, block in blocks("sh", [page]) for line in whole_lines(block)]
    (unit,) = (block for _, block in blocks("ini", [ASKING]))
    pod = yaml.safe_load(blocks("yaml", [ASKING])[1][1])
    commands = re.findall(r"^ExecStart=\S*/(patchcaption .*)$", unit, flags=re.MULTILINE)
    commands += ["patchcaption " + shlex.join(pod["spec"]["containers"][0]["args"])]
    return [line for line in [*lines, *commands] if line.startswith("patchcaption serve")]


def test_the_commands_that_start_it_have_the_options_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    options = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert len(starting()) >= 7
    for line in starting():
        assert {word for word in line.split() if word.startswith("--")} <= options


def rows_of(heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text_of(ASKING), re.MULTILINE | re.DOTALL)
    (_, _, *rows) = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)[0].splitlines()  # type: ignore[index]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_table_of_calls_has_every_call(demo: Captioner) -> None:
    paths = create_app(demo).openapi()["paths"]
    calls = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    written = {call for call, *_ in rows_of("The calls") for call in re.findall(r"`(.*?)`", call)}
    assert written == {*calls, "GET /openapi.json"}


def test_the_table_of_limits_has_the_flags_and_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    main(["serve", "--help"])
    helped = " ".join(capsys.readouterr().out.split())
    rows = {re.findall(r"`(--[\w-]+)`", row[0])[0]: row[1] for row in rows_of("Errors and limits")}
    assert [float(default) for default in rows.values()] == list(asdict(ServiceLimits()).values())
    for flag, default in rows.items():
        (said,) = re.findall(rf" {flag} N .*?\(default: ([\d.]+)\)", helped)
        assert float(said) == float(default)


def test_the_table_of_metrics_has_every_one_of_ours(service: str) -> None:
    httpx.post(f"{service}/v1/captions", files={"image": SCENE.read_bytes()}).raise_for_status()
    told = httpx.get(f"{service}/metrics").text
    kinds = dict(re.findall(r"^# TYPE (patchcaption_\S+) (\w+)$", told, re.MULTILINE))
    names = {name for name in kinds if not name.endswith("_created")}
    written = {name for row in rows_of("Metrics and probes") for name in re.findall(r"`(patchcaption_\w+)`", row[0])}
    assert written == names
