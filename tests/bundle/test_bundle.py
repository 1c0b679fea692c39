"""Bundles: what is checked when one is opened, and that a build replaces one wholly or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from export import build_engines
from export import bundle_builder as bundle_build
from runtime import BundleError, Captioner
from runtime.bundle import MANIFEST, Bundle, EngineRecord, new_bundle
from runtime.bundle import writing as bundle_module

BundleCopy = Callable[[], Path]
FILES = (
    "backbone.onnx",
    "backbone.onnx.data",
    "beam_decoder.onnx",
    "captions.jsonl",
    "decoder.onnx",
    "decoder.onnx.data",
    "memory.safetensors",
    "reencoder.onnx",
    "reencoder.onnx.data",
    "tokenizer.json",
)


def test_the_manifest_lists_every_file_of_the_bundle(demo_bundle: Path) -> None:
    assert sorted(Bundle(demo_bundle).manifest.files) == sorted(FILES)
    assert sorted(path.name for path in demo_bundle.iterdir()) == sorted((*FILES, MANIFEST))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_truncated_or_altered_file_is_named(bundle_copy: BundleCopy, name: str) -> None:
    folder = bundle_copy()
    path = folder / name
    contents = path.read_bytes()
    middle = len(contents) // 2
    path.write_bytes(contents[:middle] + bytes([contents[middle] ^ 1]) + contents[middle + 1 :])
    with pytest.raises(BundleError, match=f"{name}: altered"):
        Captioner.load(folder)
    path.write_bytes(contents[:-1])
    with pytest.raises(
        BundleError, match=f"{name}: truncated: expected {len(contents)} bytes, got {len(contents) - 1}"
    ):
        Captioner.load(folder, verify=False)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name}: missing; build the bundle again"):
        Captioner.load(folder)


def change(folder: Path, **values: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema_version": 2}, "schema 2, but this version reads schema 1; update patchcaption"),
        ({"schema_version": "x"}, "schema 'x'"),
        ({"decoding": {}}, "manifest.json: decoding.width: Field required"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"tokenizer": "../../etc/passwd"}, "tokenizer: String should match pattern"),
        ({"files": {"../evil": {"bytes": 1, "sha256": "0" * 64}}}, "String should match pattern"),
        ({"files": {}}, "files: backbone.onnx is used but not listed"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(
    bundle_copy: BundleCopy, values: dict[str, object], message: str
) -> None:
    folder = bundle_copy()
    change(folder, **values)
    with pytest.raises(BundleError, match=message):
        Captioner.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}', "\udcff"])
def test_a_manifest_that_is_no_manifest_is_refused(bundle_copy: BundleCopy, text: str) -> None:
    folder = bundle_copy()
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match=MANIFEST):
        Bundle(folder)


def test_no_bundle_is_said_with_the_command_that_builds_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="no bundle there .*python export/build_engines.py demo --out"):
            Bundle(folder)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def build_half(folder: Path, failure: type[BaseException]) -> None:
    with new_bundle(folder) as work:
        (work / "backbone.onnx").write_text("half")
        raise failure


def test_a_build_that_fails_leaves_the_old_bundle_and_nothing_else(bundle_copy: BundleCopy) -> None:
    folder = bundle_copy()
    before = snapshot(folder)
    for failure in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(failure):
            build_half(folder, failure)
        assert snapshot(folder) == before
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_new_bundle_replaces_the_old_one_wholly(bundle_copy: BundleCopy) -> None:
    folder = bundle_copy()
    with new_bundle(folder) as work:
        (work / "other").write_text("new")
        assert (folder / MANIFEST).exists()
    assert snapshot(folder) == {"other": b"new"}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_it_does_so_too_where_folders_cannot_be_exchanged(
    bundle_copy: BundleCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "_exchange", lambda *_: False)
    test_a_new_bundle_replaces_the_old_one_wholly(bundle_copy)


def test_a_second_rename_that_fails_brings_the_old_bundle_back(
    bundle_copy: BundleCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundle_copy()
    before = snapshot(folder)
    monkeypatch.setattr(bundle_module, "_exchange", lambda *_: False)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".building-" in self.name:
            raise OSError(errno.EIO, "broken disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(BundleError, match="not built: .*broken disk"), new_bundle(folder) as work:
        (work / "other").write_text("new")
    assert snapshot(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="exists and is no bundle"), new_bundle(home):
        pass
    assert (home / "thesis.txt").exists()


def quick_export(record: EngineRecord) -> Callable[..., EngineRecord]:
    def export(_: object, folder: Path, precision: str, *__: object) -> EngineRecord:
        (folder / record.file).write_text(f"graph in {precision}")
        return record

    return export


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_in_numpy(*_: object, **__: object) -> None:
    raise OSError("problem writing element 13312 to file")


def full_disk_in_rust(*_: object, **__: object) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["export_backbone", "export_decoder", "write_memory", "write_manifest"])
@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (full_disk, 1, "not built: [Errno 28] No space left on device; is the disk full?"),
        (full_disk_in_numpy, 1, "not built: problem writing element 13312 to file; is the disk full?"),
        (full_disk_in_rust, 1, "is the disk full?"),
        (interrupt, 130, "interrupted"),
    ],
)
def test_a_full_disk_or_an_interrupt_during_a_build_loses_nothing(
    bundle_copy: BundleCopy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    fault: Callable[..., None],
    code: int,
    message: str,
) -> None:
    folder = bundle_copy()
    before = snapshot(folder)
    manifest = Bundle(folder).manifest
    for part in ("backbone", "reencoder", "decoder", "beam_decoder"):  # exporting is slow, and not what this is about
        monkeypatch.setattr(bundle_build, f"export_{part}", quick_export(getattr(manifest, part)))
    monkeypatch.setattr(bundle_build, place, fault)
    assert build_engines.main(["demo", "--out", str(folder)]) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert snapshot(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
