"""What is taken for a name on the hub, and what for a path."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from export import build_plans
from export.command_line import bundle_folder
from runtime.bundle import Bundle
from runtime.errors import BundleError
from runtime.hub import find_bundle, open_bundle
from runtime.hub.names import HubName, hub_name, repository_name, repository_of_checkpoint


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("acme/demo", "acme/demo", "main"),
        ("a/b", "a/b", "main"),
        ("_a/_b_", "_a/_b_", "main"),
        ("Acme-2/dino_v2.b-14_", "Acme-2/dino_v2.b-14_", "main"),
        ("acme/demo@v1.0", "acme/demo", "v1.0"),
        ("acme/demo@refs/pr/3", "acme/demo", "refs/pr/3"),
        (f"acme/demo@{'0' * 40}", "acme/demo", "0" * 40),
        ("hf://acme/demo@v1", "acme/demo", "v1"),
    ],
)
def test_names_of_repositories(text: str, repository: str, revision: str) -> None:
    assert hub_name(text) == HubName(repository, revision)
    assert repository_name(text) == HubName(repository, revision)
    assert str(hub_name(text)) == text.removeprefix("hf://")


BAD_NAMES = [
    *("a/b/c", "../x", "./acme/demo", "/acme/demo", "acme/", "/demo", "acme", "", "acme//demo", "~/demo", "acme/.."),
    *("acme/demo x", "ac me/demo", "acme/demo\n", "acme/demo@", "acme/demo@v 1", "acme/demo@../x", "acme/demo@/x"),
    *("acme--x/demo", "acme/x--demo", "acme/x..y", ".acme/demo", "-acme/demo", "acme/demo-", "acme/demo.git"),
    *("acmé/demo", "acme\\demo", "acme/demo#1", "acme/demo?x=1", "a" * 60 + "/" + "b" * 60, "acme/demo@" + "v" * 201),
]


@pytest.mark.parametrize("text", BAD_NAMES)
def test_what_is_no_name_is_a_path(text: str) -> None:
    assert hub_name(text) is None
    with pytest.raises(BundleError, match="no bundle there|cannot be read"):
        Bundle(find_bundle(text))
    for refuse in (hub_name, repository_name):
        with pytest.raises(BundleError, match="expected a repository of the hub, OWNER/NAME or OWNER/NAME@REVISION"):
            refuse(f"hf://{text}")


def test_folders_and_paths_win(empty_folder: Path, demo_bundle: Path) -> None:
    assert hub_name(Path("acme/demo")) is None
    assert hub_name("engines/demo") is None  # where builds go
    (empty_folder / "owner").mkdir()
    assert hub_name("owner/demo") is None
    assert hub_name("other/demo") is not None
    (empty_folder / "acme").symlink_to(demo_bundle.parent)
    assert find_bundle(f"acme/{demo_bundle.name}") == Path("acme", demo_bundle.name)
    assert open_bundle(f"acme/{demo_bundle.name}").manifest.files
    assert hub_name(f"hf://acme/{demo_bundle.name}") is not None


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ("acme/demo@v1", "acme/demo"),
        ("acme/demo", "acme/demo"),
        ("demo", None),
        ("/home/somebody/config.yaml", None),
        ("checkpoint/config.yaml", None),
        ("seeded:dinov2_vits14_reg,size=224", None),
        ("recording:a/b.json", None),
    ],
)
def test_the_repository_of_a_checkpoint(checkpoint: str, expected: str | None) -> None:
    assert repository_of_checkpoint(checkpoint) == expected


def test_the_tools_take_names_too(
    demo_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bundle_folder(str(demo_bundle)) == demo_bundle
    monkeypatch.setattr("export.command_line.find_bundle", _refuse)
    with pytest.raises(argparse.ArgumentTypeError, match="^acme/demo: no such repository$"):
        bundle_folder("acme/demo")
    with pytest.raises(SystemExit, match="2"):
        build_plans.main(["acme/demo"])
    assert "--out is needed for a bundle of the hub" in capsys.readouterr().err


def _refuse(text: str) -> Path:
    raise BundleError(f"{text}: no such repository")
