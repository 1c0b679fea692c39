"""Regions that are single tokens or maps of all patches: the image, its registers and attention heads, a patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from runtime.errors import RegionError
from runtime.regions import checks
from runtime.regions.canvas import Array, Canvas, gaussian

_UNIFORM_VARIANCE = 100
"""Variance from which on the published system takes a Gaussian over the image to be flat."""


@dataclass(frozen=True)
class WholeImage:
    """The whole image.

    Args:
        pool: "cls" is the cls token, "mean" the mean of the patches; "gaussian" weighs patches by their nearness to the
            middle, "attention" by how much cls attends to them, divided by N as published: that scale matters to a
            decoder without a memory bank (published-system.md, section 5).
        variance: the Gaussian's, on an image that reaches from -1 to 1; 0 is the one patch in the middle.

    Example:
        >>> captioner.caption(scene, [WholeImage()])[0].text
        'five shapes on a checked white background'
    """

    is_of_patches: ClassVar[bool] = False

    pool: Literal["cls", "mean", "gaussian", "attention"] = "cls"
    variance: float = 1.0

    def __post_init__(self) -> None:
        checks.one_of("WholeImage", "pool", self.pool, ("cls", "mean", "gaussian", "attention"))
        object.__setattr__(self, "variance", checks.variance("WholeImage", self.variance))

    def weights(self, canvas: Canvas) -> Array:
        if self.pool == "cls":
            return canvas.cls()
        if self.pool == "attention":
            return canvas.row(canvas.attention / canvas.grid**2)
        if self.pool == "mean" or self.variance >= _UNIFORM_VARIANCE:
            return canvas.from_patches(np.ones((canvas.grid, canvas.grid)))
        centres = np.linspace(-1, 1, canvas.grid)
        return canvas.from_patches(gaussian(centres, centres, self.variance))


@dataclass(frozen=True)
class Register:
    """A register token of the backbone, by its index.

    Example:
        >>> captioner.vectors(captioner.encode(scene), [Register(0), Register(1)]).shape
        torch.Size([2, 192])
    """

    is_of_patches: ClassVar[bool] = False

    index: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", checks.whole_number("Register index", self.index))

    def weights(self, canvas: Canvas) -> Array:
        indices = canvas.layout.register_indices
        if self.index >= len(indices):
            raise RegionError(f"{self}: the backbone has {len(indices)} registers, numbered from 0")
        return canvas.token(indices[self.index])


@dataclass(frozen=True)
class AttentionHead:
    """All patches, weighted by how much one head of cls attends to them, divided by N as published; by its index.

    Example:
        >>> captioner.vectors(captioner.encode(scene), [AttentionHead(0)]).shape
        torch.Size([1, 192])
    """

    is_of_patches: ClassVar[bool] = False

    index: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", checks.whole_number("AttentionHead index", self.index))

    def weights(self, canvas: Canvas) -> Array:
        heads = canvas.head_attention
        if self.index >= len(heads):
            raise RegionError(f"{self}: the backbone's attention has {len(heads)} heads, numbered from 0")
        return canvas.row(heads[self.index] / canvas.grid**2)


@dataclass(frozen=True)
class Patch:
    """One patch of the backbone's grid, by row and column from the top left.

    Example:
        >>> captioner.caption(scene, [Patch(row=7, column=8)])[0].text
        'a large striped red triangle'
    """

    row: int
    column: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "row", checks.whole_number("Patch row", self.row))
        object.__setattr__(self, "column", checks.whole_number("Patch column", self.column))

    def weights(self, canvas: Canvas) -> Array:
        if max(self.row, self.column) >= canvas.grid:
            raise RegionError(f"{self}: the grid has {canvas.grid} x {canvas.grid} patches, numbered from 0")
        return canvas.token(canvas.layout.num_global + self.row * canvas.grid + self.column)
