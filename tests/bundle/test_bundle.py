"""Bundles: the checks on opening one, and builds that replace one wholly or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from safetensors import SafetensorError

from export import build_engines, bundle_builder
from export.graphs.specs import GraphSpec
from runtime import BundleError, Captioner
from runtime.backends.base import Device
from runtime.bundle import (
    MANIFEST,
    Bundle,
    EngineFiles,
    EngineName,
    EnginePrecision,
    EngineRecord,
    Manifest,
    PlanRecord,
    ShapeRange,
    new_bundle,
    writing,
)
from tests.doubles import with_manifest, without_engine

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
    """Replace values of a bundle's manifest."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema_version": 4}, "schema 4, but this version reads schema 3; update patchcaption"),
        ({"schema_version": 1}, "schema 1, but this version reads schema 3; .* build the bundle again"),
        ({"schema_version": "x"}, "schema 'x'"),
        ({"decoder": {}}, "manifest.json: decoder.kind: Field required; build the bundle again"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"tokenizer": "../../etc/passwd"}, "tokenizer: String should match pattern"),
        ({"files": {"../evil": {"bytes": 1, "sha256": "0" * 64}}}, "String should match pattern"),
        ({"files": {}}, "manifest.json: files: backbone.onnx is used but not listed; build the bundle again"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(
    bundle_copy: BundleCopy, values: dict[str, object], message: str
) -> None:
    folder = bundle_copy()
    change(folder, **values)
    with pytest.raises(BundleError, match=message):
        Captioner.load(folder)


def test_a_bundle_of_the_first_schema_is_refused_by_that_before_anything_else(bundle_copy: BundleCopy) -> None:
    folder = bundle_copy()
    first = {"schema_version": 1, "architecture": {"width": 192}, "decoding": {"steps": 30}, "tokenizer": "t.json"}
    (folder / MANIFEST).write_text(json.dumps(first))
    with pytest.raises(BundleError, match="schema 1, but this version reads schema 3; .* build the bundle again"):
        Bundle(folder)


def in_other_space(bundle: Bundle, part: str) -> dict[str, object]:
    return {**json.loads(bundle.manifest.model_dump_json())[part], "text_space": "another"}


@pytest.mark.parametrize("part", ["backbone", "decoder", "memory"])
def test_parts_of_different_text_spaces_are_refused(bundle_copy: BundleCopy, part: str) -> None:
    folder = bundle_copy()
    bundle = Bundle(folder, verify=False)
    space = bundle.manifest.backbone.text_space
    change(folder, **{part: in_other_space(bundle, part)})
    spaces = dict.fromkeys(("backbone", "decoder", "memory"), space) | {part: "another"}
    expected = ", ".join(f"{name} {of_part!r}" for name, of_part in spaces.items())
    message = f"text_space: expected one for backbone, decoder and memory bank, got {expected}; build the bundle again"
    with pytest.raises(BundleError, match=message):
        Bundle(folder)


def test_a_bundle_without_a_memory_has_one_text_space_too(bundle_copy: BundleCopy) -> None:
    folder = bundle_copy()
    bundle = Bundle(folder, verify=False)
    change(folder, memory=None)
    assert Bundle(folder).manifest.memory is None
    change(folder, memory=None, decoder=in_other_space(bundle, "decoder"))
    with pytest.raises(BundleError, match="text_space: expected one for .*, got backbone '.*', decoder 'another'"):
        Bundle(folder)


@pytest.mark.parametrize("name", ["backbone", "decoder"])
def test_a_bundle_without_its_backbone_or_decoder_is_refused(bundle_copy: BundleCopy, name: str) -> None:
    folder = bundle_copy()
    engines = json.loads((folder / MANIFEST).read_text())["engines"]
    del engines[name]
    change(folder, engines=engines)
    with pytest.raises(BundleError, match=f"manifest.json: engines: {name} is missing; build the bundle again"):
        Bundle(folder)


def test_an_engine_of_an_unknown_name_is_refused(bundle_copy: BundleCopy) -> None:
    folder = bundle_copy()
    engines = json.loads((folder / MANIFEST).read_text())["engines"]
    change(folder, engines={**engines, "oracle": engines["decoder"]})
    with pytest.raises(BundleError, match="manifest.json: engines.oracle.*: Input should be 'backbone', "):
        Bundle(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reencoder", "it was built without a re-encoder, which some families of backbones do not have"),
        ("beam_decoder", "it was built without a decoder for beam search; build the bundle again"),
    ],
)
def test_an_engine_that_a_bundle_does_not_have_is_named(demo_bundle: Path, name: EngineName, message: str) -> None:
    bundle = Bundle(demo_bundle, verify=False)
    assert bundle.engine(name).graph.is_file()
    with pytest.raises(BundleError, match=f"{demo_bundle}: {message}"):
        without_engine(bundle, name).engine(name)


def test_an_engine_is_its_graph_and_precision_and_the_plan_that_was_built_of_it(demo_bundle: Path) -> None:
    bundle = Bundle(demo_bundle, verify=False)
    files = bundle.engine("backbone")
    assert files == EngineFiles(demo_bundle / "backbone.onnx", "fp32", plan=None, sha256=files.sha256)
    assert files.sha256 not in ("", bundle.engine("decoder").sha256)
    shapes = ShapeRange(min=(1,), opt=(2,), max=(3,))
    plan = PlanRecord(
        graph="decoder.onnx",
        file="decoder.plan",
        key="0" * 64,
        version="10.3.0",
        gpu="Orin",
        compute_capabilities=("8.7",),
        hardware="same",
        version_compatible=False,
        profiles=({"input_ids": shapes},),
    )
    with_plan = with_manifest(bundle, plans=(plan,))
    assert with_plan.engine("decoder").plan == (plan, demo_bundle / "decoder.plan")
    assert with_plan.engine("backbone").plan is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}', "\udcff"])
def test_a_manifest_that_is_no_manifest_is_refused(bundle_copy: BundleCopy, text: str) -> None:
    folder = bundle_copy()
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match=MANIFEST):
        Bundle(folder)


def test_no_bundle_is_said_with_the_command_that_builds_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match="no bundle there .*patchcaption build demo --out"):
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
    monkeypatch.setattr(writing, "_exchange", lambda *_: False)
    test_a_new_bundle_replaces_the_old_one_wholly(bundle_copy)


def test_a_second_rename_that_fails_brings_the_old_bundle_back(
    bundle_copy: BundleCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundle_copy()
    before = snapshot(folder)
    monkeypatch.setattr(writing, "_exchange", lambda *_: False)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".building-" in self.parent.name:
            raise OSError(errno.EIO, "broken disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(BundleError, match="not built: .*broken disk"), new_bundle(folder) as work:
        (work / "other").write_text("new")
    assert snapshot(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def put_thesis(folder: Path) -> None:
    (folder / "thesis.txt").write_text("years of work")


def put_into_folder(folder: Path) -> None:
    (folder / "captions").mkdir()
    put_thesis(folder / "captions")


def keep_only_others(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    put_thesis(folder)


def replace_manifest(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)


def put_folder_for_file(folder: Path) -> None:
    (folder / "captions.jsonl").unlink()
    (folder / "captions.jsonl").mkdir()


def put_pipe_for_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)


FOREIGN: list[tuple[Callable[[Path], object], str]] = [
    (put_thesis, "thesis.txt is no file of the bundle there, and would be lost"),
    (put_into_folder, "captions is no file of the bundle there"),
    (keep_only_others, "exists and is no bundle: thesis.txt would be lost"),
    (partial(replace_manifest, text='{"name": "a web app", "icons": []}'), "exists and is no bundle"),
    (partial(replace_manifest, text='{"schema_version": 2, "files": {}}'), "exists and is no bundle"),
    (partial(replace_manifest, text="half of {"), "exists and is no bundle"),
    (put_folder_for_file, "captions.jsonl is no file of the bundle there"),
    (put_pipe_for_manifest, "exists and is no bundle"),
]


@pytest.mark.parametrize(("spoil", "message"), FOREIGN)
def test_what_is_not_all_of_a_bundle_is_never_replaced(
    bundle_copy: BundleCopy, spoil: Callable[[Path], object], message: str
) -> None:
    folder = bundle_copy()
    spoil(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(BundleError, match=message), new_bundle(folder):
        pass
    assert sorted(folder.rglob("*")) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_comes_into_a_bundle_while_it_is_built_again_is_not_lost(bundle_copy: BundleCopy) -> None:
    folder = bundle_copy()

    def build() -> None:
        with new_bundle(folder):
            put_thesis(folder)

    with pytest.raises(BundleError, match="thesis.txt is no file of the bundle"):
        build()
    assert (folder / "thesis.txt").exists()
    assert Bundle(folder).manifest.files


@pytest.mark.parametrize("schema", [1, 99])
def test_a_bundle_that_cannot_be_opened_is_replaced(bundle_copy: BundleCopy, schema: int) -> None:
    folder = bundle_copy()
    manifest = json.loads((folder / MANIFEST).read_text())
    of_all_schemas = {name: manifest[name] for name in ("engines", "files")}
    replace_manifest(folder, json.dumps(of_all_schemas | {"schema_version": schema}))
    (folder / "tokenizer.json").unlink()
    with new_bundle(folder) as work:
        (work / "other").write_text("new")
    assert snapshot(folder) == {"other": b"new"}


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_to_a_bundle_stays_and_is_followed(bundle_copy: BundleCopy, is_there: bool) -> None:
    folder = bundle_copy()
    link = folder.parent / "link"
    link.symlink_to(folder.name)
    if not is_there:
        shutil.rmtree(folder)
    with new_bundle(link) as work:
        (work / "other").write_text("new")
    assert link.is_symlink()
    assert snapshot(folder) == {"other": b"new"}
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([folder.name, "link"])


def test_only_what_killed_builds_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    left, bare, full = (tmp_path / f".bundle.building-{name}" for name in ("left", "bare", "full"))
    for site in (left, bare, full):
        site.mkdir()
    (left / "lock").touch()
    put_thesis(left)
    put_thesis(full)
    with new_bundle(folder) as work:
        (work / "first").write_text("")
        assert (left.exists(), bare.exists(), full.exists()) == (False, False, True)
        with new_bundle(folder) as other:
            assert work.exists(), "a build that goes on, perhaps in another container"
            (other / MANIFEST).write_text('{"schema_version": 2, "engines": {}, "files": {}}')
    assert snapshot(folder) == {"first": b""}
    assert sorted(path.name for path in tmp_path.iterdir()) == [full.name, folder.name]


def export_quickly(
    manifest: Manifest, failing: str, fail: Callable[..., None]
) -> Callable[[GraphSpec, Path, EnginePrecision, Device], EngineRecord]:
    """Return an exporter that writes a line instead of each graph, and fails at one of them."""

    def export(spec: GraphSpec, folder: Path, precision: EnginePrecision, _: Device) -> EngineRecord:
        if spec.io.name == failing:
            fail()
        record = next(record for record in manifest.engines.values() if record.file == spec.io.file)
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


@pytest.mark.parametrize("step", ["backbone", "decoder", "write_memory", "write_manifest"])
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
    step: str,
    fault: Callable[..., None],
    code: int,
    message: str,
) -> None:
    folder = bundle_copy()
    before = snapshot(folder)
    # Exporting is slow, and not what this test is about.
    monkeypatch.setattr(bundle_builder, "export_graph", export_quickly(Bundle(folder).manifest, step, fault))
    if step.startswith("write_"):
        monkeypatch.setattr(bundle_builder, step, fault)
    assert build_engines.main(["demo", "--out", str(folder)]) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert snapshot(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
