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
        """Return the entities of each of the unit vectors (R, D), the likeliest first."""
        config = self._config
        probs = entity_probs(unit_vectors, self._embeddings, config.temperature)
        return likely_entities(probs, config.top_k, config.threshold)


def entity_probs(unit_vectors: Tensor, embeddings: Tensor, temperature: float) -> Tensor:
    """Return the probability of each entity (R, K): a softmax of the cosines of unit vectors (R, D) and rows (K, D)."""
    return torch.softmax(unit_vectors @ embeddings.T / temperature, dim=-1)


def likely_entities(probs: Tensor, top_k: int, threshold: float) -> list[list[int]]:
    """Return the top entities by probability (R, K), the likeliest first, without those below the threshold."""
    top = probs.topk(min(top_k, probs.shape[1]), dim=-1)
    found = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    return [
        [index for prob, index in zip(probs_of, indices, strict=True) if prob >= threshold]
        for probs_of, indices in found
    ]
