"""The shapes that TensorRT plans of a bundle's graphs accept: one profile for each use.

`runtime.bundle.graph_io` has the inputs; here their dynamic axes get sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from runtime.backends.tensorrt.build import Profile
from runtime.bundle import EngineName, Manifest, Shape, ShapeRange
from runtime.bundle.engine_io import engine_io, fixed_sizes
from runtime.bundle.graph_io import (
    IMAGES,
    PROMPT_TOKENS,
    REENCODER,
    REGION_TOKENS,
    REGIONS,
    GraphIo,
    reencoder_batches,
)

BATCH_SIZES = (1, 4, 16, 64, 256)
"""Numbers of captions that are worth a profile, and a captured graph, of their own."""


def batch_sizes(max_regions: int) -> tuple[int, ...]:
    """Return the sizes of `BATCH_SIZES` below a largest one, and that one."""
    return (*(rows for rows in BATCH_SIZES if rows < max_regions), max_regions)


def profiles_of(manifest: Manifest) -> dict[EngineName, list[Profile]]:
    """Return the profiles of every engine of a bundle."""
    return {name: engine_profiles(name, manifest) for name in manifest.engines}


def engine_profiles(name: EngineName, manifest: Manifest) -> list[Profile]:
    """Return the profiles of one engine."""
    profiles: Mapping[EngineName, Callable[[Manifest], list[Profile]]] = {
        "backbone": _backbone_profiles,
        "reencoder": _reencoder_profiles,
        "mapping": _mapping_profiles,
        "prefill": _prefill_profiles,
        "decoder": _decoder_profiles,
        "beam_decoder": _beam_decoder_profiles,
    }
    return profiles[name](manifest)


def _backbone_profiles(manifest: Manifest) -> list[Profile]:
    """Return profiles for single images, which video brings, and for up to as many as run at once."""
    most, sizes, io = manifest.backbone.max_batch_size, fixed_sizes(manifest), engine_io("backbone", manifest)
    alone = _range(io, sizes, {IMAGES: (1, 1, 1)})
    return [alone] if most == 1 else [alone, _range(io, sizes, {IMAGES: (1, most, most)})]


def _decoder_profiles(manifest: Manifest) -> list[Profile]:
    """Return a profile of fixed shapes for each batch size, which leaves nothing to choose at run time."""
    io = engine_io("decoder", manifest)
    return [_range(io, fixed_sizes(manifest), {REGIONS: (rows,) * 3}) for rows in manifest.decoder.batch_sizes]


def _beam_decoder_profiles(manifest: Manifest) -> list[Profile]:
    """Return one profile for any number of rows: beams leave the batch as their regions are done."""
    most = manifest.decoder.batch_sizes[-1]
    io = engine_io("beam_decoder", manifest)
    return [_range(io, fixed_sizes(manifest), {REGIONS: (1, most, most)})]


def _mapping_profiles(manifest: Manifest) -> list[Profile]:
    io, fixed = engine_io("mapping", manifest), fixed_sizes(manifest)
    return [_range(io, fixed, {REGIONS: rows}) for rows in _up_to_each(manifest.decoder.batch_sizes)]


def _prefill_profiles(manifest: Manifest) -> list[Profile]:
    """Return profiles for prompts of every length; batches are not padded to these sizes, as they are read once."""
    assert manifest.decoder.prompt is not None
    io, fixed, most = engine_io("prefill", manifest), fixed_sizes(manifest), manifest.decoder.prompt.max_tokens
    return [
        _range(io, fixed, {REGIONS: rows, PROMPT_TOKENS: (1, most, most)})
        for rows in _up_to_each(manifest.decoder.batch_sizes)
    ]


def _up_to_each(batch_sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return the least, best and most rows for batches of up to each size, the smallest first: it is taken."""
    return [(1, rows, rows) for rows in batch_sizes]


def _reencoder_profiles(manifest: Manifest) -> list[Profile]:
    """Return a profile for each kind of run, the one of the smallest regions first: the first that fits is taken."""
    batches = reencoder_batches(manifest.backbone.tokens.num_tokens, manifest.decoder.batch_sizes[-1])
    fixed = fixed_sizes(manifest)
    return [
        _range(REENCODER, fixed, {REGIONS: (1, regions, regions), REGION_TOKENS: (1, tokens, tokens)})
        for regions, tokens in reversed(batches)
    ]


def _range(io: GraphIo, fixed: Mapping[str, int], dynamic: Mapping[str, tuple[int, int, int]]) -> Profile:
    """Return the shapes of all inputs with dynamic axes, for the min, opt and max sizes of those axes."""

    def shape(axes: tuple[str | int, ...], point: int) -> Shape:
        return tuple(
            axis if isinstance(axis, int) else dynamic[axis][point] if axis in dynamic else fixed[axis] for axis in axes
        )

    return {
        spec.name: ShapeRange(min=shape(spec.axes, 0), opt=shape(spec.axes, 1), max=shape(spec.axes, 2))
        for spec in io.inputs
        if any(axis in dynamic for axis in spec.axes)
    }
