"""The sizes of the demo model, and the temperature of its memory."""

from __future__ import annotations

from export.demo import scenes
from export.models.dinov2 import BackboneConfig

BACKBONE_CONFIG = BackboneConfig(width=192, depth=7, registers=4, size=scenes.SIZE)
TEXT_WIDTH = 128
DECODER_WIDTH = 128
DECODER_LAYERS = 4
MEMORY_TEMPERATURE = 0.01
"""Temperature of the softmax over the memory bank (published-system.md, section 5)."""
