"""What sets the vectors of regions apart from the embeddings of their captions, measured on scenes of the demo.

A decoder that is trained on text alone is given region vectors as they are, which do not lie where the embeddings of
captions do. For each kind of caption a linear map carries embeddings to where region vectors are; what it leaves is
noise.

Shapes: B captions, R regions, M memory rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from export.demo import scenes
from export.demo.training_plan import BINDING
from export.demo.training_regions import SceneRegions
from export.models.dinov2 import Dinov2Backbone

GAP_SCENES = replace(BINDING, first_scene=100_000, scenes=400, singles=8, pairs=8)
"""Scenes that nothing else is trained on, nor measured on."""
_SCENES_AT_ONCE = 8
_RIDGE = 1.0
"""Keeps the map small in directions of which the scenes show little."""


@dataclass(frozen=True, eq=False)
class GapOfKind:
    """The gap for captions of one kind.

    Attributes:
        linear: (D + 1, D), of an embedding and a 1.
        noise: (R, D) what it leaves of the vectors that were measured.
    """

    linear: Tensor
    noise: Tensor

    def cross(self, embeddings: Tensor, generator: torch.Generator) -> Tensor:
        """Return vectors (B, D) as of regions, for unit embeddings (B, D), with noise of other regions."""
        drawn = torch.randint(len(self.noise), (len(embeddings),), generator=generator)
        return _with_one(embeddings) @ self.linear + self.noise[drawn]


class ModalityGap:
    """The gap between captions and regions.

    Args:
        vectors: of unit length (R, D).
        embeddings: those of their captions, of unit length (R, D).
        captions: the rows of their captions (R).
    """

    def __init__(self, vectors: Tensor, embeddings: Tensor, captions: Tensor) -> None:
        self.kinds = caption_kinds()
        rows = [self.kinds[captions] == kind for kind in range(int(self.kinds.max()) + 1)]
        self._by_kind = [_fit(vectors[of_kind], embeddings[of_kind]) for of_kind in rows]

    def cross(self, embeddings: Tensor, captions: Tensor, generator: torch.Generator) -> Tensor:
        """Return vectors (B, D) as of regions, for unit embeddings (B, D) and the rows of their captions (B)."""
        crossed = torch.empty_like(embeddings)
        for kind, gap in enumerate(self._by_kind):
            of_kind = self.kinds[captions] == kind
            crossed[of_kind] = gap.cross(embeddings[of_kind], generator)
        return crossed


def _fit(vectors: Tensor, embeddings: Tensor) -> GapOfKind:
    """Fit the gap for vectors (R, D) and their captions' embeddings (R, D) by least squares."""
    inputs = _with_one(embeddings)
    linear = torch.linalg.solve(inputs.T @ inputs + _RIDGE * torch.eye(inputs.shape[1]), inputs.T @ vectors)
    return GapOfKind(linear, vectors - inputs @ linear)


def _with_one(embeddings: Tensor) -> Tensor:
    return F.pad(embeddings, (0, 1), value=1.0)


def caption_kinds() -> Tensor:
    """Return the kind of each caption (M): 0 for one object, 1 for a pair, 2 for a background, 3 for a whole scene."""
    return torch.tensor([_kind(caption) for caption in scenes.all_captions()])


def _kind(caption: str) -> int:
    if "background" in caption:
        return 3 if "shapes" in caption else 2
    return 1 if " and " in caption else 0


@torch.no_grad()
def measure_modality_gap(backbone: Dinov2Backbone, memory: Tensor, seed: int) -> ModalityGap:
    """Return the gap between regions of drawn scenes and the embeddings (M, D) of all captions."""
    vectors, captions = [], []
    for batch in DataLoader(SceneRegions(seed, GAP_SCENES), _SCENES_AT_ONCE):
        tokens, _ = backbone(batch["pixels"])
        vectors.append((batch["weights"] @ tokens).flatten(0, 1))
        captions.append(batch["captions"].flatten())
    rows = torch.cat(captions)
    return ModalityGap(F.normalize(torch.cat(vectors), dim=-1), F.normalize(memory[rows], dim=-1), rows)
