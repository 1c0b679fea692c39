"""The code and commands in the documents run, and print what the documents say."""

from __future__ import annotations

import doctest
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType
from typing import get_args

import pytest
from PIL import Image
from pydantic import BaseModel

import runtime
from patchcaption._commands import TOOLS, run_tool
from runtime import Captioner
from runtime.bundle import EngineName, graph_io
from runtime.bundle.manifest import (
    BackboneConfig,
    DecoderConfig,
    EngineRecord,
    MemoryConfig,
    Preprocessing,
    PromptConfig,
    TokenLayout,
)
from runtime.cli.main import main
from runtime.doctor.tuning import rounds
from runtime.regions import serialization
from tests.conftest import ROOT, write_clip

PAGES = ["README.md", *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md")))]
ASKING = "docs/serve.md"
"""The page whose code asks a service: test_serve_page.py runs it."""
ASKING_TRITON = "docs/triton.md"
"""The page whose code asks Triton: tests/triton/test_documents.py runs it."""
MANY_IMAGES = "docs/batch.md"
"""The page whose code wants folders of images: test_batch_page.py runs it."""
LINKING = [*PAGES, "CONTRIBUTING.md", "SECURITY.md", "engines/README.md", "examples/ros2/README.md"]


def blocks(language: str, pages: Sequence[str] = PAGES) -> list[tuple[str, str]]:
    """Return each block of code in a language, after its name."""
    return [
        (f"{page} {number}", block)
        for page in pages
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL))
    ]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.fixture
def clone(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder that looks like a clone after `make demo` the working directory."""
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "demo").symlink_to(demo_bundle)
    (tmp_path / "export").symlink_to(ROOT / "export")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_readme_has_snippets() -> None:
    assert len(blocks("python", ["README.md"])) >= 2
    assert any("make demo" in block for _, block in blocks("sh", ["README.md"]))


SNIPPETS = blocks("python", [page for page in PAGES if page not in (ASKING, ASKING_TRITON, MANY_IMAGES)])


@pytest.mark.parametrize(("name", "snippet"), SNIPPETS, ids=[name for name, _ in SNIPPETS])
@pytest.mark.usefixtures("clone")
def test_python_snippets_run_and_print_what_they_say(
    capsys: pytest.CaptureFixture[str], name: str, snippet: str
) -> None:
    exec(compile(snippet, name, "exec"), {})
    said = re.findall(r"^# (.+)$", snippet, flags=re.MULTILINE)
    printed = capsys.readouterr().out.splitlines()
    assert printed == said


def commands() -> list[str]:
    """Return the commands that need nothing but a clone: two pages are for boards and cards, others tested apart."""
    pages = [page for page in PAGES if page not in ("docs/jetson.md", "docs/rtx.md", "docs/train.md", ASKING)]
    lines = [line for line in command_lines(pages) if line.split()[1] not in (*TOOLS, "batch", "serve")]
    return list({tuple(shlex.split(line, comments=True)): line for line in lines}.values())


def command_lines(pages: Sequence[str]) -> list[str]:
    lines = [line for _, block in blocks("sh", pages) for line in whole_lines(block)]
    return sorted({line for line in lines if line.startswith("patchcaption ")})


def whole_lines(block: str) -> list[str]:
    """Return the commands of a block, each on one line."""
    return block.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("command", commands())
@pytest.mark.usefixtures("clone")
def test_commands_run(command: str, sample_image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_SECONDS", 0.0)  # `tune` measures for longer to be sure
    if "clip.mp4" in command:
        write_clip(Path("clip.mp4"), [sample_image] * 3)
    assert main(shlex.split(command, comments=True)[1:]) == 0


@pytest.mark.parametrize("command", [line for line in command_lines(PAGES) if line.split()[1] in TOOLS])
def test_commands_that_build_have_the_options_they_are_given(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, tool, *words = shlex.split(command, comments=True)
    with pytest.raises(SystemExit, match="0"):
        run_tool(tool, ["--help"])
    options = re.findall(r"--[\w-]+", capsys.readouterr().out)
    assert {word for word in words if word.startswith("--")} <= set(options)


@pytest.mark.slow
@pytest.mark.usefixtures("clone")
def test_the_recipe_leads_from_captions_to_a_camera(
    sample_image: Image.Image, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its second block runs, but for fewer steps; its first has the same commands."""
    (_, general), (_, demo), *_ = blocks("sh", ["docs/train.md"])
    captions, *commands = whole_lines(demo)
    assert [line.split()[:2] for line in whole_lines(general)] == [line.split()[:2] for line in commands]
    write_clip(Path("clip.mp4"), [sample_image] * 2)
    subprocess.run(captions.replace("python", shlex.quote(sys.executable), 1), shell=True, check=True)
    for line in commands:
        _, name, *words = shlex.split(line.replace("--steps 1000", "--steps 2"))
        assert (run_tool(name, words) if name in TOOLS else main([name, *words])) == 0
    assert {"decoder.pt", "decoder.h5", "decoder.yaml", "decoder.csv", "decoder.png"} <= {
        path.name for path in Path().iterdir()
    }
    capsys.readouterr()
    assert main(["video", "--help"]) == 0
    assert set(re.findall(r"--[\w-]+", general.splitlines()[-1])) <= set(
        re.findall(r"--[\w-]+", capsys.readouterr().out)
    )


@pytest.mark.parametrize("page", [page for page in LINKING if page != "CONTRIBUTING.md"])
def test_documents_use_the_project_by_its_own_name(page: str) -> None:
    assert "python -m runtime" not in text_of(page).replace("`python -m runtime` would run a", "")
    assert "--engines" not in text_of(page).replace("(`--engines` is an alias)", "")
    uses = re.findall(r"^from runtime import", text_of(page), flags=re.MULTILINE)
    assert uses == [], f"{page}: import from patchcaption"


@pytest.mark.parametrize("page", LINKING)
def test_documents_keep_a_clone_editable(page: str) -> None:
    """A plain `pip install '.[extra]'` would put a copy of the code beside the clone that is worked in."""
    assert re.findall(r"pip install '\.\[.*", text_of(page)) == []


GRAPHS = {
    "backbone.onnx": graph_io.backbone(has_attention=True),
    "decoder.onnx": graph_io.decoder_step(num_layers=1),
    "beam_decoder.onnx": graph_io.beam_decoder_step(num_layers=1),
    "mapping.onnx": graph_io.MAPPING,
    "prefill.onnx": graph_io.prefill(num_layers=1),
    "decoder.onnx, after a prompt": graph_io.decoder_step(num_layers=1, has_prompt=True),
    "reencoder.onnx": graph_io.REENCODER,
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_tables_of_graph_inputs_and_outputs_are_their_contracts(name: str) -> None:
    graph, heading = GRAPHS[name], rf"^### {re.escape(name)}\n\n"
    (table,) = re.findall(heading + r"(.*?)(?=\n\n|\Z)", text_of("engines/README.md"), re.MULTILINE | re.DOTALL)
    tensors = [("input", spec) for spec in graph.inputs] + [("output", spec) for spec in graph.outputs]
    expected = [
        (way, spec.name.replace(".0.", ".i."), spec.dtype, f"({', '.join(map(str, spec.axes))})")
        for way, spec in tensors
    ]
    assert re.findall(r"^\| (input|output) \| `(.*?)` \| (\w+) \| (\(.*?\)) \|", table, re.MULTILINE) == expected


def test_every_graph_of_a_bundle_has_a_table() -> None:
    headings = re.findall(r"^### (.*)$", text_of("engines/README.md"), re.MULTILINE)
    assert {heading.partition(",")[0] for heading in headings} == {f"{name}.onnx" for name in get_args(EngineName)}
    assert set(headings) == set(GRAPHS)


def test_every_file_of_a_bundle_is_in_the_table_of_files(demo: Captioner) -> None:
    table = text_of("engines/README.md")
    files = {*demo.manifest.files, "memory_residual.safetensors"}
    assert {file for file in files if f"| `{file.removesuffix('.data')}`" not in table} == set()


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ("backbone", BackboneConfig),
        ("backbone.tokens", TokenLayout),
        ("backbone.preprocessing", Preprocessing),
        ("decoder", DecoderConfig),
        ("decoder.prompt", PromptConfig),
        ("memory", MemoryConfig),
        ("engines", EngineRecord),
    ],
)
def test_the_table_of_the_manifest_has_its_fields(row: str, part: type[BaseModel]) -> None:
    (contents,) = re.findall(rf"^\| `{re.escape(row)}` \| (.*) \|$", text_of("docs/bundles.md"), re.MULTILINE)
    assert re.findall(r"`(\w+)`", contents) == list(part.model_fields)


def test_links_lead_somewhere() -> None:
    for page in LINKING:
        for target in re.findall(r"\]\((?!http|_pictures/)([^)#]+)\)", text_of(page)):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_every_public_name_is_in_the_reference() -> None:
    reference = text_of("docs/reference.md")
    public = {name for name in runtime.__all__ if not name.startswith("__")}
    listed = re.findall(r"auto(?:class|function|exception):: ([\w.]+)$", reference, flags=re.MULTILINE)
    assert sorted(listed) == sorted({*public, *(f"runtime.regions.{function.__name__}" for function in SERIALIZATION)})


SERIALIZATION = (
    serialization.to_dict,
    serialization.from_dict,
    serialization.regions_from_json,
    serialization.regions_from_list,
)


def examples() -> list[tuple[str, doctest.DocTest]]:
    """Return the examples of every public name and of its public functions."""
    found: list[tuple[str, object]] = [(f"runtime.regions.{function.__name__}", function) for function in SERIALIZATION]
    for name in sorted(set(runtime.__all__) - {"__version__"}):
        thing = getattr(runtime, name)
        found.append((name, thing))
        found += [(f"{name}.{member}", getattr(thing, member)) for member in public_functions(thing)]
    read = doctest.DocTestParser().get_doctest
    return [(name, read(inspect.getdoc(thing) or "", {}, name, None, None)) for name, thing in found]


def public_functions(thing: object) -> list[str]:
    """Return the names of a class's public functions; `weights` and `outline` of regions count for `Region` only."""
    if not isinstance(thing, type):
        return []
    own = [(name, member) for name, member in vars(thing).items() if not name.startswith("_")]
    return [
        name
        for name, member in own
        if isinstance(member, (FunctionType, classmethod, staticmethod))
        and (name not in ("weights", "outline") or thing is runtime.Region)
    ]


@pytest.mark.parametrize(("name", "example"), examples(), ids=[name for name, _ in examples()])
@pytest.mark.usefixtures("clone")
def test_every_public_name_has_an_example_that_runs(
    name: str, example: doctest.DocTest, demo: Captioner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example.examples, f"{name} has no example"
    (beginning,) = (block for _, block in blocks("python", ["docs/reference.md"]))
    load = 'captioner = Captioner.load("engines/demo")\n'
    assert load in beginning
    example.globs = {"captioner": demo}
    exec(beginning.replace(load, ""), example.globs)
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed
    assert failed == 0, capsys.readouterr().out
