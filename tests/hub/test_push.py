"""Publishing a bundle, and loading it elsewhere."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from patchcaption._commands import TOOLS
from tests.conftest import ROOT, SAMPLE
from tests.hub.conftest import NAME
from tests.hub.hub_server import Hub, Tree
from tests.hub.machine import Machine

CAPTION = ["caption", str(SAMPLE / "scene.jpg"), "--box", "276,174,507,399", "--json", "--bundle"]


def push(machine: Machine, hub: Hub, bundle: Path, *options: str) -> str:
    """Publish a bundle under NAME; return what was printed."""
    done = machine.run(["push", str(bundle), NAME, *options], HF_TOKEN=hub.token)
    assert done.code == 0, done
    return done.out


def published_files(hub: Hub, branch: str = "main") -> Tree:
    found = hub.repositories[NAME].tree(branch)
    assert found is not None
    return found[1]


def test_what_is_pushed_captions_the_same_elsewhere(
    hub: Hub, machines: Callable[[str], Machine], demo_bundle: Path, demo_files: Tree
) -> None:
    here, there = machines("here"), machines("there")
    address = push(here, hub, demo_bundle)
    assert address == f"{hub.url}/acme/demo/commit/{hub.repositories[NAME].refs['main']}\n"
    assert len(hub.repositories[NAME].commits) == 2  # its creation, and all files at once
    assert {name: data for name, data in published_files(hub).items() if name in demo_files} == demo_files
    expected, found = here.run([*CAPTION, str(demo_bundle)]), there.run([*CAPTION, NAME])
    assert (found.code, found.out) == (0, expected.out)


def test_the_card_says_what_the_bundle_is(hub: Hub, machine: Machine, demo_bundle: Path) -> None:
    push(machine, hub, demo_bundle, "--license", "apache-2.0")
    _, metadata, text = published_files(hub)["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "library_name": "patchcaption",
        "pipeline_tag": "image-to-text",
        "license": "apache-2.0",
        "tags": [
            *("patchcaption", "region-captioning", "dense-captioning", "image-captioning", "onnx", "dinov2", "decap")
        ],
    }
    for part in (
        '\ncaptioner = Captioner.load("acme/demo")\n',
        "| backbone | dinov2_vitdemo14_reg, 224 x 224 pixels, patches of 14 |",
        "| decoder | DeCap, at most 30 tokens |",
        "| precision | backbone fp32, reencoder fp32, decoder fp32, beam_decoder fp32 |",
        "| size | 19.5 MiB |",
        "| `backbone.onnx.data` | 12.51 |",
    ):
        assert part in text


def test_the_card_names_the_checkpoint_that_it_was_built_of(demo_bundle: Path) -> None:
    from runtime.bundle import read_manifest
    from runtime.hub.model_card import model_card
    from runtime.hub.names import HubName

    manifest = read_manifest(demo_bundle)
    build = manifest.build.model_copy(update={"checkpoint": "lab/talk2dino@0123456"})
    card = model_card(manifest.model_copy(update={"build": build}), HubName("acme/demo", "v1"), "other")
    metadata = yaml.safe_load(card.split("---\n", 2)[1])
    assert (metadata["base_model"], metadata["license"]) == ("lab/talk2dino", "other")
    assert 'Captioner.load("acme/demo@v1")' in card
    assert "## License\n\nThat of the checkpoint" in card


def test_a_branch_is_made_and_files_of_an_older_bundle_go(
    hub: Hub, machine: Machine, demo_bundle: Path, viecap_bundle: Path
) -> None:
    push(machine, hub, demo_bundle)
    hub.repositories[NAME].commit({"notes.txt": b"of somebody"})
    push(machine, hub, viecap_bundle, "--revision", "viecap", "--message", "With entities")
    names = {path.name for path in viecap_bundle.iterdir()} | {"README.md", "notes.txt", ".gitattributes"}
    assert published_files(hub, "viecap").keys() == names
    assert "captions.jsonl" in published_files(hub)
    assert "captions.jsonl" not in names
    assert machine.run(["info", f"{NAME}@viecap"]).out.count("ViECap") == 1
    assert machine.run(["info", NAME]).out.count("DeCap") == 1


def test_a_card_that_was_written_by_hand_stays(hub: Hub, machine: Machine, demo_bundle: Path) -> None:
    push(machine, hub, demo_bundle)
    hub.repositories[NAME].commit({"README.md": b"# Ours"})
    done = machine.run(["push", str(demo_bundle), NAME], HF_TOKEN=hub.token)
    assert "note: acme/demo: its README.md was written by hand, and is left as it is" in done.err
    assert published_files(hub)["README.md"] == b"# Ours"


def test_private_is_private(hub: Hub, machine: Machine, demo_bundle: Path) -> None:
    hub.add(NAME, {"x": b""})
    done = machine.run(["push", str(demo_bundle), NAME, "--private"], HF_TOKEN=hub.token)
    assert done.code == 1
    assert "--private, but the repository is there, and public; nothing was uploaded" in done.err
    assert len(hub.repositories[NAME].commits) == 1
    del hub.repositories[NAME]
    push(machine, hub, demo_bundle, "--private")
    assert hub.repositories[NAME].is_private


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["{demo}", "acme/demo"], {}, "wants a token that it knows (401); set HF_TOKEN"),
        (["{demo}", "acme/demo"], {"HF_TOKEN": "hf_wrong"}, "wants a token that it knows (401); set HF_TOKEN"),
        (["{demo}", "acme/demo"], {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
        (["{demo}", "acme/demo", "--license", "mine"], {"HF_TOKEN": "hf_of_the_owner"}, '"license" must be one of'),
        (["{demo}", "a/b/c"], {}, "'a/b/c': expected a repository of the hub, OWNER/NAME or"),
        (["{demo}", "acme/demo", "--revision", "0" * 40], {}, "expected a branch to push to, got a commit"),
        (["nowhere", "acme/demo"], {}, "nowhere: no bundle there"),
    ],
)
def test_what_cannot_be_pushed(
    hub: Hub, machine: Machine, demo_bundle: Path, arguments: list[str], variables: dict[str, str], message: str
) -> None:
    done = machine.run(["push", *(str(demo_bundle) if one == "{demo}" else one for one in arguments)], **variables)
    assert (done.code, done.out) == (1, "")
    assert message in done.err
    assert len([line for line in done.err.splitlines() if "error: " in line]) == 1
    assert all(len(repository.commits) == 1 for repository in hub.repositories.values())


def test_a_damaged_bundle_is_not_pushed(hub: Hub, machine: Machine, bundle_copy: Callable[[], Path]) -> None:
    bundle = bundle_copy()
    with (bundle / "decoder.onnx.data").open("r+b") as file:
        file.write(b"other")
    done = machine.run(["push", str(bundle), NAME], HF_TOKEN=hub.token)
    assert done.code == 1
    assert "decoder.onnx.data: altered" in done.err
    assert hub.requests == []


def with_plan(bundle: Path) -> Path:
    """Give a bundle a TensorRT plan of its decoder."""
    import hashlib

    manifest = json.loads((bundle / "manifest.json").read_text())
    plan = b"a program"
    (bundle / "decoder.plan").write_bytes(plan)
    manifest["files"]["decoder.plan"] = {"bytes": len(plan), "sha256": hashlib.sha256(plan).hexdigest()}
    manifest["plans"] = [
        {
            **{"graph": "decoder.onnx", "file": "decoder.plan", "key": "0" * 64, "version": "10.3", "gpu": None},
            **{"compute_capabilities": ["8.9"], "hardware": "same", "version_compatible": False, "profiles": []},
        }
    ]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def test_plans_are_pushed_when_asked_for_and_trusted_by_hand(
    hub: Hub, machines: Callable[[str], Machine], bundle_copy: Callable[[], Path]
) -> None:
    here, there = machines("here"), machines("there")
    bundle = with_plan(bundle_copy())
    refused = here.run(["push", str(bundle), NAME], HF_TOKEN=hub.token)
    assert refused.code == 1
    assert "it has TensorRT plans (decoder.plan): programs for some GPUs, which others load only if they" in refused.err
    assert hub.requests == []
    push(here, hub, bundle, "--with-plans")
    assert b"loaded only after `patchcaption trust acme/demo`" in published_files(hub)["README.md"]
    is_trusted = f"""
from runtime.bundle.trust import is_trusted
from runtime.hub import open_bundle
files = open_bundle("{NAME}").manifest.files
print(is_trusted(files["decoder.plan"].sha256))
"""
    assert there.run(is_trusted).out == "False\n"
    trusted = there.run(["trust", NAME])
    assert (trusted.code, trusted.out) == (0, f"{there.bundle(NAME) / 'decoder.plan'}: trusted from now on\n")
    assert there.run(is_trusted).out == "True\n"
    push(here, hub, Path(here.run(["pull", NAME]).out.strip()), "--with-plans")


def test_the_commands_of_the_page_run(hub: Hub, machine: Machine, demo_bundle: Path, sample_image: Image.Image) -> None:
    page = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
    shown = "\n".join(re.findall(r"```console\n(.*?)```", page, re.DOTALL))
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^\$ patchcaption (.*)$", shown, re.MULTILINE)]
    commands = [command for command in commands if command[0] not in TOOLS]
    commands.sort(key=lambda command: command[0] != "push")
    assert len(commands) == 5
    (machine.folder / "engines").mkdir()
    (machine.folder / "engines" / "demo").symlink_to(demo_bundle)
    sample_image.save(machine.folder / "image.jpg")
    hub.add("owner/name", {"x": b""}, is_private=True)
    for command in commands:
        done = machine.run(command, HF_TOKEN=hub.token)
        assert done.code == 0, (command, done)
