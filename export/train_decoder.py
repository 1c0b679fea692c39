"""Train a decoder on captions alone: `patchcaption train captions.json --space clip-b32 --out decoder.pt`.

Captions -> the text space's tower -> a memory bank of their embeddings -> DeCap's decoder, which learns to say each
caption from its embedding (published-system.md, section 24). What is not finished lies in a folder beside the decoder,
with which the same command goes on. Several processes: `torchrun --nproc-per-node 2 export/train_decoder.py ...`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

from export.build_memory_bank import bank_fingerprint, build_bank
from export.caption_file import CAPTIONS_HELP, BadCaption, read_caption_file, summary
from export.checkpoint import CheckpointError, MemorySource
from export.command_line import from_namespace, positive_int, run_command
from export.readers.clip_bpe import read_clip_bpe, read_tokenizer
from export.readers.memory_hdf5 import read_bank_space, read_memory_bank
from export.text_spaces import TEXT_SPACES, is_name_of, text_space
from export.text_towers import open_text_tower
from export.training.configuration import backbone_settings, configuration
from export.training.data import CaptionTokens, without_bad_captions
from export.training.outputs import TrainingOutputs
from export.training.plan import DecoderKind, DecoderPlan
from export.training.processes import launched
from export.training.progress import TrainingProgress, show_training
from export.training.run import TrainedDecoder, earlier_decoder, train
from export.training.state import SavedState
from export.training.trainer import Precision
from export.unfinished_work import claimed, remove_work, work_dir_of
from runtime.bundle import sha256_of
from runtime.errors import PatchcaptionError
from runtime.system.standard_streams import show

_JOB = "other captions, another text tower, another bank or other settings"
_BANK = "bank.h5"
_EMBEDDED_AT_ONCE = 256


def main(arguments: Sequence[str] | None = None, prog: str = "train_decoder.py") -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog=prog, description="Train a decoder on captions alone.")
    add_arguments(parser)
    body = partial(_run, parser.parse_args(arguments))
    return run_command(
        body, interrupted="interrupted; the same command goes on from here", errors=(PatchcaptionError, OSError)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the captions, what embeds them, the outputs, and an option for each field of `DecoderPlan`."""
    parser.add_argument("captions", type=Path, nargs="?", help=CAPTIONS_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="DECODER", help="the decoder to make (.pt)")
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        help="an architecture, or a .yaml that has one: OUT.yaml then builds both",
    )
    texts = parser.add_argument_group("text tower")
    texts.add_argument("--space", metavar="NAME", help=f"the backbone's text space: {', '.join(TEXT_SPACES)}")
    texts.add_argument("--talk2dino", type=Path, metavar="FILE", help="the projection (.pth), for a space of Talk2DINO")
    texts.add_argument("--text-tower", metavar="TOWER", help="a folder, file or repository (default: the space's own)")
    texts.add_argument("--tower-tokenizer", type=Path, metavar="FILE", help="its tokenizer.json, if not its own")
    texts.add_argument("--bank", type=Path, metavar="FILE", help="a memory bank (.h5) in their place")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="the decoder's tokenizer.json (default: CLIP's)")
    parser.add_argument(
        "--on-bad",
        choices=("skip", "refuse"),
        default="skip",
        help="of captions that are none, such as empty ones and those over 77 tokens (default: %(default)s)",
    )
    _add_plan(parser)
    parser.add_argument("--device", default="cpu", help="where tower and decoder run: cpu (default), cuda")
    parser.add_argument(
        "--save-seconds", type=float, default=300, help="time between two saved states (default: %(default)s)"
    )


def _add_plan(parser: argparse.ArgumentParser) -> None:
    plan = DecoderPlan
    add = parser.add_argument_group("training").add_argument
    add("--kind", choices=get_args(DecoderKind), default=plan.kind, help="default: %(default)s")
    add("--noise", type=float, default=plan.noise, help="of capdec, a component's deviation (default: %(default)s)")
    add("--through-memory", action="store_true", help="of decap: learn from noisy embeddings, projected onto the bank")
    add("--epochs", type=positive_int, default=plan.epochs, help="default: %(default)s")
    add("--steps", type=positive_int, help="in the place of whole epochs")
    add("--batch-size", type=positive_int, default=plan.batch_size, help="over all processes (default: %(default)s)")
    add("--rate", type=float, default=plan.rate, help="the highest learning rate (default: %(default)s)")
    add("--warmup-steps", type=int, default=plan.warmup_steps, help="default: %(default)s")
    add("--weight-decay", type=float, default=plan.weight_decay, help="default: %(default)s")
    add("--label-smoothing", type=float, default=plan.label_smoothing, help="default: %(default)s")
    add("--clip-norm", type=float, metavar="NORM", help="the longest gradient (default: any)")
    add("--precision", choices=get_args(Precision), default=plan.precision, help="of products (default: %(default)s)")
    add("--tokens", type=positive_int, default=plan.tokens, help="learned of a caption (default: %(default)s)")
    add("--without-start-token", dest="start_token", action="store_false", help="captions then take a step less")
    add("--width", type=positive_int, default=plan.width, help="of the decoder (default: %(default)s)")
    add("--layers", type=positive_int, default=plan.layers, help="default: %(default)s")
    add("--positions", type=positive_int, default=plan.positions, help="default: %(default)s")
    add("--dropout", type=float, default=plan.dropout, help="default: %(default)s")
    add("--start-from", type=Path, metavar="DECODER", help="a decoder to train further; its sizes are kept")
    add("--held-out", type=int, default=plan.held_out, metavar="N", help="captions to score with, not to learn")
    add("--seed", type=int, default=plan.seed, help="default: %(default)s")


def _run(options: argparse.Namespace) -> None:
    plan, outputs = from_namespace(DecoderPlan, options), _outputs(options)
    _check_sources(options)
    outputs.check(_files_that_are_read(options))
    backbone = backbone_settings(options.backbone) if options.backbone else {}
    tokenizer = read_tokenizer(options.tokenizer) if options.tokenizer else read_clip_bpe()
    tokenizer.no_truncation()
    tokens = CaptionTokens(tokenizer, plan.tokens, plan.start_token)
    with launched(options.device) as processes:
        plan.check(processes)
        with show_training(processes) as shown, ExitStack() as held:
            work_dir = work_dir_of(outputs.decoder)
            saved = SavedState(work_dir, options.save_seconds, shown.note)
            given = _given_bank(options, plan, tokens, shown) if options.bank else None
            if processes.is_first:
                held.enter_context(_prepared(options, plan, tokens, work_dir, shown))
                saved.remove_parts()
            processes.wait()
            bank = given or _open_bank(work_dir / _BANK, options.space)
            trained = train(plan, bank, tokenizer, processes, saved, shown)
            if processes.is_first:
                outputs.write(trained, work_dir, work_dir / _BANK, _configuration(options, backbone, outputs, bank))
                remove_work(work_dir)
            processes.wait()
    if processes.is_first:
        show(f"{outputs.decoder}: {_result(trained)}")


def _outputs(options: argparse.Namespace) -> TrainingOutputs:
    makes_bank = options.kind == "decap" and options.bank is None
    return TrainingOutputs.beside(options.out, with_bank=makes_bank, with_config=bool(options.backbone))


def _files_that_are_read(options: argparse.Namespace) -> list[Path]:
    names = ("captions", "bank", "talk2dino", "text_tower", "tower_tokenizer", "tokenizer", "start_from", "backbone")
    return [Path(path) for name in names if (path := getattr(options, name))]


def _configuration(
    options: argparse.Namespace, backbone: Mapping[str, Any], outputs: TrainingOutputs, bank: MemorySource
) -> bytes:
    bank_file = outputs.bank or (options.bank if options.kind == "decap" else None)
    return configuration(backbone, outputs.decoder, bank, bank_file, options.tokenizer)


def _check_sources(options: argparse.Namespace) -> None:
    """Raise if it is not said what to learn from, or said twice.

    Raises:
        CheckpointError: names the option.
    """
    if (options.captions is None) == (options.bank is None):
        raise CheckpointError("expected a file of captions, or --bank with a memory bank that holds them")
    unused = [
        name
        for name in ("--talk2dino", "--text-tower", "--tower-tokenizer")
        if options.bank and getattr(options, name[2:].replace("-", "_"))
    ]
    if unused:
        raise CheckpointError(f"{unused[0]}: --bank {options.bank} holds embeddings already; leave one of them out")
    if not options.save_seconds >= 0:
        raise CheckpointError(f"--save-seconds: expected a number of at least 0, got {options.save_seconds}")


@contextmanager
def _prepared(
    options: argparse.Namespace, plan: DecoderPlan, tokens: CaptionTokens, work_dir: Path, shown: TrainingProgress
) -> Iterator[None]:
    """Claim the folder of unfinished work, with the captions' embeddings in it, if no bank is given."""
    tokenizer = sha256_of(options.tokenizer) if options.tokenizer else "CLIP"
    if options.bank is not None:
        with claimed(work_dir, f"{plan.fingerprint()}, {tokenizer}, {sha256_of(options.bank)}", _JOB):
            yield
        return
    file = tokens.check(read_caption_file(options.captions))
    _tell_bad(options.captions, len(file.captions), file.bad, options.on_bad, shown)
    plan.check_captions(len(file.captions))
    tower = open_text_tower(
        options.space, options.text_tower, options.talk2dino, options.tower_tokenizer, options.device
    )
    for note in tower.notes:
        shown.note(note)
    if plan.start_from is not None:  # before the work
        earlier_decoder(plan, plan.start_from, text_space(tower.text_space, tower.width).width, tokens.tokenizer)
    made_of = bank_fingerprint(file.captions, tower, _EMBEDDED_AT_ONCE)
    with claimed(work_dir, f"{plan.fingerprint()}, {tokenizer}, {made_of}", _JOB):
        bank, total = work_dir / _BANK, len(file.captions)
        if not bank.exists():
            build_bank(file.captions, tower, bank, _EMBEDDED_AT_ONCE, lambda done: shown.embedded(done, total))
        yield


def _given_bank(
    options: argparse.Namespace, plan: DecoderPlan, tokens: CaptionTokens, shown: TrainingProgress
) -> MemorySource:
    """Return the bank that is named, without captions that are none; they are told, or refused."""
    bank, captions, bad = without_bad_captions(_open_bank(options.bank, options.space), tokens)
    _tell_bad(options.bank, captions, bad, options.on_bad, shown)
    plan.check_captions(captions)
    if plan.start_from is not None:
        earlier_decoder(plan, plan.start_from, bank.width, tokens.tokenizer)
    return bank


def _tell_bad(path: Path, captions: int, bad: Sequence[BadCaption], on_bad: str, shown: TrainingProgress) -> None:
    """Tell what of a file is no caption, or refuse it; refuse a file that has nothing else."""
    lines = list(summary(bad))
    if not captions:
        raise CheckpointError(f"{path}: expected at least one caption, got none; {lines[0]}")
    if lines and on_bad == "refuse":
        raise CheckpointError(f"{path}: {lines[0]}; --on-bad skip leaves out what is no caption")
    for line in lines:
        shown.note(f"{path}: {line}: left out")


def _open_bank(path: Path, space: str | None) -> MemorySource:
    """Open a bank in the text space that it records, or in that which is named."""
    recorded, width = read_bank_space(path)
    if recorded and space and not is_name_of(space, recorded):
        raise CheckpointError(f"--space {space}: {path} is of the text space {recorded}; leave --space out")
    name = recorded or space
    if name is None:
        raise CheckpointError(f"{path}: it does not say which text space it is of; name it by --space")
    return replace(read_memory_bank(path, text_space(name, width)), text_space=name)


def _result(trained: TrainedDecoder) -> str:
    score = trained.history.last_held_out()
    if score is None:
        return f"loss {trained.history.recent_loss():.3f}"
    return (
        f"loss {trained.history.recent_loss():.3f}; held out: loss {score.loss:.3f}, {score.accuracy:.1%} of tokens, "
        f"{score.captions:.1%} of captions word for word"
    )


if __name__ == "__main__":
    sys.exit(main())
