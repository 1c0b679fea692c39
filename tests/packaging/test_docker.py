"""The Dockerfiles: what they name is there, and their steps run as far as they can without Docker."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch

from tests.conftest import ROOT, SAMPLE

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
CPU, TRITON = ROOT / "docker" / "cpu.Dockerfile", ROOT / "docker" / "triton.Dockerfile"
PAGE = ROOT / "runtime" / "serving" / "http" / "page"
REPLACED = {"TORCH": f"torch=={torch.__version__.split('+')[0]}", "TENSORRT": "numpy", "WHEELS": ""}
"""What a build on a Jetson gives, or takes from NVIDIA's index."""


@dataclass(frozen=True)
class Step:
    """One instruction: RUN, COPY, ..."""

    name: str
    words: str


def steps(file: Path) -> list[Step]:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [Step(*re.split(r"\s+", line.strip(), maxsplit=1)) for line in text.splitlines() if line.strip()]


def named(file: Path, name: str) -> list[str]:
    return [step.words for step in steps(file) if step.name == name]


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def dockerfile(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_there_is_an_image_for_each_kind_of_machine() -> None:
    assert [file.stem for file in FILES] == ["cpu", "jetpack6", "jetpack7", "triton"]


def test_what_is_copied_and_installed_is_in_the_repository(dockerfile: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for words in named(dockerfile, "COPY"):
        *sources, _ = [word for word in words.split() if not word.startswith("--from=")]
        if "--from=" not in words:
            assert all((ROOT / source).exists() and source not in ignored for source in sources), words
    commands = "\n".join(named(dockerfile, "RUN"))
    for lock in re.findall(r"-r \S*?(locks/\S+)", commands):
        assert (ROOT / lock).is_file()
    project = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\.\[(\w+)\]", commands):
        assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE)
    assert {*re.findall(r"make (\w+)$", commands)} <= {*re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)}


def test_the_options_in_the_first_lines_are_arguments(dockerfile: Path) -> None:
    described = set(re.findall(r"--build-arg (\w+)=", dockerfile.read_text()))
    assert described <= {words.split("=")[0] for words in named(dockerfile, "ARG")}


def test_no_image_names_a_package_index(dockerfile: Path) -> None:
    assert "://" not in dockerfile.read_text()


def test_the_image_for_the_cpu_runs_as_a_user_without_rights() -> None:
    instructions = [step.name for step in steps(CPU)]
    assert named(CPU, "USER") == ["1000:1000"], "a number, which Kubernetes can tell from root's"
    assert instructions.index("USER") > max(place for place, name in enumerate(instructions) if name == "RUN")
    assert named(CPU, "EXPOSE") == ["8000"]


@pytest.mark.slow
@pytest.mark.parametrize("dockerfile", [file for file in FILES if file != TRITON], ids=lambda file: file.stem)
def test_the_steps_run_and_so_does_the_command(dockerfile: Path, tmp_path: Path, demo_bundle: Path) -> None:
    """But for Triton's, whose steps are those of the others; its server runs in tests/triton."""
    image = Image(tmp_path, has_pip=not any("-m venv" in words for words in named(dockerfile, "RUN")))
    for step in steps(dockerfile):
        image.do(step)
    (command,) = named(dockerfile, "CMD")
    entry = "".join(named(dockerfile, "ENTRYPOINT"))
    assert re.findall(r'"(\w+)"', entry + command) == ["patchcaption", "doctor"]
    done = image.run("patchcaption doctor")
    kind = "a wheel with the native kernels" if dockerfile.stem == "cpu" else "an editable install of the clone"
    assert kind in done.stdout, done.stderr
    assert re.search(r"^pass +native kernels", done.stdout, re.MULTILINE)
    if dockerfile == CPU:
        check_that_it_serves(image, demo_bundle)


def check_that_it_serves(image: Image, bundle: Path) -> None:
    """Run the command that the first lines give for the service, and the health check; on a free port of loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (served,) = re.findall(r"^#.* (patchcaption serve .*)$", CPU.read_text(), flags=re.MULTILINE)
    serve = served.replace("0.0.0.0", f"127.0.0.1 --port {port}")
    assert serve != served
    image.add("engines/demo", bundle)
    image.add_text("token", f"{'a1' * 32}\n")
    (words,) = named(CPU, "HEALTHCHECK")
    check = shlex.join(json.loads(words.partition("CMD ")[2])).replace("8000", port)
    assert image.run(check).returncode != 0, "nobody answers yet"
    process = image.start(serve)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving engines/demo")
        healthy = image.run(check)
        assert healthy.returncode == 0, healthy.stderr
        for file in filter(Path.is_file, PAGE.rglob("*")):
            httpx.get(f"http://127.0.0.1:{port}/page/{file.relative_to(PAGE)}").raise_for_status()
        client = f"python {shlex.quote(str(ROOT / 'examples' / 'http_client.py'))} http://127.0.0.1:{port}"
        client += f" {shlex.quote(str(SAMPLE / 'scene.jpg'))} 276,174,507,399"
        assert "401: " in image.run(client).stderr
        assert image.run(f"PATCHCAPTION_TOKEN={'a1' * 32} {client}").stdout == "a large striped red triangle\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


class Image:
    """A folder that stands for an image's root, with an environment that has what the tests have."""

    def __init__(self, root: Path, has_pip: bool) -> None:
        self._root, self._folder = root, root
        self._variables: dict[str, str] = {}
        if has_pip:
            venv.create(root / "venv", with_pip=True)
            self._share_packages()

    def do(self, step: Step) -> None:
        """Carry out an instruction; those that need Docker or Debian are left out."""
        if step.name == "ARG":
            name, _, default = step.words.partition("=")
            self._variables[name] = REPLACED.get(name, default)
        elif step.name == "WORKDIR":
            self._folder = self._path(step.words)
            self._folder.mkdir(parents=True, exist_ok=True)
        elif step.name == "COPY" and "--from=" not in step.words:  # one folder stands for all stages
            source, target = step.words.split()
            self._copy(source, self._folder / target if target == "." else self._path(target))
        elif step.name == "RUN" and not step.words.startswith("apt-get"):
            done = self.run(step.words)
            assert done.returncode == 0, f"{step.words}\n{done.stdout}\n{done.stderr}"
            self._share_packages()

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command with what lies in the image's root in place of what lies in this machine's."""
        words, cwd, env = self._inside(command)
        return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command, as `run` does, that stands for the container's first process."""
        words, cwd, env = self._inside(f"exec {command}")
        return subprocess.Popen(words, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def add(self, name: str, folder: Path) -> None:
        """Mount a folder into the working directory."""
        (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self._folder / name).symlink_to(folder)

    def add_text(self, name: str, text: str) -> None:
        """Mount a file into the working directory."""
        (self._folder / name).write_text(text)

    def _inside(self, command: str) -> tuple[list[str], Path, dict[str, str]]:
        of_image = rf"(?<=[\s\"'])/(?!{re.escape(str(ROOT)[1:])}/)(?=(venv|wheels|locks|patchcaption|work)\b)"
        inside = re.sub(of_image, f"{self._root}/", f" {command}")
        environment = {
            "PATH": f"{self._root}/venv/bin:{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self._root),
        }
        return ["sh", "-ec", inside], self._folder, {**self._inherited(), **environment, **self._variables}

    def _path(self, inside: str) -> Path:
        return self._root / inside.strip("/")

    @staticmethod
    def _inherited() -> Mapping[str, str]:
        """Return what pip and CMake are told on this machine, but for where this clone is."""
        return {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "LANG", "SSL", "CMAKE_"))}

    def _copy(self, source: str, target: Path) -> None:
        if source != ".":
            shutil.copytree(ROOT / source, target)
            return
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)

    def _share_packages(self) -> None:
        """Let the environment have the packages of the one that runs the tests, which the steps would install."""
        (site,) = self._root.glob("venv/lib/python*/site-packages")
        for old in site.glob("setuptools*"):  # older than torch needs, and found first
            shutil.rmtree(old)
        ours = [path for path in sys.path if path.endswith("site-packages")]
        (site / "packages_of_the_tests.pth").write_text("\n".join(ours))
