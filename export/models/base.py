"""The interface of models: what the exporter and the bundle builder need, whatever the family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from runtime.backends.base import Device
from runtime.bundle import (
    BackboneConfig,
    ConceptsConfig,
    DecoderConfig,
    DecoderKind,
    EntitiesConfig,
    GraphPrecision,
    Preprocessing,
    TokenLayout,
)
from runtime.bundle.manifest import Rgb


@dataclass(frozen=True)
class BundleNumbers:
    """The numbers of a bundle that its user chooses, and what its parts share.

    Attributes:
        text_space: the space of backbone, memory bank and decoder.
        eos_token_ids: the tokens that end a caption.
        precision: the precision of the decoder's graphs, which says that of its cache.
        resize_short_side: what fit="crop" makes of an image's short side, where it is not the backbone's size.
        hard_prompt: what the words of prompts are made of, where a decoder's prompts have words.
    """

    text_space: str
    eos_token_ids: tuple[int, ...]
    max_images: int
    batch_sizes: tuple[int, ...]
    precision: GraphPrecision
    resize_short_side: int | None = None
    hard_prompt: EntitiesConfig | ConceptsConfig | None = None

    @property
    def cache_precision(self) -> Literal["fp32", "fp16", "bf16"]:
        """The precision of the decoder's cache."""
        return self.precision if self.precision in ("fp16", "bf16") else "fp32"


@dataclass(frozen=True)
class BackboneNumbers:
    """What the manifest says of a backbone, apart from what its bundle shares.

    Attributes:
        embed_dim: width of its blocks.
        output_dim: D, width of its tokens.
        attention_heads: H, heads of the cls attention; 0 where there is none.
        has_alpha: whether its pixels have a fourth plane that marks what is to be described.
    """

    image_size: int
    patch_size: int
    embed_dim: int
    output_dim: int
    depth: int
    num_heads: int
    attention_heads: int
    tokens: TokenLayout
    mean: Rgb
    std: Rgb
    has_alpha: bool = False


class BackboneModel(nn.Module):
    """A backbone for one input size: uint8 RGB pixels (B, S, S, 3) to tokens (B, T, D) and cls logits (B, H, N).

    Pixels of a backbone with an alpha plane are (B, S, S, 4).

    Tokens are in the manifest's order: cls or what stands in its place first, then registers, then patches. A family
    without cls attention returns tokens alone.

    Attributes:
        family: its name in the manifest.
    """

    family: ClassVar[str]

    @property
    def numbers(self) -> BackboneNumbers:
        """What the manifest says of it."""
        raise NotImplementedError

    @property
    def last_block(self) -> nn.Module | None:
        """The block that re-encoded regions pass once more: called with x and a token mask, it returns x first.

        None where tokens cannot pass it again, after an output projection or a rotation for example.
        """
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how it was made of its weights."""
        return ()

    @property
    def image_size(self) -> int:
        """S, the side of the square input in pixels."""
        return self.numbers.image_size

    @property
    def output_dim(self) -> int:
        """D, the width of the tokens."""
        return self.numbers.output_dim

    def manifest_entry(self, name: str, bundle: BundleNumbers) -> BackboneConfig:
        """Return what the manifest says of the backbone.

        Args:
            name: its published name.
        """
        numbers = self.numbers
        return BackboneConfig(
            family=self.family,
            name=name,
            text_space=bundle.text_space,
            embed_dim=numbers.embed_dim,
            output_dim=numbers.output_dim,
            depth=numbers.depth,
            num_heads=numbers.num_heads,
            patch_size=numbers.patch_size,
            attention_heads=numbers.attention_heads,
            max_batch_size=bundle.max_images,
            tokens=numbers.tokens,
            preprocessing=Preprocessing(
                image_size=numbers.image_size,
                resize_short_side=bundle.resize_short_side,
                mean=numbers.mean,
                std=numbers.std,
                has_alpha=numbers.has_alpha,
            ),
        )


class DecoderModel(nn.Module):
    """A decoder of one kind, as the modules that its graphs are made of.

    Attributes:
        kind: its name in the manifest.
    """

    kind: DecoderKind

    @property
    def prefix_width(self) -> int:
        """D, the width of the vectors that it decodes."""
        raise NotImplementedError

    def prepare_for(self, device: Device, rounds_weights: bool = False) -> None:
        """Compute from now on in the form that is fastest on a device; the results stay the same.

        Args:
            rounds_weights: whether the weights of products will be rounded, so that the form must bear that.
        """

    def manifest_entry(self, numbers: BundleNumbers) -> DecoderConfig:
        """Return what the manifest says of the decoder."""
        raise NotImplementedError
