"""The house: which room may use which, unique names, and citations that resolve."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOUNDATION = {"errors", "options", "system"}
ALLOWED: dict[str, set[str]] = {
    # stages in the order of the flow, each with the rooms that it may use
    "errors": set(),
    "system": {"errors"},
    "options": {"errors"},
    "bundle": {"errors", "system"},
    "hub": {"errors", "system", "bundle"},
    "image": {"errors"},
    "regions": {"errors", "bundle", "image"},
    "features": {"bundle", "image", "regions"},
    "backends": FOUNDATION | {"bundle"},
    "encoder": FOUNDATION | {"bundle", "image", "features", "backends"},
    "pooling": FOUNDATION | {"bundle", "image", "regions", "features", "backends"},
    "memory": FOUNDATION | {"bundle"},
    "decoding": FOUNDATION | {"bundle", "backends"},
    "results": {"errors", "regions", "memory"},
    "pipeline": FOUNDATION
    | {"bundle", "image", "features", "backends", "encoder", "pooling", "memory", "decoding", "results"},
    "serving": FOUNDATION | {"image", "regions", "features", "results", "pipeline"},
    "video": FOUNDATION | {"image", "regions", "features", "results", "pipeline"},
    "captioner": FOUNDATION
    | {"hub", "image", "features", "backends", "encoder", "results", "pipeline", "serving", "video", "bundle"},
    "output": FOUNDATION | {"image", "regions", "memory", "results", "video"},
    "serving.http": FOUNDATION
    | {"bundle", "image", "regions", "features", "results", "serving", "captioner", "output"},
    "serving.triton_requests": set(),
    "serving.triton": FOUNDATION
    | {"image", "features", "results", "pipeline", "serving", "captioner", "output", "serving.triton_requests"},
    "batch": FOUNDATION | {"bundle", "hub", "image", "regions", "results", "captioner", "output"},
    "doctor": FOUNDATION
    | {"bundle", "hub", "image", "regions", "features", "backends", "memory", "decoding", "results"}
    | {"pipeline", "captioner"},
    "cli": FOUNDATION
    | {"bundle", "image", "regions", "backends", "results", "video", "captioner", "output", "doctor"}
    | {"hub", "serving.http", "batch"},
}
INNER_ROOMS = {"serving.http", "serving.triton", "serving.triton_requests"}
"""Rooms inside a folder of the runtime, which come later than the rest of it."""
FACES = {"__init__", "__main__"}
"""The package's public face, which imports what it re-exports."""
EXPORT_MAY_USE = (
    "runtime.errors",
    "runtime.bundle",
    "runtime.hub",  # what the user calls a bundle
    "runtime.backends",  # what each executes, and TensorRT's builder
    "runtime.image",  # calibration images, and the demo's scenes
    "runtime.regions",  # the demo's scenes
    "runtime.system",
)
RUN_BY_TRITON = "export.triton_server.model"
"""What `export/` copies and does not import."""
MAX_ROOT_ENTRIES = 25


def modules(*packages: str) -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the file of every module of some packages."""
    for package in packages:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


@lru_cache(maxsize=1)
def module_names() -> frozenset[str]:
    return frozenset(name for name, _ in modules("runtime", "export", "benchmarks", "patchcaption"))


def imports(file: Path) -> Iterator[str]:
    """Yield the project's modules that a file imports, also in functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in module_names())
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name for name in submodules if name in module_names()]
            yield from found
            if len(found) < len(submodules) and node.module in module_names():
                yield node.module


def room(module: str) -> str:
    inner = ".".join(module.split(".")[1:3])
    return inner if inner in INNER_ROOMS else module.split(".")[1] if "." in module else "__init__"


def test_rooms_of_the_runtime_use_only_what_comes_before_them() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, file in modules("runtime")
        for imported in imports(file)
        if room(name) not in FACES
        and (not imported.startswith("runtime.") or room(imported) not in ALLOWED[room(name)] | {room(name)})
    ]
    assert wrong == []


def test_the_allowed_arrows_have_no_circle() -> None:
    before: set[str] = set()
    for name, allowed in ALLOWED.items():
        assert allowed <= before, f"{name} may use what comes after it: {allowed - before}"
        before.add(name)
    assert {room(name) for name, _ in modules("runtime")} - FACES == before


@pytest.mark.parametrize("package", ["runtime", "export", "benchmarks"])
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    graph = {name: {one for one in imports(file) if one.startswith(package)} for name, file in modules(package)}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for imported in graph.get(name, ()):
                visit(imported, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_exporter_uses_only_the_rooms_that_both_sides_share() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, file in modules("export")
        for imported in imports(file)
        if name != RUN_BY_TRITON and not imported.startswith(("export", *EXPORT_MAY_USE))
    ]
    assert wrong == []


def test_class_names_are_unique() -> None:
    places = defaultdict(list)
    for name, file in modules("runtime", "export", "benchmarks", "patchcaption"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_the_root_of_the_runtime_is_small() -> None:
    entries = [path.name for path in (ROOT / "runtime").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MAX_ROOT_ENTRIES, sorted(entries)


@pytest.mark.parametrize("folder", ["export", "benchmarks"])
def test_modules_that_are_run_by_path_shadow_no_package(folder: str) -> None:
    """A command run by its path has its folder first on the path, so a module there hides packages of its name."""
    packages = set(sys.stdlib_module_names) | set(metadata.packages_distributions())
    own = {"runtime", "export", "benchmarks", "tests", "patchcaption", "examples", "docs", "stubs", "engines", "native"}
    names = {path.stem for path in (ROOT / folder).iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names & (packages - own) - {"__init__", "__pycache__"} == set()


def cited_sections() -> Iterator[tuple[Path, str]]:
    for folder, pattern in (("runtime", "*.py"), ("export", "*.py"), ("benchmarks", "*.py"), ("tests", "*.py")):
        for file in sorted((ROOT / folder).rglob(pattern)):
            text = " ".join(file.read_text(encoding="utf-8").split())
            for citation in re.findall(r"published-system\.md, sections? ([\d, and to]+\d|\d)", text):
                for section in re.findall(r"\d+", citation):
                    yield file, section


def test_every_citation_of_the_rule_book_resolves() -> None:
    book = (ROOT / "docs" / "published-system.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^## (\d+)\. ", book, flags=re.MULTILINE))
    cited = list(cited_sections())
    assert len(cited) > 40
    assert [f"{file}: section {section}" for file, section in cited if section not in sections] == []


def test_no_other_rule_book_is_cited() -> None:
    files = [path for pattern in ("*.py", "*.md", "*.h", "*.cpp") for path in ROOT.rglob(pattern)]
    own = [path for path in files if not set(path.relative_to(ROOT).parts) & {".venv", "build", ".git", "engines"}]
    assert [str(path) for path in own if re.search(r"\bSPEC\b\s+sections?", path.read_text(encoding="utf-8"))] == []
