"""Recordings of the published system, and its tasks as regions and options of this one.

See published-system.md, section 8.

A recording is NAME.npz with NAME.json beside it. It holds no photographs; those that hold all tokens of their
photographs can be compared without them, but for the backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export.readers import recording as checkpoints
from runtime import (
    AttentionHead,
    Box,
    BoxSet,
    Captioner,
    Crop,
    FeatureMap,
    Fit,
    Patch,
    Region,
    Register,
    Trace,
    WholeImage,
)
from runtime.bundle import BackboneConfig, TokenLayout
from runtime.image import View
from runtime.options import DescribeKeywords, PoolingOptions, Reencode

RECORDINGS = Path(__file__).parent / "recordings"
MODES = ("mem", "nomem")
"""With the memory bank, and without."""

_ALPHA = 1.0
"""How much was cleaned in recordings that say how their bank was used; in others as much as is the default here."""
_CLEANED = {"orthogonal_projection": "orthogonal", "contrastive_mask": "contrastive"}
_REENCODED: dict[str, Reencode] = {"avg": "mean", "cls": "cls", "gaussian_avg": "gaussian"}

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Recording:
    """Outputs of the published system.

    Attributes:
        checkpoint: the name of the checkpoint whose weights it was made with.
        tag: which variant of the backbone it is of.
        arrays: by the names of published-system.md, section 8.
        strides: of the arrays that keep every so-manieth row: "patches" those of an image, "TASK.MODE" those of a task.
        captions, scores: by task and mode ("boxes_mean.mem"), in the order of the images and their regions.
    """

    name: str
    checkpoint: str
    arrays: Mapping[str, Array]
    settings: Mapping[str, Any]
    strides: Mapping[str, Any]
    captions: Mapping[str, list[str]]
    scores: Mapping[str, list[float]]
    tag: str = ""

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read a recording, all its variants in one."""
        with np.load(path) as file:
            arrays = dict(file)
        settings = checkpoints.read_settings(path.with_suffix(".json"))
        captions, scores = ({key: _flat(value) for key, value in settings[of].items()} for of in ("captions", "scores"))
        checkpoint = f"{checkpoints.PREFIX}{path.with_suffix('.json')}"
        return cls(path.stem, checkpoint, arrays, settings, settings.get("strides", {}), captions, scores)

    def variants(self) -> list[Recording]:
        """Return the parts that were recorded with different options of the backbone, each by its own names."""
        tags = [tag for tag in checkpoints.variants(self.settings, self.name) if tag]
        return [self._variant("", tags), *(self._variant(tag, tags) for tag in tags)]

    def _variant(self, tag: str, tags: list[str]) -> Recording:
        def own(named: Mapping[str, Any]) -> dict[str, Any]:
            tagged = ((_split_tag(name, tags), value) for name, value in named.items())
            return {name: value for (name, found), value in tagged if found == tag}

        inputs = {name: value for name, value in self.arrays.items() if name.endswith("boxes")}
        return replace(
            self,
            name=f"{self.name} ({tag})" if tag else self.name,
            checkpoint=f"{self.checkpoint},variant={tag}" if tag else self.checkpoint,
            arrays=inputs | own(self.arrays),
            strides=own(self.strides),
            captions=own(self.captions),
            scores=own(self.scores),
            tag=tag,
        )

    @property
    def fit(self) -> Fit:
        """How its photographs were brought to the backbone's square."""
        return Fit.STRETCH if "no-crop" in self.settings.get("pixels", "") else Fit.CROP

    def stride(self, name: str) -> int:
        """Return the step between the rows that were kept of an array."""
        return int(self.strides.get(name, 1))

    def task_names(self) -> list[str]:
        """Return the names of its tasks."""
        recorded = [key for key in self.captions if key != "decoder"]
        recorded += [key.removesuffix(".vec") for key in self.arrays if key.endswith(".vec")]
        return list(dict.fromkeys(key.rsplit(".", 1)[0] for key in recorded))

    @property
    def is_of_alpha(self) -> bool:
        """Whether its backbone saw each region in a pass of its own, or was to: AlphaCLIP."""
        return "alpha_prefix" in self.settings

    def holds(self, key: str) -> bool:
        """Return whether a task's outputs in a mode ("boxes_mean.mem") were recorded, or some of them."""
        return key in self.captions or any(f"{key}.{part}" in self.arrays for part in ("vec", "proj"))

    def vectors(self, task: str) -> Array | None:
        """Return the region vectors (R, D) of a task; they are the same with a memory bank and without."""
        names = (f"{task}.mem.vec", f"{task}.nomem.vec", task)
        return next((self.arrays[name] for name in names if name in self.arrays), None)

    @property
    def has_head_attention(self) -> bool:
        """Whether "self_attn_heads" has distributions over the patches; else what they are the softmax of."""
        heads = self.arrays.get("self_attn_heads")
        return heads is not None and bool(np.allclose(heads.sum(axis=-1), 1, atol=1e-3))

    def layout(self, backbone: BackboneConfig) -> TokenLayout:
        """Return the order of the tokens of a backbone at the recording's size."""
        grid = self.settings["dim"] // backbone.patch_size
        return TokenLayout(global_tokens=backbone.tokens.global_tokens, grid=grid)

    def features(self, backbone: BackboneConfig) -> FeatureMap | None:
        """Return its tokens, those of a backbone, as a feature map; None where it does not hold all of them."""
        patches, images, layout = self.arrays.get("patches"), len(self.settings["images"]), self.layout(backbone)
        if patches is None or patches.size != images * layout.num_patches * patches.shape[-1]:
            return None
        if layout.cls_index is not None and "cls" not in self.arrays:
            return None
        width = patches.shape[-1]
        global_tokens = [self.arrays["cls"][:, None]] if layout.cls_index is not None else []
        global_tokens += [self.arrays["registers"]] if layout.register_indices else []
        size = self.settings["dim"]
        logits = self.arrays.get("self_attn_heads", np.zeros((images, 0, layout.num_patches), np.float32))
        if self.has_head_attention:
            logits = np.log(logits)
        return FeatureMap(
            tokens=torch.from_numpy(np.concatenate([*global_tokens, patches.reshape(images, -1, width)], axis=1)),
            cls_attention_logits=torch.from_numpy(logits),
            views=(View.of((size, size), size, Fit.STRETCH),) * images,
            layout=layout,
        )


def _split_tag(name: str, tags: list[str]) -> tuple[str, str]:
    """Return a name without its tag, and the tag: "head.boxes_mean.mem", "boxes_mean_mlp.mem.vec"."""
    for tag in tags:
        if name.startswith(f"{tag}."):
            return name.removeprefix(f"{tag}."), tag
        task, dot, rest = name.partition(".")
        if task.endswith(f"_{tag}"):
            return f"{task.removesuffix(f'_{tag}')}{dot}{rest}", tag
    return name, ""


@dataclass(frozen=True)
class Task:
    """One task: the regions of each image and the options of `Captioner.describe`.

    Attributes:
        encodes_again: whether each region is a pass of the backbone.
    """

    name: str
    regions: list[list[Region]]
    options: DescribeKeywords = field(default_factory=DescribeKeywords)

    encodes_again: bool = False

    @property
    def needs_photographs(self) -> bool:
        """Whether it encodes the photographs once more, or parts of them by themselves."""
        return self.encodes_again or any(isinstance(region, Crop) for regions in self.regions for region in regions)

    def vectors(self, captioner: Captioner, features: FeatureMap) -> torch.Tensor:
        """Return the vectors (R, D) of its regions."""
        pooling = {key: value for key, value in self.options.items() if key != "mode"}
        return captioner.vectors(features, self.regions, **pooling)  # type: ignore[arg-type]  # of several types


class CutTask(Task):
    """Boxes that are cut out of the photographs and brought to the backbone's square as these are."""

    def vectors(self, captioner: Captioner, features: FeatureMap) -> torch.Tensor:
        cuts = [
            region.cut(image)
            for image, regions in zip(features.images or (), self.regions, strict=True)
            for region in regions
            if isinstance(region, Crop)
        ]
        return captioner.encode(cuts).cls


def tasks(recording: Recording, layout: TokenLayout) -> list[Task]:
    """Return every task of a recording.

    Raises:
        KeyError: a task has a name that is not known here.
    """
    return [_task(name, recording, layout) for name in recording.task_names()]


def _task(name: str, recording: Recording, layout: TokenLayout) -> Task:
    """Return the task of a recorded name, for example "boxes_gaussian_0.5"."""
    arrays, images = recording.arrays, range(len(recording.settings["images"]))
    if name.startswith("boxes_clean_"):
        cleaning, _, when = name.removeprefix("boxes_clean_").rpartition("_")
        clean: DescribeKeywords = {
            "clean": _CLEANED[cleaning],  # type: ignore[typeddict-item]
            "clean_after_projection": when == "after",
            "alpha": _ALPHA if "normalize" in recording.settings else PoolingOptions.alpha,
        }
        return Task(name, _each(arrays["boxes"], Box.published), clean)
    if name.startswith("boxes_reencoded_"):
        corners = arrays["xyxy_boxes"].astype(np.float64)
        sized = np.concatenate([corners[..., :2], corners[..., 2:] - corners[..., :2]], axis=-1)
        return Task(name, _each(sized, Box.published), {"reencode": _REENCODED[name.removeprefix("boxes_reencoded_")]})
    if name == "boxes_argmax_text":
        return Task(name, _each(arrays["boxes"], Box.published), {"mode": "nearest"})
    if name in ("boxes_crop_cls", "boxes_crop_ratio_cls"):
        kind = Task if name == "boxes_crop_cls" else CutTask
        return kind(name, _each(arrays["crop_boxes"], lambda x, y, w, h: Crop(x, y, x + w, y + h)))
    if recording.is_of_alpha and name != "image_cls":
        return _alpha_task(name, recording)
    kind_name, _, pooling_name = name.partition("_")
    pool, _, variance = pooling_name.partition("_")
    pooled: dict[str, Any] = {"pool": pool} | ({"variance": float(variance)} if pool == "gaussian" else {})
    makers: dict[str, Callable[[int], list[Region]]] = {
        "image": lambda _: [WholeImage("attention") if pooling_name == "avg_attention" else WholeImage(**pooled)],
        "registers": lambda _: [Register(index) for index in range(len(layout.register_indices))],
        "attention": lambda _: [AttentionHead(index) for index in range(arrays["self_attn_heads"].shape[1])],
        "patches": lambda _: [Patch(*divmod(index, layout.grid)) for index in range(layout.num_patches)],
        "boxes": lambda image: [Box.published(*box, **pooled) for box in arrays["boxes"][image].tolist()],
        "set": lambda image: [BoxSet.published(_without_padding(arrays["set_boxes"][image]), **pooled)],
        "trace": lambda image: [Trace.published(recording.settings["traces"][image], "attention" if pool else "count")],
    }
    return Task(name, [makers[kind_name](image) for image in images])


def _alpha_task(name: str, recording: Recording) -> Task:
    """Return a task of AlphaCLIP: boxes, the set of an image's boxes, or its trace; as published each is cls."""
    boxes, images = recording.arrays["boxes"], range(len(recording.settings["images"]))
    makers: dict[str, Callable[[int], list[Region]]] = {
        "boxes": lambda image: [Box.published(*box) for box in boxes[image].tolist()],
        "set": lambda image: [BoxSet.published(_without_padding(boxes[image]))],
        "trace": lambda image: [Trace.published(recording.settings["traces"][image])],
    }
    kind_name, _, of_patches = name.partition("_")
    regions = [makers[kind_name](image) for image in images]
    if recording.tag != "mended":
        return Task(name, [[WholeImage()] * len(own) for own in regions])
    reencode: Reencode = "mean" if of_patches else "cls"
    return Task(name, regions, {"reencode": reencode}, encodes_again=True)


def _without_padding(boxes: Array) -> list[list[float]]:
    return [box for box in boxes.tolist() if box != [-1.0] * 4]


def _each(boxes: npt.NDArray[Any], make: Callable[..., Region]) -> list[list[Region]]:
    return [[make(*box) for box in of_image] for of_image in boxes.tolist()]


def _flat(nested: list[Any]) -> list[Any]:
    return [entry for of_image in nested for entry in (of_image if isinstance(of_image, list) else [of_image])]
