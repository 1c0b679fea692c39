"""What a bundle computes against what the published system computed: `python benchmarks/parity.py`.

A recording (SPEC section 8) is NAME.npz with NAME.json beside it: outputs of the published system on photographs, for
made-up weights that a `seeded:` checkpoint has too. Those in benchmarks/recordings hold its tokens but not its
photographs; with --images, a folder that holds them, the backbone and the reading of images are compared as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from export.build_engines import build
from runtime import (
    AttentionHead,
    Box,
    BoxSet,
    Captioner,
    FeatureMap,
    Fit,
    Patch,
    PatchcaptionError,
    Region,
    Register,
    Trace,
    WholeImage,
)
from runtime.image import View, open_image, prepare
from runtime.options import DescribeOptions, Reencode

RECORDINGS = Path(__file__).parent / "recordings"
NEAR_TIE = 0.01
"""Of logits: rounding may rightly choose the other token, and then other tokens after it."""

_PATCH, _PIXEL_STEP = 14, 7
_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
_CLEANED = {"orthogonal_projection": "orthogonal", "contrastive_mask": "contrastive"}
_REENCODED: dict[str, Reencode] = {"avg": "mean", "cls": "cls", "gaussian_avg": "gaussian"}


@dataclass(frozen=True, eq=False)
class Recording:
    """Outputs of the published system.

    Attributes:
        arrays: SPEC section 8 names them.
        captions, scores: by task and mode ("boxes_mean.mem"), in the order of the images and their regions.
    """

    name: str
    arrays: Mapping[str, npt.NDArray[np.float32]]
    settings: Mapping[str, Any]
    captions: Mapping[str, list[str]]
    scores: Mapping[str, list[float]]

    @classmethod
    def load(cls, path: Path) -> Recording:
        with np.load(path) as file:
            arrays = dict(file)
        settings = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        captions, scores = ({key: _flat(value) for key, value in settings[of].items()} for of in ("captions", "scores"))
        return cls(path.stem, arrays, settings, captions, scores)

    @property
    def checkpoint(self) -> str:
        """The seeded checkpoint whose weights it was made with."""
        made = self.settings
        return f"seeded:{made['arch']},size={made['dim']},memory={made['n_memory']},salt={made['salt']}"

    def vectors(self, task: str) -> npt.NDArray[np.float32] | None:
        """The region vectors (R, D) of a task, the same with a memory and without; those of patches are the patches."""
        names = (f"{task}.mem.vec", f"{task}.nomem.vec", task)
        return next((self.arrays[name] for name in names if name in self.arrays), None)

    @property
    def features(self) -> FeatureMap:
        """Its tokens as a feature map; "self_attn_heads" are scores, before any softmax."""
        parts = [self.arrays["cls"][:, None], self.arrays["registers"], self.arrays["patches"]]
        size = self.settings["dim"]
        view = View.of((size, size), size, Fit.STRETCH)
        return FeatureMap(
            tokens=torch.from_numpy(np.concatenate(parts, axis=1)),
            cls_scores=torch.from_numpy(self.arrays["self_attn_heads"]),
            views=(view,) * len(parts[0]),
            patch=_PATCH,
            registers=parts[1].shape[1],
        )


@dataclass(frozen=True)
class Task:
    """What was asked: the regions of each image and the options of `Captioner.describe`."""

    name: str
    regions: list[list[Region]]
    options: DescribeOptions = field(default_factory=DescribeOptions)


@dataclass(frozen=True)
class Difference:
    """How far a task's outputs are from the recording: the worst over its regions; None for what was not recorded.

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


def tasks(recording: Recording) -> list[Task]:
    """Every task of a recording.

    Raises:
        KeyError: it holds one of a name that means nothing here.
    """
    names = dict.fromkeys(key.rsplit(".", 1)[0] for key in recording.captions if key != "decoder")
    return [_task(name, recording) for name in names]


def compare(captioner: Captioner, recording: Recording, features: FeatureMap) -> Iterator[Difference]:
    """Runs every task on ``features``, with the memory ("mem") and without ("nomem")."""
    for task in tasks(recording):
        how = {key: value for key, value in task.options.items() if key != "mode"}
        vectors = captioner.vectors(features, task.regions, **how)  # type: ignore[arg-type]  # the rest of the options
        for mode in ("mem", "nomem"):
            key = f"{task.name}.{mode}"
            if key not in recording.captions:
                continue
            projected = None
            if mode == "nomem":
                captions = captioner.decode(vectors, score="reference")
            else:
                projected = None if "clean" in how else captioner.project(vectors)
                described = captioner.describe(features, task.regions, **task.options | {"score": "reference"})
                captions = [caption for of_image in described for caption in of_image]
            recorded = recording.captions[key]
            yield Difference(
                key,
                len(recorded),
                sum(one.text == text.strip() for one, text in zip(captions, recorded, strict=True)),
                relative(vectors, recording.vectors(task.name)),
                None if projected is None else relative(projected, recording.arrays.get(f"{key}.proj")),
                _worst_score([one.score for one in captions], recording.scores.get(key)),
            )


def compare_decoder(captioner: Captioner, recording: Recording) -> Difference | None:
    """Decodes the recorded inputs: tokens up to the first near-tie, and where none came, texts and scores."""
    if "decoder.inputs" not in recording.arrays:
        return None
    captions = captioner.decode(torch.from_numpy(recording.arrays["decoder.inputs"]), score="reference")
    end = captioner.manifest.decoding.end_id
    same, sure_scores, recorded_scores = 0, [], []
    for number, caption in enumerate(captions):
        tokens = recording.arrays["decoder.tokens"][number].tolist()
        ties = np.flatnonzero(recording.arrays["decoder.margins"][number] < NEAR_TIE)
        until = min(tokens.index(end) + 1 if end in tokens else len(tokens), *ties.tolist(), len(tokens))
        same += list(caption.ids[:until]) == tokens[:until]
        if not len(ties):
            sure_scores.append(caption.score)
            recorded_scores.append(recording.scores["decoder"][number])
    return Difference("decoder", len(captions), same, scores=_worst_score(sure_scores, recorded_scores))


def compare_backbone(captioner: Captioner, recording: Recording, images: Path) -> tuple[FeatureMap, dict[str, float]]:
    """Encodes a recording's photographs, found in ``images``; their features, and how far each array is from them."""
    photos = [open_image(images / f"{name}.jpg") for name in recording.settings["images"]]
    features = captioner.encode(photos)
    found = {
        "cls": features.cls,
        "registers": features.tokens[:, 1 : 1 + features.registers],
        "patches": features.patches,
        "self_attn": features.cls_attention,
        "self_attn_heads": features.cls_scores,
    }
    differences = {name: relative(value, recording.arrays[name]) for name, value in found.items()}
    for name, fit in (("pixel_values", Fit.CROP), ("pixel_values_nocrop", Fit.STRETCH)):
        pixels, _ = prepare(photos, recording.settings["dim"], fit)
        values = ((pixels.numpy() / 255 - _MEAN) / _STD).transpose(0, 3, 1, 2)[:, :, ::_PIXEL_STEP, ::_PIXEL_STEP]
        differences[name] = relative(torch.from_numpy(values), recording.arrays[name])
    return features, {name: value for name, value in differences.items() if value is not None}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare bundles with recordings of the published system.")
    parser.add_argument("recordings", type=Path, nargs="*", help="NAME.npz (default: all of benchmarks/recordings)")
    parser.add_argument("--images", type=Path, help="folder of the recordings' photographs; else their tokens are used")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        for path in options.recordings or sorted(RECORDINGS.glob("*.npz")):
            console.print(_measure(Recording.load(path), options.images))
    except (PatchcaptionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(recording: Recording, images: Path | None) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        build(recording.checkpoint, Path(folder) / "bundle", Console(stderr=True))
        with Captioner.load(Path(folder) / "bundle", "cpu", fit="crop") as captioner:
            features, backbone = (
                (recording.features, {}) if images is None else compare_backbone(captioner, recording, images)
            )
            found = [*compare(captioner, recording, features), compare_decoder(captioner, recording)]
            title = f"{recording.name}: largest relative differences, {captioner.backend.name}, fp32"
    table = Table(title=title)
    for heading in ("task", "vectors", "projected", "same texts", "scores"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for name, value in backbone.items():
        table.add_row(name, _shown(value))
    for one in found:
        if one is not None:
            same = f"{one.same_texts} / {one.regions}"
            table.add_row(one.task, _shown(one.vectors), _shown(one.projected), same, _shown(one.scores))
    return table


def _task(name: str, recording: Recording) -> Task:
    """The task of a recorded name, for example "boxes_gaussian_0.5"."""
    arrays, images = recording.arrays, range(len(recording.settings["images"]))
    if name.startswith("boxes_clean_"):
        cleaning, _, when = name.removeprefix("boxes_clean_").rpartition("_")
        clean: DescribeOptions = {"clean": _CLEANED[cleaning], "clean_after_projection": when == "after"}  # type: ignore[typeddict-item]
        return Task(name, _each(arrays["boxes"], Box.published), clean)
    if name.startswith("boxes_reencoded_"):
        corners = arrays["xyxy_boxes"].astype(np.float64)
        sized = np.concatenate([corners[..., :2], corners[..., 2:] - corners[..., :2]], axis=-1)
        return Task(name, _each(sized, Box.published), {"reencode": _REENCODED[name.removeprefix("boxes_reencoded_")]})
    if name == "boxes_argmax_text":
        return Task(name, _each(arrays["boxes"], Box.published), {"mode": "nearest"})
    grid = recording.settings["dim"] // _PATCH
    kind, _, how = name.partition("_")
    pool, _, variance = how.partition("_")
    pooled: dict[str, Any] = {"pool": pool} | ({"variance": float(variance)} if pool == "gaussian" else {})
    makers: dict[str, Callable[[int], list[Region]]] = {
        "image": lambda _: [WholeImage("attention") if how == "avg_attention" else WholeImage(**pooled)],
        "registers": lambda _: [Register(index) for index in range(arrays["registers"].shape[1])],
        "attention": lambda _: [AttentionHead(index) for index in range(arrays["self_attn_heads"].shape[1])],
        "patches": lambda _: [Patch(*divmod(index, grid)) for index in range(grid**2)],
        "boxes": lambda image: [Box.published(*box, **pooled) for box in arrays["boxes"][image].tolist()],
        "set": lambda image: [BoxSet.published(arrays["set_boxes"][image].tolist(), **pooled)],
        "trace": lambda image: [Trace.published(recording.settings["traces"][image], "attention" if pool else "count")],
    }
    return Task(name, [makers[kind](image) for image in images])


def _each(boxes: npt.NDArray[Any], make: Callable[..., Region]) -> list[list[Region]]:
    return [[make(*box) for box in of_image] for of_image in boxes.tolist()]


def relative(found: torch.Tensor, recorded: npt.NDArray[np.float32] | None) -> float | None:
    if recorded is None:
        return None
    want = recorded.reshape(-1, recorded.shape[-1])
    got = found.numpy().reshape(want.shape)
    return float((np.abs(got - want).max(axis=1) / np.abs(want).max(axis=1)).max())


def _worst_score(found: Sequence[float], recorded: Sequence[float] | None) -> float | None:
    if not recorded:
        return None
    return max(abs(got - want) / want for got, want in zip(found, recorded, strict=True))


def _flat(nested: list[Any]) -> list[Any]:
    return [entry for of_image in nested for entry in (of_image if isinstance(of_image, list) else [of_image])]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


if __name__ == "__main__":
    sys.exit(main())
