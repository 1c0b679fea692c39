"""CLIP's towers of images and texts together, for metrics that compare the two.

Weights are those of CLIP ViT-B/32: OpenAI's for CLIP-S, the checkpoint of aimagelab/pacscore for PAC-S.

Shapes: B images or texts, S input side, L tokens of the longest text, D width of the embeddings.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn

from export.checkpoint import CheckpointError
from export.models.clip import CLIP_MEAN, CLIP_STD, ClipBackbone
from export.models.vit import PixelNorm
from export.readers.backbone_family import BackboneRequest, StateDict
from export.readers.clip import ClipOptions, from_state
from export.readers.clip_bpe import pad_tokens
from export.readers.hub import is_repository
from export.readers.pretrained import identify, load_model
from export.readers.weight_files import read_weights
from export.text_towers.base import TowerRequest, move_to
from export.text_towers.clip import CONTEXT, clip_text_transformer, clip_tokenizer
from export.text_towers.transformer import TextTransformer
from runtime.image import Fit, prepare

T = TypeVar("T")

CLIP_WEIGHTS = "openai/clip-vit-base-patch32"
"""CLIP ViT-B/32 on the Hugging Face hub."""
PAC_FILE = "clip_ViT-B-32.pth"
"""What the checkpoint of PAC-S for CLIP ViT-B/32 is called; the README of aimagelab/pacscore says where it lies."""

_BATCH = 64
_PUBLISHED = (768, 32, 224)
"""The width of the image tower's blocks, the patch size and the input side of ViT-B/32."""
_STRAIGHT = str.maketrans("‘’“”", "''\"\"")
_REMEDY = (
    f"expected CLIP ViT-B/32: a folder of transformers, a repository of the hub ({CLIP_WEIGHTS}), or a file in "
    f"OpenAI's layout: ViT-B-32.pt of openai/CLIP on GitHub or, for PAC-S, {PAC_FILE}, which the README of "
    "aimagelab/pacscore on GitHub links to"
)


@dataclass(frozen=True, eq=False)
class ImageTextModel:
    """Towers of images and texts that embed into one space.

    Attributes:
        image_size: S.
        encode_pixels: makes embeddings (B, D) of RGB pixels (B, S, S, 3) uint8.
        encode_texts: makes embeddings (B, D) of texts.
        identity: names the weights, with a digest, and the vocabulary.
        notes: what the user should know about them.
    """

    image_size: int
    encode_pixels: Callable[[Tensor], Tensor]
    encode_texts: Callable[[Sequence[str]], Tensor]
    identity: str
    notes: tuple[str, ...] = ()

    def pixels(self, image: Image.Image) -> Tensor:
        """Return what the image tower takes (S, S, 3) uint8 of an RGB image: the centre, by CLIP's preprocessing."""
        return prepare([_without_far_ends(image)], self.image_size, Fit.CROP)[0][0]

    def embed_pixels(self, pixels: Sequence[Tensor]) -> Tensor:
        """Return embeddings (B, D) float32 of unit length of B arrays of `pixels`, a batch at a time.

        Raises:
            CheckpointError: an embedding is not finite.
        """
        return self._unit([self.encode_pixels(torch.stack(list(batch))) for batch in _batches(pixels)])

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return embeddings (B, D) float32 of unit length of RGB images; errors are those of `embed_pixels`."""
        return self.embed_pixels([self.pixels(image) for image in images])

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings (B, D) float32 of unit length of texts, cut to 77 tokens, a batch at a time.

        Raises:
            CheckpointError: an embedding is not finite.
        """
        return self._unit([self.encode_texts(batch) for batch in _batches(texts)])

    def _unit(self, batches: list[Tensor]) -> Tensor:
        embeddings = torch.cat(batches).float().cpu()
        if not embeddings.isfinite().all():
            raise CheckpointError(f"{self.identity}: expected finite embeddings, got NaN or infinity")
        return F.normalize(embeddings, dim=-1)


def load_image_text_model(weights: str, flag: str, device: str = "cpu") -> ImageTextModel:
    """Load CLIP's two towers, in float32.

    Args:
        weights: a folder of transformers, a repository of the Hugging Face hub, or a file in OpenAI's layout: a
            TorchScript archive, or a state dict, by itself or under "state_dict".
        flag: how the user names the weights, for messages.
        device: where they run, "cpu" for example.

    Raises:
        CheckpointError: they are nowhere, cannot be read or lack a weight, or CLIP's vocabulary is nowhere, or there is
            no such device.
    """
    request = TowerRequest(None, weights, device=device)
    tokenizer = clip_tokenizer(request, CONTEXT)
    try:
        towers = _read_towers(request, flag)
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{flag} ").removeprefix(f"{weights}: ")
        raise CheckpointError(f"{flag} {weights}: {reason}; {_REMEDY}") from None
    return _image_text_model(request, move_to(device, towers), tokenizer)


class _TransformersTowers(nn.Module):
    """The towers of a CLIPModel of transformers.

    Attributes:
        numbers: the width of the image tower's blocks, its patch size and S.
        num_positions: the most tokens of a text.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip
        self.pixel_norm = PixelNorm(CLIP_MEAN, CLIP_STD)
        vision, text = clip.config.vision_config, clip.config.text_config
        self.numbers = (vision.hidden_size, vision.patch_size, vision.image_size)
        self.num_positions = text.max_position_embeddings

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Return embeddings (B, D) of RGB pixels (B, S, S, 3) uint8."""
        seen = self.clip.vision_model(pixel_values=self.pixel_norm(pixels)).pooler_output
        embeddings: Tensor = self.clip.visual_projection(seen)
        return embeddings

    def encode_ids(self, ids: Tensor) -> Tensor:
        """Return embeddings (B, D) of token ids (B, L)."""
        embeddings: Tensor = self.clip.text_projection(self.clip.text_model(input_ids=ids).pooler_output)
        return embeddings


class _OpenaiTowers(nn.Module):
    """The towers of a file in OpenAI's layout; they have the attributes and methods of `_TransformersTowers`."""

    def __init__(self, vision: ClipBackbone, text: TextTransformer) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        config = vision.config
        self.numbers = (config.width, config.patch_size, config.image_size)
        self.num_positions = text.num_positions

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        (tokens,) = self.vision(pixels)
        return tokens[:, 0]

    def encode_ids(self, ids: Tensor) -> Tensor:
        embeddings: Tensor = self.text(ids)
        return embeddings


_Towers: TypeAlias = "_TransformersTowers | _OpenaiTowers"


def _read_towers(request: TowerRequest, flag: str) -> _Towers:
    path = Path(request.weights)
    if not path.exists() and (request.is_file or not is_repository(request.weights)):
        raise CheckpointError(f"{request.weights}: no such file or folder")
    return _read_folder(request, flag) if path.is_dir() or not path.exists() else _read_file(request)


def _read_folder(request: TowerRequest, flag: str) -> _Towers:
    from transformers import CLIPModel

    return _TransformersTowers(load_model(CLIPModel, request.weights, "cpu", flag, "CLIP"))


def _read_file(request: TowerRequest) -> _Towers:
    path, source = Path(request.weights), request.weights
    state = read_weights(path)
    text = clip_text_transformer(state, "quick_gelu", source)
    vision = from_state(state, BackboneRequest(_image_size(state), source, None, ClipOptions()))
    if vision.config.output_dim != text.output_dim:
        raise CheckpointError(
            f"{source}: expected embeddings of one width, got {vision.config.output_dim} of images and "
            f"{text.output_dim} of texts"
        )
    return _OpenaiTowers(vision, text)


def _image_size(state: StateDict) -> int:
    """Return the input side that an image tower's positions were trained for; that of ViT-B/32 where it has none."""
    positions, patches = state.get("visual.positional_embedding"), state.get("visual.conv1.weight")
    if positions is None or patches is None:
        return _PUBLISHED[-1]  # what is missing is told where the tower is made
    return math.isqrt(positions.shape[0] - 1) * patches.shape[-1]


def _image_text_model(request: TowerRequest, towers: _Towers, tokenizer: Tokenizer) -> ImageTextModel:
    tokenizer.enable_truncation(min(CONTEXT, towers.num_positions))

    @torch.inference_mode()
    def encode_pixels(pixels: Tensor) -> Tensor:
        return towers.encode_pixels(pixels.to(request.device))

    @torch.inference_mode()
    def encode_texts(texts: Sequence[str]) -> Tensor:
        return towers.encode_ids(pad_tokens(tokenizer, [_clean(text) for text in texts]).to(request.device))

    return ImageTextModel(
        image_size=towers.numbers[-1],
        encode_pixels=encode_pixels,
        encode_texts=encode_texts,
        identity=identify(request.weights, towers, tokenizer),
        notes=_notes(request.weights, towers.numbers),
    )


def _notes(weights: str, numbers: tuple[int, int, int]) -> tuple[str, ...]:
    if numbers == _PUBLISHED:
        return ()
    width, patch, size = numbers
    return (
        f"{weights} is not CLIP ViT-B/32 (width {width}, patches of {patch} px, {size} px): its scores cannot be "
        "compared with published ones",
    )


def _clean(text: str) -> str:
    """Return a text as CLIP's tokenizer takes it: without HTML's entities, written once or twice, and curly quotes."""
    return html.unescape(html.unescape(text)).translate(_STRAIGHT)


def _without_far_ends(image: Image.Image) -> Image.Image:
    """Return the middle of an image that is longer than 256 times its short side.

    The tower sees a square of it; resized as a whole, it could take gigabytes.
    """
    width, height = image.size
    most = 256 * min(width, height)
    cut_x, cut_y = max(0, width - most) // 2, max(0, height - most) // 2
    return image.crop((cut_x, cut_y, width - cut_x, height - cut_y)) if cut_x or cut_y else image


def _batches(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH))
