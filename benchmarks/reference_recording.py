"""Recordings of the published system, and its tasks as regions and options of this one.

See published-system.md, section 8.

A recording is NAME.npz with NAME.json beside it. Those in benchmarks/recordings hold the tokens of their photographs,
not the photographs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from runtime import AttentionHead, Box, BoxSet, FeatureMap, Fit, Patch, Region, Register, Trace, WholeImage
from runtime.bundle import TokenLayout
from runtime.image import View
from runtime.options import DescribeKeywords, Reencode

RECORDINGS = Path(__file__).parent / "recordings"

_PATCH = 14
_CLEANED = {"orthogonal_projection": "orthogonal", "contrastive_mask": "contrastive"}
_REENCODED: dict[str, Reencode] = {"avg": "mean", "cls": "cls", "gaussian_avg": "gaussian"}


@dataclass(frozen=True, eq=False)
class Recording:
    """Outputs of the published system.

    Attributes:
        arrays: by the names of published-system.md, section 8.
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
        settings = self.settings
        return f"seeded:{settings['arch']},size={settings['dim']},memory={settings['n_memory']},salt={settings['salt']}"

    def vectors(self, task: str) -> npt.NDArray[np.float32] | None:
        """Return the region vectors (R, D) of a task; they are the same with a memory bank and without."""
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
            cls_attention_logits=torch.from_numpy(self.arrays["self_attn_heads"]),
            views=(view,) * len(parts[0]),
            layout=TokenLayout.with_cls(parts[1].shape[1], size // _PATCH),
        )


@dataclass(frozen=True)
class Task:
    """One task: the regions of each image and the options of `Captioner.describe`."""

    name: str
    regions: list[list[Region]]
    options: DescribeKeywords = field(default_factory=DescribeKeywords)


def tasks(recording: Recording) -> list[Task]:
    """Return every task of a recording.

    Raises:
        KeyError: a task has a name that is not known here.
    """
    names = dict.fromkeys(key.rsplit(".", 1)[0] for key in recording.captions if key != "decoder")
    return [_task(name, recording) for name in names]


def _task(name: str, recording: Recording) -> Task:
    """Return the task of a recorded name, for example "boxes_gaussian_0.5"."""
    arrays, images = recording.arrays, range(len(recording.settings["images"]))
    if name.startswith("boxes_clean_"):
        cleaning, _, when = name.removeprefix("boxes_clean_").rpartition("_")
        clean: DescribeKeywords = {"clean": _CLEANED[cleaning], "clean_after_projection": when == "after"}  # type: ignore[typeddict-item]
        return Task(name, _each(arrays["boxes"], Box.published), clean)
    if name.startswith("boxes_reencoded_"):
        corners = arrays["xyxy_boxes"].astype(np.float64)
        sized = np.concatenate([corners[..., :2], corners[..., 2:] - corners[..., :2]], axis=-1)
        return Task(name, _each(sized, Box.published), {"reencode": _REENCODED[name.removeprefix("boxes_reencoded_")]})
    if name == "boxes_argmax_text":
        return Task(name, _each(arrays["boxes"], Box.published), {"mode": "nearest"})
    grid = recording.settings["dim"] // _PATCH
    kind, _, pooling_name = name.partition("_")
    pool, _, variance = pooling_name.partition("_")
    pooled: dict[str, Any] = {"pool": pool} | ({"variance": float(variance)} if pool == "gaussian" else {})
    makers: dict[str, Callable[[int], list[Region]]] = {
        "image": lambda _: [WholeImage("attention") if pooling_name == "avg_attention" else WholeImage(**pooled)],
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


def _flat(nested: list[Any]) -> list[Any]:
    return [entry for of_image in nested for entry in (of_image if isinstance(of_image, list) else [of_image])]
