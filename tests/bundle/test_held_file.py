"""Files of an opened bundle: regular ones only, and what is read later is what was there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import Box, BundleError, Captioner
from runtime.bundle import MANIFEST, Bundle, HeldFile, held_file
from tests.conftest import ROOT, SAMPLE

CONTENTS = bytes(range(256)) * 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENTS)
    return path


def test_a_held_file_is_read_whole_and_in_parts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = HeldFile(path)
    assert file.size == len(CONTENTS)
    assert file.read() == CONTENTS
    monkeypatch.setattr(held_file, "_PIECE_BYTES", 100)  # by several threads
    assert file.read() == CONTENTS
    part = bytearray(300)
    file.read_into(memoryview(part), 77)
    assert part == CONTENTS[77:377]


def test_a_file_that_was_exchanged_or_removed_is_read_as_it_was(path: Path) -> None:
    file = HeldFile(path)
    path.with_name("other").write_bytes(b"other")
    path.with_name("other").replace(path)
    assert file.read() == CONTENTS
    with pytest.raises(BundleError, match="file: it was changed while in use"):
        file.check_in_place()
    path.unlink()
    assert file.read() == CONTENTS
    with pytest.raises(BundleError, match="file: it was changed while in use"):
        file.check_in_place()


@pytest.mark.parametrize("contents", [b"", CONTENTS[:-1], CONTENTS[::-1], CONTENTS * 2])
def test_a_file_that_was_written_to_is_refused(path: Path, contents: bytes) -> None:
    file = HeldFile(path)
    with path.open("r+b") as opened:
        opened.truncate(0)
        opened.write(contents)
    os.utime(path, ns=(1, 1))
    with pytest.raises(BundleError, match="file: it was changed while in use; load the bundle again"):
        file.read()


def test_a_file_is_closed_with_its_last_reference(path: Path) -> None:
    file = HeldFile(path)
    fd = file.fileno()
    os.fstat(fd)
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(path: Path) -> None:
    with pytest.raises(BundleError, match="file: expected at most 9 bytes, got 10240"):
        HeldFile(path, max_bytes=9)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link(path: Path) -> None:
    other = path.with_name("..").resolve() / "outside"
    other.write_bytes(CONTENTS)
    path.symlink_to(other)


def folder(path: Path) -> None:
    path.mkdir()


FILES = [MANIFEST, "tokenizer.json", "backbone.onnx", "decoder.onnx.data", "memory.safetensors", "captions.jsonl"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (pipe, "expected a regular file, got a pipe"),
        (folder, "expected a regular file, got a folder"),
        (device, "expected a file, got a link, which may lead out of the bundle; .* cp -rL"),
        (link, "expected a file, got a link, which may lead out of the bundle; .* cp -rL"),
    ],
)
def test_only_regular_files_are_opened(
    bundle_copy: Callable[[], Path], name: str, make: Callable[[Path], None], message: str
) -> None:
    copy = bundle_copy()
    (copy / name).unlink()
    make(copy / name)
    with pytest.raises(BundleError, match=f"{name}: {message}"):
        Bundle(copy, verify=False)


def test_a_device_is_refused() -> None:
    with pytest.raises(BundleError, match="/dev/zero: expected a regular file, got a device"):
        HeldFile(Path("/dev/zero"))


def test_a_manifest_without_end_is_refused(bundle_copy: Callable[[], Path]) -> None:
    copy = bundle_copy()
    os.truncate(copy / MANIFEST, 2**40)  # of zeros that take no room
    with pytest.raises(BundleError, match="manifest.json: expected at most 4194304 bytes, got 1099511627776"):
        Bundle(copy)


def test_a_bundle_in_a_linked_folder_is_opened(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(demo_bundle)
    assert Bundle(tmp_path / "link", verify=False).manifest.files


def test_a_bundle_that_was_exchanged_is_used_as_it_was(bundle_copy: Callable[[], Path], demo_bundle: Path) -> None:
    """Captions, beam decoder and re-encoder are opened when they are first asked for: those of the same bundle."""
    copy = bundle_copy()
    asked = ({"n_best": 3}, {"beams": 3}, {"reencode": "mean"})
    with Captioner.load(demo_bundle, "cpu") as original:
        expected = [original.caption(SAMPLE / "scene.jpg", [Box(276, 174, 507, 399)], **one) for one in asked]
    with Captioner.load(copy, "cpu") as captioner:
        for file in copy.iterdir():
            file.with_name("new").write_bytes(b"of another bundle")
            file.with_name("new").replace(file)
        found = [captioner.caption(SAMPLE / "scene.jpg", [Box(276, 174, 507, 399)], **one) for one in asked]
    assert found == expected


IN_THREADS = """
import sys, time, threading
from runtime import Captioner, WholeImage
folder, image, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
end, texts = time.monotonic() + seconds, set()
def work():
    while time.monotonic() < end:
        with Captioner.load(folder, "cpu", threads=1, verify=False) as captioner:
            texts.add(captioner.caption(image, [WholeImage()])[0].text)
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(*texts, sep="\\n")
"""


@pytest.mark.slow
def test_bundles_are_loaded_and_closed_in_many_threads(demo_bundle: Path) -> None:
    command = [sys.executable, "-c", IN_THREADS, str(demo_bundle), str(SAMPLE / "scene.jpg"), "5"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "five shapes on a checked white background\n"), done.stderr
