"""Hard prompts of entities: the names of a vocabulary that a region looks like (published-system.md, section 18).

Shapes: R regions, D vector width, K entities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.bundle import Bundle, EntitiesConfig
from runtime.bundle.prompt_pieces import PromptPieces
from runtime.bundle.tensor_file import TensorFile

_EMBEDDINGS = "embeddings"


class EntityPrompts:
    """Detects entities by one product with their embeddings.

    Args:
        bundle: the bundle of ``config``.
        device: where vectors are.

    Raises:
        BundleError: its files are not what the manifest says.
    """

    def __init__(self, bundle: Bundle, config: EntitiesConfig, device: torch.device) -> None:
        manifest = bundle.manifest
        file = TensorFile(bundle.file(config.embeddings))
        stored = file.require(_EMBEDDINGS, (config.num_entities, manifest.backbone.output_dim), torch.float32)
        self._embeddings, self._config = file.read(stored, device), config
        self._pieces = PromptPieces.read(bundle.file(config.pieces), config.num_entities, manifest.decoder.vocab_size)

    def __call__(self, unit_vectors: Tensor) -> list[list[int]]:
        """Return the token ids of each region's hard prompt, for unit vectors (R, D)."""
        return [
            self._pieces.join([self._pieces[index] for index in detected]) for detected in self.detect(unit_vectors)
        ]

    def detect(self, unit_vectors: Tensor) -> list[list[int]]:
        """Return the entities of each of the unit vectors (R, D), the likeliest first.

        They are the top ones of a softmax over all, without those below the threshold.
        """
        config = self._config
        probs = torch.softmax(unit_vectors @ self._embeddings.T / config.temperature, dim=-1)
        top = probs.topk(min(config.top_k, probs.shape[1]), dim=-1)
        found = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        return [
            [index for prob, index in zip(probs_of, indices, strict=True) if prob >= config.threshold]
            for probs_of, indices in found
        ]
