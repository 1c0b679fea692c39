"""What the project says of itself: the Pythons that it is for, and the locks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

LOCKS = sorted((ROOT / "locks").glob("*.txt"))
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
REMOVED = (
    "aifc asynchat asyncore audioop binhex cgi cgitb chunk crypt distutils imghdr imp lib2to3 mailcap msilib nis "
    "nntplib ossaudiodev pipes smtpd sndhdr spwd sunau telnetlib uu xdrlib"
)
"""Modules of Python 3.10 that 3.14 no longer has."""


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_pythons_are_named_alike() -> None:
    project = text_of("pyproject.toml")
    assert re.findall(r"Python :: (3\.\d+)", project) == PYTHONS
    assert f'requires-python = ">={PYTHONS[0]}"' in project
    assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}" in text_of("README.md")


@pytest.mark.parametrize("package", ["runtime", "patchcaption", "export"])
def test_nothing_is_imported_that_a_later_python_has_removed(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & set(REMOVED.split()), file


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_locks_have_exact_versions_and_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    entries = [entry for entry in re.split(r"\n(?! )", text.strip()) if not entry.startswith("#")]
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==\S+( ; .*?)? \\\n    --hash=sha256:[0-9a-f]{64}", entry), entry
    assert "://" not in text


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("demo", "cpu export"),
        ("plans", "plans"),
        ("test", "cpu openvino tensorrt-rtx export quality bench video docs dev"),
    ],
)
def test_locks_have_what_is_installed_from_them(lock: str, extras: str) -> None:
    project = text_of("pyproject.toml")
    lists = [r"^dependencies", *(f"^{extra}" for extra in extras.split())]
    asked = set()
    for name in lists:
        (block,) = re.findall(rf"{name} = \[(.*?)\]$", project, flags=re.MULTILINE | re.DOTALL)
        block = re.sub(r"#.*$", "", block, flags=re.MULTILINE)
        asked |= {normalized(one) for one in re.findall(r'"([\w-]+)', block)}
    locked = set(re.findall(r"^([a-z0-9-]+)==", text_of(f"locks/{lock}.txt"), flags=re.MULTILINE))
    assert asked - locked == {"torch"}, "which has a lock of its own"
    assert normalized(re.findall(r'requires = \["([\w-]+)', project)[0]) in locked, "it is installed without isolation"


def normalized(name: str) -> str:
    return name.lower().replace("_", "-")
