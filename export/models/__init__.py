"""The torch modules that are exported, one file a family or kind; `vit.py` and `gpt2.py` have the blocks they share."""

from export.models.base import BackboneModel, BundleNumbers, DecoderModel

__all__ = ["BackboneModel", "BundleNumbers", "DecoderModel"]
