"""What is not to be had from the hub: one line that says what is wrong, and what mends it."""

from __future__ import annotations

import json

import pytest

from runtime.errors import BundleError
from runtime.hub import find_bundle
from tests.conftest import SAMPLE, without_home
from tests.hub.conftest import NAME
from tests.hub.hub_server import Hub, Tree
from tests.hub.machine import Finished, Machine

SCENE = str(SAMPLE / "scene.jpg")
OPEN = f"from runtime.hub import open_bundle; print(open_bundle('{NAME}').folder)"


def error_of(done: Finished) -> str:
    """Return the only line that a failed command has printed."""
    (line,) = done.err.splitlines()
    assert (done.code, done.out) == (1, ""), done
    return line.removeprefix("patchcaption: error: ")


def test_a_repository_that_is_not_there(hub: Hub, machine: Machine) -> None:
    missing = f"acme/demo: no such folder here, and no such repository at {hub.url}, or a private one; if you may "
    assert error_of(machine.run(["info", NAME])).startswith(missing)
    assert error_of(machine.run(["caption", SCENE, "--bundle", NAME], HF_TOKEN=hub.token)).startswith(missing)
    assert error_of(machine.run(["pull", NAME])).startswith(f"acme/demo: no such repository at {hub.url}")


def test_private_repositories_want_a_token(published: Hub, machine: Machine) -> None:
    published.repositories[NAME].is_private = True
    assert "or a private one; if you may read it, set HF_TOKEN, or run hf auth login" in error_of(
        machine.run(["info", NAME])
    )
    assert f"{published.url} wants a token that it knows (401)" in error_of(
        machine.run(["info", NAME], HF_TOKEN="hf_wrong")
    )
    assert machine.run(["info", NAME], HF_TOKEN=published.token).code == 0
    assert machine.run(["info", NAME]).code == 0, "it is in the cache"


def test_gated_repositories_want_their_owners_consent(published: Hub, machine: Machine) -> None:
    published.repositories[NAME].is_gated = True
    assert error_of(machine.run(["info", NAME])) == (
        f"acme/demo: its owner must let you in: ask at {published.url}/acme/demo, and set HF_TOKEN, or run hf auth "
        "login"
    )
    assert machine.run(["info", NAME], HF_TOKEN=published.token).code == 0


def test_gated_checkpoints_are_not_begun(hub: Hub, machine: Machine) -> None:
    hub.add(NAME, {"config.yaml": b"dino_model: x"}, is_gated=True)
    assert "acme/demo: its owner must let you in: ask at" in error_of(machine.run(["info", NAME]))


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    without_home(monkeypatch)
    with pytest.raises(BundleError, match="bundles of the hub cannot be kept: .*; set XDG_CACHE_HOME to a folder"):
        find_bundle(NAME)


def test_a_cache_that_is_in_the_way(hub: Hub, machine: Machine) -> None:
    machine.cache.parent.mkdir(parents=True)
    machine.cache.write_bytes(b"a file")
    assert "hub: cannot be written: File exists; set XDG_CACHE_HOME" in error_of(machine.run(["info", NAME]))
    assert hub.requests == []


def test_a_revision_that_is_not_there(published: Hub, machine: Machine) -> None:
    for revision in ("v2", "1" * 40):
        line = error_of(machine.run(["info", f"{NAME}@{revision}"]))
        assert line == f"acme/demo@{revision}: the repository has no branch, tag or commit '{revision}'"
    assert published.files_sent() == []


def test_no_network_and_nothing_in_the_cache(published: Hub, machine: Machine) -> None:
    assert error_of(machine.run(["info", NAME], HF_HUB_OFFLINE="1")) == (
        "acme/demo: no such folder here, and HF_HUB_OFFLINE keeps the hub from being asked for what is not in the "
        "cache; unset it once"
    )
    assert error_of(machine.run(["info", NAME], HF_ENDPOINT="http://127.0.0.1:9")) == (
        "acme/demo: no such folder here, and http://127.0.0.1:9, which is asked for what is not in the cache, cannot "
        "be reached: [Errno 111] Connection refused; try again with the network"
    )
    assert published.requests == []


@pytest.mark.parametrize("files", [{}, {"model.safetensors": b"x", "config.json": b"{}"}, {"manifest.json": b"[]"}])
def test_a_repository_that_is_neither_a_bundle_nor_a_checkpoint(hub: Hub, machine: Machine, files: Tree) -> None:
    hub.add(NAME, files)
    assert error_of(machine.run(["info", NAME])).startswith(
        "acme/demo: the repository has neither a bundle (manifest.json) nor a checkpoint to build one of (a Patch-"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 4}, "schema 4, but this version reads schema 3; update patchcaption or build the bundle"),
        ({"tokenizer": "../x"}, "tokenizer: String should match pattern"),
        ({"files": {"../../x": {"bytes": 1, "sha256": "0" * 64}}}, "files...*String should match pattern"),
        ({"files": {}}, "files: backbone.onnx is used but not listed"),
    ],
)
def test_a_manifest_that_cannot_be_used(
    published: Hub, machine: Machine, demo_files: Tree, changes: dict[str, object], message: str
) -> None:
    manifest = json.loads(demo_files["manifest.json"]) | changes
    published.repositories[NAME].commit({"manifest.json": json.dumps(manifest).encode()})
    line = error_of(machine.run(["info", NAME]))
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(line)
    assert published.files_sent() == ["manifest.json"]


def test_a_file_that_its_owner_has_not_pushed(published: Hub, machine: Machine) -> None:
    published.repositories[NAME].commit({"tokenizer.json": None})
    assert error_of(machine.run(["info", NAME])) == (
        "acme/demo: tokenizer.json is in its manifest, and not in the repository; its owner must push it"
    )


def test_a_disk_that_is_too_small(published: Hub, machine: Machine) -> None:
    code = f"""
import shutil
shutil.disk_usage = lambda _: shutil._ntuple_diskusage(2**30, 2**30 - 2**20, 2**20)
{OPEN}
"""
    done = machine.run(code)
    assert "acme/demo: the disk is full: expected 19.5 MiB for it, got 1.0 MiB in " in done.err
    assert published.files_sent() == ["manifest.json"]


def test_a_file_that_cannot_be_written(published: Hub, machine: Machine) -> None:
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
from patchcaption.__main__ import main
sys.exit(main(["info", "acme/demo"]))
"""
    done = machine.run(code)
    *_, line = [line for line in done.err.splitlines() if line.startswith("patchcaption: error: ")]
    assert "acme/demo: " in line
    assert "cannot be written: File too large; set XDG_CACHE_HOME" in line
    assert machine.run(OPEN).code == 0
    assert published.files_sent().count("backbone.onnx.data") == 2


def test_no_huggingface_hub(published: Hub, machine: Machine) -> None:
    code = """
import sys
sys.modules["huggingface_hub"] = None
from patchcaption.__main__ import main
sys.exit(main(["info", "acme/demo"]))
"""
    done = machine.run(code)
    assert done.err.splitlines()[0] == (
        "patchcaption: error: acme/demo: no such folder here, and bundles of the Hugging Face hub need "
        "huggingface_hub: pip install 'patchcaption[hub]'"
    )
    assert published.requests == []


def test_a_server_that_is_no_hub(published: Hub, machine: Machine) -> None:
    for answer in (b"<html>sign in</html>", b"[]"):
        published.answers["/api/models/acme/demo/revision/main"] = answer
        assert "gave an answer that is none of a hub's; is HF_ENDPOINT right?" in error_of(machine.run(["info", NAME]))
    published.answers["/api/models/acme/demo/revision/main"] = b'{"id": "x", "sha": "../../x", "siblings": []}'
    assert "the hub's answer has no commit, but '../../x'" in error_of(machine.run(["info", NAME]))
