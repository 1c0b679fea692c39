"""The command that trains a decoder: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import csv
import errno
import json
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from export import build_engines, build_memory_bank, train_decoder
from export.readers import DEMO_CONFIG, read_checkpoint
from export.readers.memory_hdf5 import read_memory_bank
from export.text_spaces import text_space
from export.text_towers.base import TextTower
from export.training import outputs
from export.training.trainer import StepResult, Trainer
from runtime.bundle import Bundle
from runtime.system.signals import Terminated
from runtime.system.standard_streams import discard
from tests.export.conftest import whole_bank
from tests.export.training.conftest import DEMO, TOWER, Train

SPACE = "t2d-ccd3ef65eacf"
"""The text space that the demo's projection leads to, by its sha256."""
GOES_ON = "the same command goes on from here"


def losses(path: Path) -> list[float]:
    with path.open(newline="") as table:
        return [float(row["loss"]) for row in csv.DictReader(table)]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line that says what went wrong, without what precedes it."""
    err = capsys.readouterr().err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert "Traceback" not in err
    return errors[0].removeprefix("error: ")


@contextmanager
def no_room_for(size: int) -> Iterator[None]:
    """Let files not grow beyond a size in this block, as if the disk were full."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def write_bank(path: Path, captions: list[str | bytes], space: str | None = "demo", width: int = 8) -> Path:
    with h5py.File(path, "w") as file:
        if space:
            file.attrs["text_space"] = space
        rows = np.random.default_rng(0).normal(size=(len(captions), width)).astype(np.float32)
        file["coco_captions-embeddings"] = rows
        file.create_dataset("coco_captions-text", data=captions, dtype=h5py.string_dtype("utf-8"))
    return path


def test_it_writes_the_decoder_its_bank_its_losses_and_what_builds_them(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--epochs", 3, "--held-out", 10, "--backbone", DEMO_CONFIG) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"captions.txt", *(f"decoder.{suffix}" for suffix in ("pt", "h5", "csv", "png", "yaml"))}
    assert re.fullmatch(
        rf"{tmp_path}/decoder.pt: loss \d+\.\d+; held out: loss \d+\.\d+, \d+\.\d% of tokens, \d+\.\d% of captions "
        "word for word\n",
        capsys.readouterr().out,
    )
    bank = read_memory_bank(tmp_path / "decoder.h5", text_space(SPACE, 192))
    assert whole_bank(bank)[1] == (tmp_path / "captions.txt").read_text().splitlines()
    assert bank.text_space == SPACE
    assert losses(tmp_path / "decoder.csv") == sorted(losses(tmp_path / "decoder.csv"), reverse=True)
    with Image.open(tmp_path / "decoder.png") as picture:
        picture.load()
    checkpoint = read_checkpoint(str(tmp_path / "decoder.yaml"))
    assert checkpoint.text_space == SPACE
    assert checkpoint.memory is not None


@pytest.mark.slow
def test_what_it_writes_goes_straight_into_a_bundle(train: Train, tmp_path: Path) -> None:
    assert train("--backbone", DEMO_CONFIG) == 0
    assert build_engines.main([str(tmp_path / "decoder.yaml"), "--out", str(tmp_path / "bundle")]) == 0
    manifest = Bundle(tmp_path / "bundle").manifest
    assert manifest.backbone.text_space == manifest.decoder.text_space == SPACE
    assert manifest.memory is not None
    assert manifest.memory.num_rows == 60


@pytest.mark.parametrize(
    "more", [["--kind", "capdec"], ["--through-memory"], ["--without-start-token"], ["--steps", 2]]
)
def test_every_kind_of_training_ends(train: Train, tmp_path: Path, more: list[object]) -> None:
    assert train("--backbone", DEMO_CONFIG, *more) == 0
    settings = yaml.safe_load((tmp_path / "decoder.yaml").read_text())
    is_capdec = "capdec" in more
    assert (tmp_path / "decoder.h5").exists() != is_capdec
    assert settings.get("projection_type") == (None if is_capdec else "decoder.h5")
    assert settings["support_memory_size"] == int(not is_capdec)
    assert torch.load(tmp_path / "decoder.pt", weights_only=True)["decoder.transformer.wte.weight"].shape == (170, 16)


def test_a_bank_that_is_there_is_not_made_again(train: Train, tmp_path: Path) -> None:
    assert train() == 0
    first = (tmp_path / "decoder.pt").read_bytes()
    (tmp_path / "decoder.h5").rename(tmp_path / "bank.h5")
    assert train("--bank", tmp_path / "bank.h5", "--backbone", DEMO_CONFIG, captions=None) == 0
    assert (tmp_path / "decoder.pt").read_bytes() == first
    assert not (tmp_path / "decoder.h5").exists()
    assert yaml.safe_load((tmp_path / "decoder.yaml").read_text())["projection_type"] == "bank.h5"


def test_captions_that_are_none_are_named_and_left_out_or_refused(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (tmp_path / "captions.txt").read_text().splitlines()
    assert train() == 0
    expected = (tmp_path / "decoder.pt").read_bytes()
    bad = ["", "a circle " * 40, "\x01", "a<|endoftext|>", 7, None, "x" * 10_000_000, "a \ud83d"]
    entries = [entry for pair in zip(bad, good, strict=False) for entry in pair] + good[len(bad) :]
    (tmp_path / "captions.json").write_text(json.dumps([{"caption": entry} for entry in entries]))
    capsys.readouterr()
    assert train(captions=tmp_path / "captions.json") == 0
    told = capsys.readouterr().err
    assert (tmp_path / "decoder.pt").read_bytes() == expected
    for place, reason in {
        0: "it is empty",
        2: "it has 82 tokens, more than 77",
        4: "it has no visible character",
        6: "it holds the start or end token",
        8: "expected a text, got int",
        10: "expected a text, got nothing",
        12: "it has 10,000,000 characters, more than 10,000",
        14: "it is not UTF-8, or has half a character (a lone surrogate)",
    }.items():
        assert f"note: {tmp_path}/captions.json: caption {place}: {reason}: left out\n" in told
    (tmp_path / "decoder.pt").unlink()
    assert train("--on-bad", "refuse", captions=tmp_path / "captions.json") == 1
    assert one_line(capsys) == (
        f"{tmp_path}/captions.json: caption 0: it is empty; --on-bad skip leaves out what is no caption"
    )
    assert not (tmp_path / "decoder.pt").exists()


def test_captions_of_a_bank_that_are_none_are_named_and_left_out_or_refused(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = write_bank(tmp_path / "bank.h5", ["", *["a circle"] * 20, "a circle " * 40, " "])
    assert train("--bank", bank, captions=None) == 0
    told = capsys.readouterr().err
    assert f"note: {bank}: row 0: it is empty, and 1 more of that kind: left out\n" in told
    assert f"note: {bank}: row 21: it has 82 tokens, more than 77: left out\n" in told
    assert train("--bank", bank, "--on-bad", "refuse", captions=None) == 1
    assert one_line(capsys).startswith(f"{bank}: row 0: it is empty")
    bank = write_bank(tmp_path / "bank.h5", ["", " "])
    assert train("--bank", bank, captions=None) == 1
    assert (
        one_line(capsys)
        == f"{bank}: expected at least one caption, got none; row 0: it is empty, and 1 more of that kind"
    )


def test_a_file_without_a_caption_that_can_be_learned_is_refused(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.txt").write_text(f"{'a circle ' * 40}\n")
    assert train() == 1
    assert one_line(capsys) == (
        f"{tmp_path}/captions.txt: expected at least one caption, got none; line 1: it has 82 tokens, more than 77"
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rate", "nan"], "--rate: expected a finite number of more than 0, got nan"),
        (["--warmup-steps", "-1"], "--warmup-steps: expected a number of at least 0, got -1"),
        (["--held-out", "50"], "expected at least 16 captions to learn, those of a batch and 50 to hold out, got 60"),
        (["--batch-size", "61"], "expected at least 61 captions to learn, those of a batch, got 60"),
        (["--save-seconds", "-1"], "--save-seconds: expected a number of at least 0, got -1.0"),
        (["--save-seconds", "nan"], "--save-seconds: expected a number of at least 0, got nan"),
        (["--out", "decoder"], "--out decoder: expected a file that ends in .pt"),
        (["--out", "-"], "--out -: expected a file that ends in .pt"),
        (["--out", "/nowhere/decoder.pt"], "/nowhere/decoder.pt: the folder /nowhere does not exist"),
        (["--out", "{folder}/loop.pt"], "{folder}/loop.pt: cannot be written: Too many levels of symbolic links"),
        (["--device", "cuda:77"], "--device cuda:77: "),
        (["--start-from", "{folder}/captions.txt"], "{folder}/captions.txt: "),
        (
            ["--start-from", "{demo}/decoder.pt", "--tokens", "40", "--positions", "64"],
            "{demo}/decoder.pt: expected a decoder of vectors of width 192, 170 tokens and more than 40 positions, got",
        ),
        (["--device", "meta"], "--device meta: expected cpu or cuda"),
        (["--device", "toaster"], "--device toaster: "),
        (["--precision", "fp16"], "--precision fp16: is for GPUs"),
        (["--tokenizer", "{folder}/captions.txt"], "{folder}/captions.txt: not a tokenizer"),
        (["--backbone", "{folder}/gone.yaml"], "--backbone {folder}/gone.yaml: cannot be read: No such file"),
        (["--start-from", "{folder}/gone.pt"], "{folder}/gone.pt"),
        (["--space", "clip-b33"], "{talk2dino}: expected a projection into the text space clip-b33"),
        (["--bank", "{folder}/bank.h5"], "expected a file of captions, or --bank with a memory bank"),
    ],
)
def test_what_cannot_work_is_one_line_before_the_work(
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(train_decoder, "build_bank", None)
    monkeypatch.setattr(train_decoder, "train", None)
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    given = {"folder": tmp_path, "demo": DEMO, "talk2dino": DEMO / "talk2dino.pth"}
    assert train(*(part.format(**given) for part in more)) == 1
    assert one_line(capsys).startswith(message.format(**given))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.txt", "loop.pt"]


@pytest.mark.parametrize(
    ("space", "more", "message"),
    [
        ("demo", ["--space", "clip-b16"], "--space clip-b16: {bank} is of the text space demo; leave --space out"),
        (None, [], "{bank}: it does not say which text space it is of; name it by --space"),
        ("clip-b16", [], "{bank}: coco_captions-embeddings: expected shape (M, 512), got (20, 8)"),
        ("demo", TOWER[:2], "--text-tower: --bank {bank} holds embeddings already; leave one of them out"),
        ("demo", ["--batch-size", "32"], "expected at least 32 captions to learn, those of a batch, got 20"),
    ],
)
def test_a_bank_that_does_not_fit_is_one_line(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], space: str | None, more: list[str], message: str
) -> None:
    bank = write_bank(tmp_path / "bank.h5", ["a circle"] * 20, space)
    assert train("--bank", bank, *more, captions=None) == 1
    assert one_line(capsys).startswith(message.format(bank=bank))
    assert not list(tmp_path.glob(".*"))


def test_a_bank_of_no_recorded_space_is_of_the_one_that_is_named(train: Train, tmp_path: Path) -> None:
    bank = write_bank(tmp_path / "bank.h5", ["a circle"] * 20, None)
    assert train("--bank", bank, "--space", "demo", "--backbone", DEMO_CONFIG, captions=None) == 0
    assert yaml.safe_load((tmp_path / "decoder.yaml").read_text())["text_space"] == "demo"


def test_nothing_that_is_read_is_written_over(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "decoder.csv").write_text("a circle\n")
    assert train(captions=tmp_path / "decoder.csv") == 1
    assert "would be overwritten" in one_line(capsys)
    bank = write_bank(tmp_path / "decoder.h5", ["a circle"] * 20)
    assert train("--bank", bank, "--start-from", tmp_path / "decoder.pt", captions=None) == 1


def test_matplotlib_is_missed_before_the_work(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(train_decoder, "build_bank", None)
    assert train() == 1
    assert "pip install 'patchcaption[export]'" in one_line(capsys)


def test_a_decoder_is_trained_further_if_it_is_of_the_bank(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    first = losses(tmp_path / "decoder.csv")[0]
    further = tmp_path / "further.pt"
    assert train("--start-from", tmp_path / "decoder.pt", "--warmup-steps", 0, out=further) == 0
    assert losses(tmp_path / "further.csv")[0] < first
    bank = write_bank(tmp_path / "bank.h5", ["a circle"] * 20)
    capsys.readouterr()
    assert train("--bank", bank, "--start-from", further, captions=None) == 1
    assert one_line(capsys) == (
        f"{further}: expected a decoder of vectors of width 8, 170 tokens and more than 20 positions, got 192, 170 and "
        "32"
    )


def test_a_loss_that_is_no_number_is_one_line(train: Train, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert train("--rate", "1e36", "--steps", 20, "--warmup-steps", 0, "--save-seconds", 0) == 1
    assert re.fullmatch(
        r"step \d+: the loss is (nan|inf); expected a number: lower --rate, .*--clip-norm 1", one_line(capsys)
    )
    assert not (tmp_path / "decoder.pt").exists()


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, ending: BaseException) -> list[int]:
    """Let the training end before a step; return the list of the steps that are taken."""
    taken: list[int] = []
    original = Trainer.step

    def stepped(trainer: Trainer) -> StepResult:
        if trainer.next_step == step:
            raise ending
        taken.append(trainer.next_step)
        return original(trainer)

    monkeypatch.setattr(Trainer, "step", stepped)
    return taken


@pytest.mark.parametrize(("ending", "code"), [(KeyboardInterrupt(), 130), (Terminated(15), 143), (Terminated(1), 129)])
def test_an_interrupted_training_says_how_to_go_on_and_does(
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ending: BaseException,
    code: int,
) -> None:
    steps = ("--steps", 6, "--save-seconds", 0)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, ending)
        assert train(*steps) == code
    assert GOES_ON in capsys.readouterr().err
    assert not (tmp_path / "decoder.pt").exists()
    with monkeypatch.context() as patch:
        taken = interrupt_at(patch, -1, ending)
        assert train(*steps) == 0
    assert taken == [4, 5]
    went_on = (tmp_path / "decoder.pt").read_bytes()
    assert train(*steps) == 0
    assert (tmp_path / "decoder.pt").read_bytes() == went_on


def test_unfinished_work_of_other_settings_is_neither_used_nor_lost(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, KeyboardInterrupt())
        assert train("--save-seconds", 0) == 130
    capsys.readouterr()
    before = {path.name for path in (tmp_path / ".decoder.pt.part").iterdir()}
    for more in (
        ["--seed", 1],
        ["--rate", "1e-3"],
        ["--kind", "capdec"],
        ["--bank", write_bank(tmp_path / "b.h5", ["a"] * 20)],
    ):
        assert train(*more, captions=None if "--bank" in more else tmp_path / "captions.txt") == 1
        assert one_line(capsys) == (
            f"{tmp_path}/.decoder.pt.part: it was begun with other captions, another text tower, another bank or other "
            "settings; finish it with those, or remove it"
        )
    assert {path.name for path in (tmp_path / ".decoder.pt.part").iterdir()} == before


def test_a_disk_without_room_for_embeddings_is_one_line_and_the_rest_stays(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(out=tmp_path / "whole.pt") == 0
    (tmp_path / "decoder.pt").write_bytes(b"an older decoder")
    capsys.readouterr()
    for size, file in ((10_000, ".bank.h5.part/embeddings.f32"), (47_000, ".bank.h5.part/bank.h5")):
        with no_room_for(size):
            assert train() == 1
        assert one_line(capsys) == f"{tmp_path}/.decoder.pt.part/{file}: cannot be written: File too large"
        assert (tmp_path / "decoder.pt").read_bytes() == b"an older decoder"
    assert train() == 0
    assert (tmp_path / "decoder.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert (tmp_path / "decoder.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_disk_without_room_for_a_saved_state_is_noted_and_training_goes_on(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(out=tmp_path / "whole.pt") == 0
    capsys.readouterr()
    with no_room_for(100_000):
        assert train("--save-seconds", 0) == 0
    note = f"note: {tmp_path}/.decoder.pt.part/state.pt: cannot be saved: File too large; training goes on"
    assert capsys.readouterr().err.count(note) == 3, "it tries again after each step"
    assert (tmp_path / "decoder.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_disk_without_room_for_results_is_one_line_and_no_step_is_taken_again(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("decoder.pt", "decoder.h5", "decoder.csv"):
        (tmp_path / name).write_bytes(b"older")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "save_whole", full)
        assert train("--save-seconds", 0) == 1
    assert one_line(capsys) == f"{tmp_path}/decoder.pt: cannot be written: No space left on device"
    assert {(tmp_path / f"decoder.{suffix}").read_bytes() for suffix in ("pt", "h5", "csv")} == {b"older"}
    taken = interrupt_at(monkeypatch, -1, KeyboardInterrupt())
    assert train("--save-seconds", 0) == 0
    assert taken == []
    assert (tmp_path / "decoder.pt").stat().st_size > 10_000


def test_a_training_that_ends_between_two_renames_does_nothing_twice(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        raise KeyboardInterrupt

    assert train("--save-seconds", 0, out=tmp_path / "whole.pt") == 0
    with monkeypatch.context() as patch:
        patch.setattr(build_memory_bank, "remove_work", end)  # the bank is in its place, its folder not removed
        assert train("--save-seconds", 0) == 130
    monkeypatch.setattr(TextTower, "embed", None)
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "move_into_place", end)  # the bank could be, the decoder is not
        assert train("--save-seconds", 0) == 130
    assert not (tmp_path / "decoder.pt").exists()
    taken = interrupt_at(monkeypatch, -1, KeyboardInterrupt())
    assert train("--save-seconds", 0) == 0
    assert taken == []
    assert {path.name for path in tmp_path.glob("*decoder*")} == {
        f"decoder.{end}" for end in ("csv", "h5", "png", "pt")
    }
    assert (tmp_path / "decoder.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()
    assert (tmp_path / "decoder.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_bank_is_copied_where_files_have_one_name_only(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    assert train(out=tmp_path / "linked.pt") == 0
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert train() == 0
    assert (tmp_path / "decoder.h5").read_bytes() == (tmp_path / "linked.h5").read_bytes()


def test_more_epochs_than_anybody_waits_for_can_begin(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, 3, KeyboardInterrupt())
    assert train("--epochs", 10**30) == 130
    assert GOES_ON in capsys.readouterr().err


def test_a_gpu_without_room_is_one_line(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, 1, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nAnd more"))
    assert train() == 1
    assert one_line(capsys).startswith("step 1: CUDA out of memory. Tried to allocate 2 GiB.: take a smaller --batch")


def test_mixed_precision_learns_about_as_much(train: Train, tmp_path: Path) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        assert train("--epochs", 6, "--precision", precision) == 0
        found[precision] = losses(tmp_path / "decoder.csv")[-1]
        assert (
            torch.load(tmp_path / "decoder.pt", weights_only=True)["clip_project.model.0.bias"].dtype == torch.float32
        )
    assert found["fp32"] != found["bf16"]
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_learns_as_much_as_a_cpu(train: Train, tmp_path: Path, precision: str) -> None:
    assert train("--epochs", 6, "--dropout", 0) == 0
    on_cpu = losses(tmp_path / "decoder.csv")
    assert train("--epochs", 6, "--dropout", 0, "--device", "cuda", "--precision", precision) == 0
    assert losses(tmp_path / "decoder.csv") == pytest.approx(on_cpu, rel=0.02)
    assert torch.load(tmp_path / "decoder.pt", weights_only=True)["clip_project.model.0.bias"].device.type == "cpu"


def test_lines_of_progress_that_nobody_can_read_do_not_end_a_training(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w", buffering=1) as full:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", full)
            assert train() == 0
        assert (tmp_path / "decoder.pt").exists()
        discard(full)
