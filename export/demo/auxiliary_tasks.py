"""Auxiliary tasks that teach the backbone to see shapes much sooner; their heads are thrown away after training.

Shapes: B images, N patches, R regions, D width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.demo.model_config import BACKBONE_CONFIG
from export.demo.scenes import ATTRIBUTES, Look, Scene

CELLS_PER_SIDE = 7
"""A patch's outline is predicted on a grid of this many cells a side."""
_CELLS = CELLS_PER_SIDE**2
_UNKNOWN = -1


def attribute_ids(look: Look | None) -> list[int]:
    """Return the index of each attribute's value, in the order of ATTRIBUTES; -1 for all where there is no look."""
    if look is None:
        return [_UNKNOWN] * len(ATTRIBUTES)
    return [values.index(getattr(look, name)) for name, values in ATTRIBUTES.items()]


def patch_targets(scene: Scene, grid: int) -> dict[str, Tensor]:
    """Return what each patch shows of the object that covers most of it.

    Returns:
        patch_attributes: (N, 4) the object's attributes, -1 where no object covers more than half of the patch.
        patch_cells: (N, 49) the share of each of the patch's 7 x 7 cells that the object covers.
        patch_positions: (N, 2) the patch's centre as (x, y), from -1 to 1 across the object's box; beyond the box at
            most 1.5 from its middle, and 0 where there is no object.
    """
    visible = np.stack([item.visible for item in scene.objects])
    cell = BACKBONE_CONFIG.patch_size // CELLS_PER_SIDE
    cells = visible.reshape(-1, grid, CELLS_PER_SIDE, cell, grid, CELLS_PER_SIDE, cell).mean((3, 6))
    cells = cells.transpose(0, 1, 3, 2, 4).reshape(len(visible), grid * grid, _CELLS)
    coverage = cells.mean(2)
    largest, largest_coverage = coverage.argmax(0), coverage.max(0)
    attributes = np.array([attribute_ids(item.look) for item in scene.objects])[largest]
    positions = np.where(largest_coverage[:, None] > 0, _positions_on_objects(scene, grid, largest), 0)
    return {
        "patch_attributes": torch.from_numpy(np.where(largest_coverage[:, None] > 0.5, attributes, _UNKNOWN)),
        "patch_cells": torch.from_numpy(cells[largest, np.arange(grid * grid)]).float(),
        "patch_positions": torch.from_numpy(positions.clip(-1.5, 1.5)).float(),
    }


def _positions_on_objects(scene: Scene, grid: int, object_indices: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Return where each patch's centre (N, 2) lies in the box of the object that is given for it (N): -1 to 1."""
    boxes = np.array([(item.box.x1, item.box.y1, item.box.x2, item.box.y2) for item in scene.objects])
    centres, half_sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    patch_centres = (np.stack([columns, rows], axis=1) + 0.5) * BACKBONE_CONFIG.patch_size
    return (patch_centres - centres[object_indices]) / half_sides[object_indices]


class AuxiliaryHeads(nn.Module):
    """Linear heads that name the attributes of patches and regions, and trace the outlines of objects in patches."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes = nn.Linear(BACKBONE_CONFIG.embed_dim, sum(len(values) for values in ATTRIBUTES.values()))
        self.outline = nn.Linear(BACKBONE_CONFIG.embed_dim, _CELLS + 2)

    def forward(self, patches: Tensor, vectors: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss for patches (B, N, D) and region vectors (B, R, D), and metrics of each task."""
        naming, _ = attribute_loss(self.attributes(patches), batch["patch_attributes"])
        region_naming, accuracy = attribute_loss(self.attributes(vectors), batch["attributes"])
        cells, positions = self.outline(patches).split([_CELLS, 2], dim=-1)
        tracing = F.binary_cross_entropy_with_logits(cells, batch["patch_cells"])
        tracing = tracing + F.smooth_l1_loss(positions, batch["patch_positions"])
        return 0.3 * (naming + region_naming) + 3 * tracing, accuracy | {"naming": naming, "tracing": tracing}


def attribute_loss(logits: Tensor, attributes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross entropy over the attributes (..., 4) where they are known, and each attribute's accuracy."""
    known = attributes[..., 0] >= 0
    logits_by_attribute = logits[known].split([len(values) for values in ATTRIBUTES.values()], dim=-1)
    targets_by_attribute = attributes[known].unbind(-1)
    losses: list[Tensor] = []
    accuracy: dict[str, Tensor] = {}
    for name, part, target in zip(ATTRIBUTES, logits_by_attribute, targets_by_attribute, strict=True):
        losses.append(F.cross_entropy(part, target))
        accuracy[name] = (part.argmax(-1) == target).float().mean()
    return torch.stack(losses).sum(), accuracy
