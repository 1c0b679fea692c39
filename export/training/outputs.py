"""The files that a training writes, all beside the decoder and under its name."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.checkpoint import CheckpointError
from export.training.losses import check_drawing
from export.training.run import TrainedDecoder
from export.training.state import save_whole
from runtime.system.files import follow_links, move_into_place, temporary_beside
from runtime.system.outputs import Output, check_distinct


@dataclass(frozen=True)
class TrainingOutputs:
    """The files that a training writes.

    Attributes:
        decoder: the weights, in the published layout.
        losses, curve: a line for each epoch (CSV), and a picture (PNG).
        bank: the memory bank that a DeCap decoder wants; None where there is one, or none is wanted.
        config: the configuration that builds the decoder behind a backbone; None where none is named.
    """

    decoder: Path
    losses: Path
    curve: Path
    bank: Path | None
    config: Path | None

    @classmethod
    def beside(cls, decoder: Path, *, with_bank: bool, with_config: bool) -> TrainingOutputs:
        """Return the files of a decoder that the user has named.

        Raises:
            PatchcaptionError: its links lead nowhere.
        """
        with Output(decoder).errors():
            out = follow_links(decoder)
        if out.suffix not in (".pt", ".pth"):
            raise CheckpointError(f"--out {decoder}: expected a file that ends in .pt")
        return cls(
            decoder=out,
            losses=out.with_suffix(".csv"),
            curve=out.with_suffix(".png"),
            bank=out.with_suffix(".h5") if with_bank else None,
            config=out.with_suffix(".yaml") if with_config else None,
        )

    def check(self, read: Sequence[Path]) -> None:
        """Raise before the work if one of them cannot be written, or would be written over what is read.

        Raises:
            PatchcaptionError: names the file, or what the picture of the losses is drawn with is missing.
        """
        made = {"--out": self.decoder, "the losses": self.losses, "the curve": self.curve}
        made |= {"the memory bank": self.bank} if self.bank else {}
        made |= {"the configuration": self.config} if self.config else {}
        outputs = {what: Output(path) for what, path in made.items()}
        for output in outputs.values():
            output.check()
            if not output.is_file:
                raise CheckpointError(f"{output}: expected a file")
        check_drawing()
        check_distinct(outputs, read)

    def write(self, trained: TrainedDecoder, work_dir: Path, bank: Path, config: bytes) -> None:
        """Write the results, the decoder last: where it is, all else is. Until then all that was done stays.

        Args:
            work_dir: the folder of unfinished work.
            bank: the file in it that becomes the memory bank, if there is to be one.
            config: becomes the configuration, if there is to be one.

        Raises:
            PatchcaptionError: a file cannot be written.
        """
        finished = work_dir / "decoder.pt"
        with Output(self.decoder).errors():
            save_whole(finished, trained.state_dict())  # first what a full disk has least room for
        Output(self.losses).write(trained.history.to_csv())
        Output(self.curve).write(trained.history.to_png())
        if self.bank is not None:
            with Output(self.bank).errors():
                _place(bank, follow_links(self.bank))
        if self.config is not None:
            Output(self.config).write(config)
        with Output(self.decoder).errors():
            move_into_place(finished, self.decoder)


def _place(file: Path, out: Path) -> None:
    """Give a file a second name, in place of what has it; a copy where the file system has no links."""
    with temporary_beside(out) as part:
        part.unlink()
        try:
            part.hardlink_to(file)
        except OSError:
            shutil.copyfile(file, part)
        move_into_place(part, out)
