"""Compares what a bundle computes with what the published system computed: `python benchmarks/parity.py`.

Recordings were made with random weights that a `seeded:` checkpoint reproduces. Those in benchmarks/recordings start
from the tokens of their photographs; with --images, a folder that holds the photographs, preprocessing and backbone are
compared as well. Exits non-zero when a difference is more than rounding.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.reference_recording import RECORDINGS, Recording, tasks
from export.bundle_builder import BuildOptions, build
from export.command_line import run_command, show_progress
from runtime import Captioner, FeatureMap, Fit, PatchcaptionError
from runtime.image import open_image, prepare

NEAR_TIE = 0.01
"""A difference of logits at which rounding may choose the other token, and then other tokens after it."""

ALLOWED = {"vectors": 1e-4, "projected": 1e-4, "scores": 1e-3}
"""Sums of float32 numbers in another order differ by about 1e-6 in vectors; the softmax at temperature 0.01 makes 1e-5
of it; a score is the exponential of a sum over 30 steps."""

_PIXEL_STEP = 7
_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Difference:
    """The differences between a task's outputs and the recording, the worst over its regions; None if not recorded.

    Attributes:
        vectors, projected: largest difference relative to the largest value of a vector.
        scores: relative difference.
        regions, same_texts: how many captions, and how many of them have the recorded text.
    """

    task: str
    regions: int
    same_texts: int
    vectors: float | None = None
    projected: float | None = None
    scores: float | None = None

    @property
    def faults(self) -> list[str]:
        """The differences that rounding does not explain."""
        faults = [] if self.same_texts == self.regions else [f"{self.task}: {self.same_texts} of {self.regions} texts"]
        for name, allowed in ALLOWED.items():
            value = getattr(self, name)
            if value is not None and not value <= allowed:
                faults.append(f"{self.task}: {name} differ by {value:.1e}")
        return faults


def compare(captioner: Captioner, recording: Recording, features: FeatureMap) -> Iterator[Difference]:
    """Run every task on ``features``, with the memory bank ("mem") and without ("nomem")."""
    for task in tasks(recording):
        pooling = {key: value for key, value in task.options.items() if key != "mode"}
        vectors = captioner.vectors(features, task.regions, **pooling)  # type: ignore[arg-type]  # of several types
        for mode in ("mem", "nomem"):
            key = f"{task.name}.{mode}"
            if key not in recording.captions:
                continue
            projected = None
            if mode == "nomem":
                captions = captioner.decode(vectors, score="reference")
            else:
                projected = None if "clean" in pooling else captioner.project(vectors)
                described = captioner.describe(features, task.regions, **task.options | {"score": "reference"})
                captions = [caption for of_image in described for caption in of_image]
            recorded = recording.captions[key]
            yield Difference(
                key,
                len(recorded),
                sum(one.text == text.strip() for one, text in zip(captions, recorded, strict=True)),
                relative_difference(vectors, recording.vectors(task.name)),
                None if projected is None else relative_difference(projected, recording.arrays.get(f"{key}.proj")),
                _worst_score([one.score for one in captions], recording.scores.get(key)),
            )


def compare_decoder(captioner: Captioner, recording: Recording) -> Iterator[Difference]:
    """Compare the decoding of recorded inputs: tokens up to the first near-tie, and scores where there is none."""
    if "decoder.inputs" not in recording.arrays:
        return
    captions = captioner.decode(torch.from_numpy(recording.arrays["decoder.inputs"]), score="reference")
    end = captioner.manifest.decoder.eos_token_id
    same, sure_scores, recorded_scores = 0, [], []
    for number, caption in enumerate(captions):
        tokens = recording.arrays["decoder.tokens"][number].tolist()
        ties = np.flatnonzero(recording.arrays["decoder.margins"][number] < NEAR_TIE)
        until = min(tokens.index(end) + 1 if end in tokens else len(tokens), *ties.tolist(), len(tokens))
        same += list(caption.ids[:until]) == tokens[:until]
        if not len(ties):
            sure_scores.append(caption.score)
            recorded_scores.append(recording.scores["decoder"][number])
    yield Difference("decoder", len(captions), same, scores=_worst_score(sure_scores, recorded_scores))


def compare_backbone(captioner: Captioner, recording: Recording, images: Path) -> tuple[FeatureMap, list[Difference]]:
    """Encode a recording's photographs, found in ``images``; return their features and the differences."""
    photos = [open_image(images / f"{name}.jpg") for name in recording.settings["images"]]
    features = captioner.encode(photos)
    found = {
        "cls": features.cls,
        "registers": features.registers,
        "patches": features.patches,
        "self_attn": features.cls_attention,
        "self_attn_heads": features.cls_attention_logits,
    }
    differences = {name: relative_difference(value, recording.arrays[name]) for name, value in found.items()}
    for name, fit in (("pixel_values", Fit.CROP), ("pixel_values_nocrop", Fit.STRETCH)):
        pixels, _ = prepare(photos, recording.settings["dim"], fit)
        values = ((pixels.numpy() / 255 - _MEAN) / _STD).transpose(0, 3, 1, 2)[:, :, ::_PIXEL_STEP, ::_PIXEL_STEP]
        differences[name] = relative_difference(torch.from_numpy(values), recording.arrays.get(name))
    return features, [Difference(name, 0, 0, vectors=value) for name, value in differences.items() if value is not None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Compare bundles with recordings of the published system.")
    parser.add_argument("recordings", type=Path, nargs="*", help="NAME.npz (default: all of benchmarks/recordings)")
    parser.add_argument("--images", type=Path, help="folder of the recordings' photographs; else their tokens are used")
    options = parser.parse_args(arguments)
    paths = options.recordings or sorted(RECORDINGS.glob("*.npz"))
    return run_command(partial(_run, paths, options.images), errors=(PatchcaptionError, OSError))


def _run(paths: Sequence[Path], images: Path | None) -> int:
    found = _worst([one for path in paths for one in _measure(Recording.load(path), images)])
    Console(width=120).print(_table(found, ", ".join(path.stem for path in paths)))
    return int(any(one.faults for one in found))


def _measure(recording: Recording, images: Path | None) -> list[Difference]:
    with tempfile.TemporaryDirectory() as folder:
        options = BuildOptions()
        with show_progress(Console(stderr=True), options.steps) as progress:
            build(recording.checkpoint, Path(folder) / "bundle", progress, options)
        with Captioner.load(Path(folder) / "bundle", "cpu", fit="crop") as captioner:
            features, backbone = recording.features, list[Difference]()
            if images is not None:
                features, backbone = compare_backbone(captioner, recording, images)
            return [*backbone, *compare(captioner, recording, features), *compare_decoder(captioner, recording)]


def _worst(found: Sequence[Difference]) -> list[Difference]:
    """Return the worst difference of each task, with and without memory bank, over all recordings."""
    tasks: dict[str, list[Difference]] = {}
    for one in found:
        tasks.setdefault(one.task.rsplit(".", 1)[0] if one.task.endswith("mem") else one.task, []).append(one)

    def largest(values: Iterable[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    return [
        Difference(
            task,
            regions=sum(one.regions for one in same),
            same_texts=sum(one.same_texts for one in same),
            vectors=largest(one.vectors for one in same),
            projected=largest(one.projected for one in same),
            scores=largest(one.scores for one in same),
        )
        for task, same in tasks.items()
    ]


def _table(found: Sequence[Difference], recordings: str) -> Table:
    table = Table(box=box.MARKDOWN, title=f"largest relative differences from {recordings}")
    for heading in ("task", "vectors", "projected", "same texts", "scores"):
        table.add_column(heading, justify="left" if heading == "task" else "right", no_wrap=True)
    for one in found:
        same = f"{one.same_texts} / {one.regions}" if one.regions else ""
        table.add_row(one.task, _format(one.vectors), _format(one.projected), same, _format(one.scores))
    return table


def relative_difference(found: torch.Tensor, recorded: npt.NDArray[np.float32] | None) -> float | None:
    """Return the largest difference, relative to the largest value of its row; None where nothing was recorded."""
    if recorded is None:
        return None
    want = recorded.reshape(-1, recorded.shape[-1])
    got = found.numpy().reshape(want.shape)
    return float((np.abs(got - want).max(axis=1) / np.abs(want).max(axis=1)).max())


def _worst_score(found: Sequence[float], recorded: Sequence[float] | None) -> float | None:
    if not recorded:
        return None
    return max(abs(got - want) / want for got, want in zip(found, recorded, strict=True))


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


if __name__ == "__main__":
    sys.exit(main())
