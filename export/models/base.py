"""The interface of models: what the exporter and the bundle builder need, whatever the family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from runtime.backends.base import Device
from runtime.bundle import BackboneConfig, DecoderConfig, EnginePrecision


@dataclass(frozen=True)
class BundleNumbers:
    """The numbers of a bundle that its user chooses, and the text space that its parts share.

    Attributes:
        precision: the precision of the decoder's graphs, and so of its cache.
        resize_short_side: what fit="crop" makes of an image's short side, where it is not the backbone's size.
    """

    text_space: str
    max_images: int
    batch_sizes: tuple[int, ...]
    precision: EnginePrecision
    resize_short_side: int | None = None


class BackboneModel(nn.Module):
    """A backbone for one input size: uint8 RGB pixels (B, S, S, 3) to tokens (B, T, D) and cls logits (B, H, N).

    Attributes:
        family: its name in the manifest.
    """

    family: ClassVar[str]

    @property
    def image_size(self) -> int:
        """S, the side of the square input in pixels."""
        raise NotImplementedError

    @property
    def output_dim(self) -> int:
        """D, the width of the tokens."""
        raise NotImplementedError

    @property
    def last_block(self) -> nn.Module:
        """The block that re-encoded regions pass once more: called with x and a token mask, it returns x first."""
        raise NotImplementedError

    def manifest_entry(self, name: str, numbers: BundleNumbers) -> BackboneConfig:
        """Return what the manifest says of the backbone.

        Args:
            name: its published name.
        """
        raise NotImplementedError


class DecoderModel(nn.Module):
    """A decoder of one kind, as the modules that its graphs are made of.

    Attributes:
        kind: its name in the manifest.
    """

    kind: ClassVar[str]

    @property
    def prefix_width(self) -> int:
        """D, the width of the vectors that it decodes."""
        raise NotImplementedError

    def prepare_for(self, device: Device) -> None:
        """Compute from now on in the form that is fastest on a device; the results stay the same."""

    def manifest_entry(self, eos_token_id: int, numbers: BundleNumbers) -> DecoderConfig:
        """Return what the manifest says of the decoder."""
        raise NotImplementedError
