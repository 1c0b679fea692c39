"""A published bundle by its name: downloaded once, checked, pinned, and usable without the network from then on."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import Box, Captioner
from tests.conftest import SAMPLE
from tests.hub.conftest import NAME
from tests.hub.hub_server import Hub, Tree
from tests.hub.machine import Machine

BOX = "276,174,507,399"
CAPTION = ["caption", str(SAMPLE / "scene.jpg"), "--box", BOX, "--bundle"]
LARGEST = "backbone.onnx.data"
OPEN = f"from runtime.hub import open_bundle; print(open_bundle('{NAME}').folder)"
LOAD = f"""
from runtime import Box, Captioner
with Captioner.load("{NAME}") as captioner:
    print(captioner.caption("{SAMPLE / "scene.jpg"}", [Box({BOX})])[0])
"""


class Gate:
    """Holds back a file of the hub until it is opened."""

    def __init__(self, hub: Hub, file: str) -> None:
        self.reached, self._opened = threading.Event(), threading.Event()
        self._hub, self._file = hub, file
        hub.gates[file] = self._wait

    def _wait(self) -> None:
        self.reached.set()
        self._opened.wait(60)

    def open(self) -> None:
        """Let the file through from now on."""
        self._hub.gates.pop(self._file, None)
        self._opened.set()


def test_a_name_captions_as_the_folder_does(published: Hub, machine: Machine, demo: Captioner) -> None:
    expected = demo.caption(SAMPLE / "scene.jpg", [Box(276, 174, 507, 399)])[0]
    first = machine.run(LOAD)
    assert (first.code, first.out.strip()) == (0, str(expected)), first
    assert "note: acme/demo at" in first.err
    assert "downloading 10 of its 10 files, 19.5 MiB" in first.err
    asked = len(published.requests)
    assert machine.run([*CAPTION, NAME]).out == f"{expected.score:.3f}  {expected.text}\n"
    assert len(published.requests) == asked, "the hub was asked for what is in the cache"


def test_what_is_in_the_cache_needs_no_hub(published: Hub, machine: Machine) -> None:
    assert machine.run(["info", NAME]).code == 0
    published.repositories.clear()
    unreachable, offline = {"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}
    for command in (["verify", NAME], ["trust", NAME], ["doctor", "--bundle", NAME], [*CAPTION, NAME]):
        done = machine.run(command, **(unreachable if command[0] == "caption" else offline))
        assert done.code == 0, (command, done)
        assert "patchcaption:" not in done.err


@pytest.mark.usefixtures("published")
def test_what_is_in_the_cache_is_only_read(machine: Machine) -> None:
    def changed() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in machine.cache.rglob("*")}

    assert machine.run(OPEN).code == 0
    before = changed()
    assert machine.run(OPEN).code == 0
    assert changed() == before


def test_only_the_files_of_the_manifest_are_downloaded(published: Hub, machine: Machine, demo_files: Tree) -> None:
    published.repositories[NAME].commit({"README.md": b"# card", "large.bin": bytes(20_000), "a/b.onnx": b"x"})
    assert machine.run(OPEN).code == 0
    assert sorted(published.files_sent()) == sorted(demo_files)
    assert {path.name for path in machine.bundle(NAME).iterdir()} == demo_files.keys()
    assert not any(path.is_symlink() for path in machine.bundle(NAME).iterdir())


def test_what_was_loaded_first_stays_until_it_is_pulled(published: Hub, machine: Machine, demo_files: Tree) -> None:
    first = machine.run(OPEN).out
    newest = published.repositories[NAME].commit({"captions.jsonl": b"", **manifest_of(demo_files, "newer")})
    assert machine.run(OPEN).out == first
    pulled = machine.run(["pull", NAME])
    assert pulled.code == 0, pulled
    assert Path(pulled.out.strip()).name == newest
    assert f"is {newest[:12]} from now on" in pulled.err
    assert machine.run(OPEN, HF_HUB_OFFLINE="1").out == pulled.out
    again = machine.run(["pull", NAME])
    assert (again.out, "as it was" in again.err) == (pulled.out, True)


def manifest_of(files: Tree, checkpoint: str) -> Tree:
    """Return the manifest with another checkpoint's name, and the files that it is about."""
    return {**files, "manifest.json": files["manifest.json"].replace(b'"demo"', f'"{checkpoint}"'.encode())}


def test_the_exact_name_is_that_of_the_commit(published: Hub, machine: Machine, demo_bundle: Path) -> None:
    commit = published.repositories[NAME].refs["main"]
    exact = machine.run(f"from runtime.hub import exact_name; print(exact_name('{NAME}'), exact_name('{demo_bundle}'))")
    assert exact.out == f"hf://{NAME}@{commit} {demo_bundle}\n"
    published.repositories[NAME].commit({"x": b""})
    code = f"from runtime.hub import find_bundle; print(find_bundle('hf://{NAME}@{commit}').name)"
    assert machine.run(code).out == f"{commit}\n"


def test_revisions_are_branches_tags_and_commits(published: Hub, machine: Machine, demo_files: Tree) -> None:
    repository = published.repositories[NAME]
    first = repository.refs["main"]
    repository.refs["v1/of-2026"] = first
    second = repository.commit(manifest_of(demo_files, "newer"))
    opened = {
        revision: Path(machine.run(OPEN.replace(NAME, f"{NAME}@{revision}")).out.strip()).name
        for revision in ("v1/of-2026", first, "main", second)
    }
    assert opened == {"v1/of-2026": first, first: first, "main": second, second: second}
    assert published.files_sent().count(LARGEST) == 2  # once for each commit


@pytest.mark.parametrize("how", ["truncated", "altered", "missing", "manifest"])
def test_a_file_that_is_damaged_in_the_cache_is_named_and_fetched_again(
    published: Hub, machine: Machine, demo_files: Tree, how: str
) -> None:
    machine.run(OPEN)
    file = "manifest.json" if how == "manifest" else "decoder.onnx.data"
    path = machine.bundle(NAME) / file
    data = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(data[:-5] + (b"other" if how == "altered" else b""))
    offline = machine.run(OPEN, HF_HUB_OFFLINE="1")
    assert offline.code == 1
    assert f"{file}: " in offline.err
    assert "it could not be fetched again: acme/demo: " in offline.err
    published.requests.clear()
    assert machine.run(OPEN).code == 0
    assert {one.name: one.read_bytes() for one in machine.bundle(NAME).iterdir()} == demo_files
    assert set(published.files_sent()) == {"manifest.json", file}


def test_files_that_are_not_the_manifests_are_not_used(published: Hub, machine: Machine, demo_files: Tree) -> None:
    published.lies["decoder.onnx.data"] = bytes(len(demo_files["decoder.onnx.data"]))
    done = machine.run(["info", NAME])
    assert done.code == 1
    assert "acme/demo: decoder.onnx.data: what the hub sends is not what the manifest lists: expected" in done.err
    assert machine.run(["info", NAME], HF_HUB_OFFLINE="1").code == 1
    published.lies.clear()
    published.requests.clear()
    assert machine.run(["info", NAME]).code == 0
    assert "decoder.onnx.data" in published.files_sent()
    assert LARGEST not in published.files_sent(), "it was whole"


def test_two_processes_at_once_download_once(published: Hub, machine: Machine, demo_files: Tree) -> None:
    gate = Gate(published, LARGEST)
    one = machine.start(OPEN)
    assert gate.reached.wait(60)
    other = machine.start(OPEN)
    other.wait_for("another process is fetching it; waiting")
    gate.open()
    done = [one.finish(), other.finish()]
    assert [job.code for job in done] == [0, 0], done
    assert done[0].out == done[1].out
    assert sorted(published.files_sent()) == sorted(demo_files)


def test_threads_of_one_process_download_once(published: Hub, machine: Machine, demo_files: Tree) -> None:
    code = f"""
from concurrent.futures import ThreadPoolExecutor
from runtime.hub import find_bundle
with ThreadPoolExecutor(4) as threads:
    print(len(set(threads.map(find_bundle, ["{NAME}"] * 4))))
"""
    done = machine.run(code)
    assert (done.code, done.out) == (0, "1\n"), done
    assert sorted(published.files_sent()) == sorted(demo_files)


def test_a_download_that_was_killed_goes_on(published: Hub, machine: Machine, demo_files: Tree) -> None:
    gate = Gate(published, "memory.safetensors")
    job = machine.start(OPEN)
    assert gate.reached.wait(60)
    job.kill()
    before = published.files_sent()
    gate.open()
    (left,) = machine.cache.rglob("*.incomplete")
    gate = Gate(published, "memory.safetensors")
    job = machine.start(OPEN)
    assert gate.reached.wait(60)
    (again,) = machine.cache.rglob("*.incomplete")
    assert again != left
    job.kill()
    gate.open()
    assert machine.run(OPEN, HF_HUB_OFFLINE="1").code == 1, "a part was taken for a bundle"
    (machine.cache / "acme--demo" / f"{'0' * 40}.part").mkdir()  # of a commit that was the newest then
    published.requests.clear()
    assert machine.run(OPEN).code == 0
    assert set(published.files_sent()) == demo_files.keys() - set(before) | {"manifest.json", "memory.safetensors"}
    assert [path.name for path in machine.cache.rglob("*.part")] == []


def test_a_connection_that_breaks_goes_on_where_it_was(published: Hub, machine: Machine) -> None:
    published.cuts.append(LARGEST)
    assert machine.run(OPEN).code == 0
    assert published.files_sent().count(LARGEST) == 2
    assert published.ranges == [f"bytes={10 * 2**20}-"]


def test_what_hf_download_has_brought_needs_no_hub(published: Hub, machine: Machine, demo_files: Tree) -> None:
    brought = machine.run(
        f"from huggingface_hub import snapshot_download; snapshot_download('{NAME}', revision='main')"
    )
    assert brought.code == 0, brought
    asked = len(published.requests)
    done = machine.run(OPEN, HF_HUB_OFFLINE="1")
    assert done.code == 0, done
    assert "copying from huggingface_hub's cache 10 of its 10 files" in done.err
    assert {path.name: path.read_bytes() for path in machine.bundle(NAME).iterdir()} == demo_files
    assert not any(path.is_symlink() for path in machine.bundle(NAME).iterdir())
    assert machine.run(["pull", NAME], HF_HUB_OFFLINE="1").code == 1
    assert len(published.requests) == asked


def test_a_bundle_that_this_version_does_not_open_says_how_to_go_on(
    published: Hub, machine: Machine, demo_files: Tree
) -> None:
    graph = demo_files["decoder.onnx"].replace(b"Softmax", b"Hardmax")
    published.repositories[NAME].commit(with_file(demo_files, "decoder.onnx", graph))
    done = machine.run(["info", NAME])
    assert done.code == 1
    assert done.err.count("error: ") == 1
    assert done.err.endswith("; patchcaption pull acme/demo fetches or builds it again\n")
    published.repositories[NAME].commit(demo_files)
    assert machine.run(["pull", NAME]).code == 0
    assert machine.run(["info", NAME]).code == 0


def with_file(files: Tree, name: str, data: bytes) -> Tree:
    """Return a bundle with another file, and the manifest that says so."""
    manifest = json.loads(files["manifest.json"])
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return {**files, name: data, "manifest.json": json.dumps(manifest).encode()}


def test_a_folder_of_that_name_wins(published: Hub, machine: Machine, demo_bundle: Path) -> None:
    (machine.folder / "acme").mkdir()
    missing = machine.run(["info", NAME])
    assert missing.code == 1
    assert "acme/demo: no bundle there (manifest.json is missing)" in missing.err
    shutil.copytree(demo_bundle, machine.folder / NAME)
    assert machine.run(["info", NAME]).code == 0
    assert machine.run(["info", "engines/demo"]).code == 1
    assert published.requests == []
    assert machine.run(["info", f"hf://{NAME}"]).code == 0
    assert published.requests != []


def test_others_may_not_write_where_bundles_are_kept(published: Hub, machine: Machine) -> None:
    machine.cache.mkdir(parents=True)
    machine.cache.chmod(0o777)
    done = machine.run(["info", NAME])
    assert done.code == 1
    assert "bundles of the hub are not kept where others can write" in done.err
    assert published.requests == []


def test_the_runtime_asks_nobody_for_a_folder(machines: Callable[[str], Machine], demo_bundle: Path) -> None:
    code = f"""
import sys
from runtime.hub import open_bundle
open_bundle({str(demo_bundle)!r})
assert "huggingface_hub" not in sys.modules
"""
    assert machines("other").run(code).code == 0
