"""The sizes of the demo model, and the temperature of its memory."""

from __future__ import annotations

from export.demo import scenes
from export.models.dinov2 import Dinov2Config

BACKBONE_CONFIG = Dinov2Config(
    embed_dim=192, depth=7, num_heads=3, num_registers=4, image_size=scenes.SIZE, attention_heads=3
)
TEXT_WIDTH = 128
DECODER_WIDTH = 128
DECODER_LAYERS = 4
ENTITY_DECODER_WIDTH = 128
ENTITY_DECODER_LAYERS = 3
MAPPING_LAYERS = 2
SOFT_TOKENS = 4
"""Those of the second decoder's prompts, and as many that carry the vector through the mapping network."""
MEMORY_TEMPERATURE = 0.01
"""Temperature of the softmax over the memory bank (published-system.md, section 5)."""
