"""Build a memory bank of captions: `patchcaption build-memory-bank captions.json --space clip-b16 --out bank.h5`.

Captions -> the text space's tower -> HDF5 in the published layout (published-system.md, sections 5 and 15). Finished
rows lie beside the bank until it is complete, so the same command resumes an interrupted one. With --entities the bank
is a vocabulary of names, for decoders that are told of entities (`export.readers.entity_vocabulary`).

Shapes: M captions, m of them in a batch, D width of the tower's embeddings.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

import h5py
import numpy as np
from rich.console import Console
from rich.progress import Progress

from export.caption_file import CAPTIONS_HELP, read_captions
from export.checkpoint import CheckpointError
from export.command_line import print_note, run_command
from export.hdf5_writing import new_hdf5_file
from export.readers.entity_vocabulary import VOCABULARIES, entity_names, read_entity_names
from export.readers.memory_hdf5 import CAPTIONS, EMBEDDINGS, TEXT_SPACE
from export.text_spaces import TEXT_SPACES, text_space
from export.text_towers import open_text_tower
from export.text_towers.base import TextTower
from export.text_towers.entities import EntityTexts, entity_tower
from export.unfinished_work import claimed, remove_work, work_dir_of
from runtime.errors import PatchcaptionError
from runtime.system.files import follow_links
from runtime.system.outputs import Output, check_distinct
from runtime.system.standard_streams import show

_NAME = "coco_captions"
_BANK = "bank.h5"
_BLOCK_ROWS = 2**14
_JOB = "other captions, another text tower, projection, space or batch size"


def read_names(path: Path) -> list[str]:
    """Read names of entities from a published list, by its file's name, or as captions are read.

    Returns:
        each name once, lower-cased and stripped, sorted.

    Raises:
        CheckpointError: the file cannot be read, has another layout, or holds no name.
    """
    layouts = (layout for layout in VOCABULARIES.values() if layout.list_file == path.name)
    layout = next(layouts, None)
    names = entity_names(read_captions(path), path) if layout is None else read_entity_names(path, layout)
    return sorted(set(names))


def build_bank(
    captions: Sequence[str], tower: TextTower, out: Path, batch_size: int, on_progress: Callable[[int], None]
) -> None:
    """Write the bank of M captions to ``out``, resuming a run that was interrupted.

    Args:
        batch_size: captions embedded at once; for one batch size the result is the same to the bit, interrupted or not.
        on_progress: called with the number of captions that are done.

    Raises:
        CheckpointError: an interrupted run left rows of other captions, another tower or projection.
        PatchcaptionError: the disk is full or cannot be written to.
        OSError: the folder of unfinished work cannot be made.
    """
    out = follow_links(out)
    work_dir = work_dir_of(out)
    with claimed(work_dir, bank_fingerprint(captions, tower, batch_size), _JOB):
        _build_in(work_dir, captions, tower, batch_size, on_progress)
        (work_dir / _BANK).replace(out)
        remove_work(work_dir)


def _build_in(
    work_dir: Path,
    captions: Sequence[str],
    tower: TextTower,
    batch_size: int,
    on_progress: Callable[[int], None],
) -> None:
    """Write the bank in the folder of unfinished work, from the rows that are there on."""
    rows_file = work_dir / "embeddings.f32"
    row_bytes = 4 * tower.width
    with Output(rows_file).errors(), rows_file.open("ab") as rows:
        done = rows_file.stat().st_size // (row_bytes * batch_size) * batch_size
        done = min(done, len(captions))
        rows.truncate(done * row_bytes)  # the last batch may have been cut short
        on_progress(done)
        for start in range(done, len(captions), batch_size):
            embeddings = tower.embed(captions[start : start + batch_size])
            rows.write(embeddings.numpy().astype("<f4").tobytes())
            rows.flush()
            on_progress(start + len(embeddings))
    stored = np.memmap(rows_file, dtype="<f4", mode="r", shape=(len(captions), tower.width))
    _write_bank(work_dir / _BANK, stored, captions, tower.text_space)


def bank_fingerprint(captions: Sequence[str], tower: TextTower, batch_size: int) -> str:
    """Return what tells the bank of captions from any other."""
    digest = hashlib.sha256()
    for caption in captions:
        digest.update(caption.encode() + b"\n")
    return f"{digest.hexdigest()}, {tower.text_space}, {tower.identity}, {batch_size} at once"


def _write_bank(path: Path, embeddings: np.ndarray[Any, Any], captions: Sequence[str], text_space: str) -> None:
    rows, texts = f"{_NAME}{EMBEDDINGS}", f"{_NAME}{CAPTIONS}"

    def begin(file: h5py.File) -> None:
        file.attrs[TEXT_SPACE] = text_space
        file.create_dataset(rows, embeddings.shape, np.float32)
        file.create_dataset(texts, (len(captions),), h5py.string_dtype("utf-8"))

    def put(block: slice, file: h5py.File) -> None:
        file[rows][block] = embeddings[block]
        file[texts][block] = captions[block]

    with new_hdf5_file(path) as writer:
        writer.write(begin)
        for start in range(0, len(captions), _BLOCK_ROWS):
            writer.write(partial(put, slice(start, start + _BLOCK_ROWS)))


def main(arguments: Sequence[str] | None = None, prog: str = "build_memory_bank.py") -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog=prog, description="Make a memory bank of captions.")
    add_arguments(parser)
    body = partial(_run, parser.parse_args(arguments))
    return run_command(
        body, interrupted="interrupted; the same command goes on from here", errors=(PatchcaptionError, OSError)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the captions, the models that embed them, and the bank."""
    parser.add_argument("captions", type=Path, help=CAPTIONS_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="BANK", help="the bank to make (.h5)")
    parser.add_argument("--space", metavar="NAME", help=f"the decoder's text space: {', '.join(TEXT_SPACES)}")
    parser.add_argument(
        "--talk2dino", type=Path, metavar="FILE", help="the projection (.pth), for a space of Talk2DINO"
    )
    parser.add_argument(
        "--text-tower", metavar="TOWER", help="a folder, file or repository (default: the space's published one)"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json, if it is not the tower's own")
    parser.add_argument(
        "--entities",
        choices=get_args(EntityTexts),
        help="the captions are names of entities: embed each in the mean of seven templates, or in one plain text",
    )
    parser.add_argument("--batch-size", type=int, default=256, help="captions at once (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the tower runs: cpu (default), cuda")


def _run(options: argparse.Namespace) -> None:
    if options.batch_size < 1:
        raise CheckpointError(f"--batch-size: expected at least 1, got {options.batch_size}")
    output = Output(options.out)
    output.check()
    if not output.is_file:
        raise CheckpointError(f"{options.out}: expected a file, which HDF5 can go back in")
    optional = [path for path in (options.talk2dino, options.tokenizer, options.text_tower) if path]
    check_distinct({"--out": output}, [options.captions, *map(Path, optional)])
    captions = (read_names if options.entities else read_captions)(options.captions)
    tower = open_text_tower(options.space, options.text_tower, options.talk2dino, options.tokenizer, options.device)
    if options.entities:
        tower = entity_tower(tower, options.entities, text_space(tower.text_space, tower.width).first_column)
    what = "entities" if options.entities else "captions"
    console = Console(stderr=True)
    for note in tower.notes:
        print_note(note, console)
    with Progress(console=console) as progress:
        task = progress.add_task(what, total=len(captions))
        build_bank(captions, tower, options.out, options.batch_size, lambda done: progress.update(task, completed=done))
    show(f"{options.out}: {len(captions)} {what}, width {tower.width}, text space {tower.text_space}")


if __name__ == "__main__":
    sys.exit(main())
