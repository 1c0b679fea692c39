"""What a family of backbones must say, so that the rest of the project needs no branch for it.

A family is a model (`export/models/`), a reader beside this file that defines a `BackboneFamily`, and a line in
`export/readers/families.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from export.checkpoint import CheckpointError
from export.models import BackboneModel
from export.text_spaces import TALK2DINO, TextSpace, text_space

StateDict: TypeAlias = dict[str, Tensor]
Shapes: TypeAlias = dict[str, tuple[int, ...]]
Settings: TypeAlias = Mapping[str, Any]
"""The keys and values of a Patch-ioner configuration."""


class FamilyOptions(BaseModel):
    """What a user may choose of a family beside the size; each has a default, which is the right thing.

    They are written behind a seeded name (``seeded:siglip2_base_patch16,patches=mlp``), and follow from the settings of
    a configuration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class WeightFile:
    """One file of a backbone's published weights.

    Attributes:
        name: as it is published.
        repository: the hub's repository that has the same weights; None where there is none.
        seed: stands before the names of its made-up weights.
        prefix: stands before its names in the state dict that the files make together.
        mirrors: other repositories of the hub that have them.
        hub_names: what the file may be called in those repositories, likeliest first.
        origin: where it is to be had, for messages, if no repository has it.
    """

    name: str
    repository: str | None
    seed: str
    prefix: str = ""
    mirrors: tuple[str, ...] = ()
    hub_names: tuple[str, ...] = ("model.safetensors",)
    origin: str = ""

    @property
    def repositories(self) -> tuple[str, ...]:
        """All repositories of the hub that have it, likeliest first."""
        return (*((self.repository,) if self.repository else ()), *self.mirrors)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A published backbone. Families add their own numbers.

    Attributes:
        output_dim: D, the width of its tokens.
        depth: the number of its blocks.
        files: where its weights are.
        text_space: the space of its published banks and decoders (`export.text_spaces`); None where none is published.
        default_size: the side of its input in pixels, where nothing else is asked for.
        aliases: other names of it, in other libraries and on the hub.
        scales: factors on made-up weights, by the ends of their names: what keeps random blocks from degenerating where
            no layer scale does.
    """

    output_dim: int
    depth: int
    files: tuple[WeightFile, ...]
    text_space: str | None = None
    default_size: int = 224
    aliases: tuple[str, ...] = ()
    scales: Mapping[str, float] = field(default_factory=dict)


def published_space(architecture: Architecture, _options: FamilyOptions | None = None) -> TextSpace:
    """Return the text space of an architecture, as `export.text_spaces` has it."""
    return text_space(architecture.text_space, architecture.output_dim)


ArchitectureT = TypeVar("ArchitectureT", bound=Architecture)
OptionsT = TypeVar("OptionsT", bound=FamilyOptions)


@dataclass(frozen=True)
class BackboneRequest(Generic[ArchitectureT, OptionsT]):
    """What a family makes a model for.

    Attributes:
        image_size: S, side of the input in pixels.
        source: names the weights in messages.
        architecture: what they are expected to be; None takes what is there.
    """

    image_size: int
    source: str
    architecture: ArchitectureT | None
    options: OptionsT


def bank_name(prefix: str, middle: str, tower: str) -> str:
    """Return what the file of a published bank is called (published-system.md, section 7).

    Args:
        prefix: names the system, "clip-" for example.
        middle: of the name, "-B16" for example.
        tower: the text tower, "ViT-B/16" for example.

    Returns:
        the name, with ``{captions}`` and ``{rows}`` for what else it tells.
    """
    return f"{prefix}{{captions}}_text_embeddings{middle}-{tower.replace('/', '.')}-{{rows}}.h5"


def published_banks(settings: Settings, architecture: Architecture) -> tuple[str, ...]:
    """Return what a bank is called: as Talk2DINO's in a space of its, else as that of a plain CLIP."""
    tower = str(settings.get("clip_model_name") or "ViT-B/16")
    if text_space(architecture.text_space, architecture.output_dim).tower != TALK2DINO:
        return (bank_name("clip-", "", tower),)
    attention, projection = settings.get("talk2dino_attn_type", "qkv"), settings.get("use_talk2dino_project")
    middle = "" if attention == "qkv" else f"_{attention}"
    return (bank_name("", middle + (projection if isinstance(projection, str) else "-B16"), tower),)


@dataclass(frozen=True)
class BackboneFamily(Generic[ArchitectureT, OptionsT]):
    """One family of backbones.

    Attributes:
        name: its name in the manifest.
        architectures: its published backbones, by name.
        options: what may be chosen.
        recognizes: returns whether a state dict is of this family, in any of its published layouts.
        from_state: makes a model of a state dict. It raises CheckpointError where that does not fit.
        state_shapes: returns the shapes of a backbone's weights by their published names: (architecture, image size).
        chosen_by: returns the name of the architecture that a configuration's settings choose; None for another family.
            By default that of an architecture by ``dino_model``.
        settings: the keys of a configuration that this family knows.
        options_of: returns the options that follow from a configuration's settings.
        size_of: returns the image size that the family's own settings ask for; None where they say nothing.
        weights_of: returns the name of the file of weights that the family's own settings give, likewise.
        banks_of: returns the names that a published bank may have, likeliest first, as `bank_name` does; a name may
            have `export.readers.hub.ANYTHING` in it.
        space_of: returns how the memory banks of a backbone's text space are used with it: (architecture, options). By
            default as the space itself says.

    The functions of settings raise CheckpointError where those contradict each other.
    """

    name: str
    architectures: Mapping[str, ArchitectureT]
    options: type[OptionsT]
    recognizes: Callable[[StateDict], bool]
    from_state: Callable[[StateDict, BackboneRequest[ArchitectureT, OptionsT]], BackboneModel]
    state_shapes: Callable[[ArchitectureT, int], Shapes]
    chosen_by: Callable[[Settings], str | None] = lambda _: None
    settings: frozenset[str] = frozenset()
    options_of: Callable[[Settings], Mapping[str, Any]] = lambda _: {}
    size_of: Callable[[Settings], int | None] = lambda _: None
    weights_of: Callable[[Settings], str | None] = lambda _: None
    banks_of: Callable[[Settings, ArchitectureT], tuple[str, ...]] = published_banks
    space_of: Callable[[ArchitectureT, OptionsT], TextSpace] = published_space

    def find(self, name: str) -> str | None:
        """Return the name of the architecture that is called so, here, in another library or on the hub.

        A repository on the hub stands for a backbone all of which is in it.
        """
        for known, architecture in self.architectures.items():
            repositories = architecture.files[0].repositories if len(architecture.files) == 1 else ()
            if name in (known, *architecture.aliases, *repositories):
                return known
        return None

    def read_options(self, values: Mapping[str, Any], source: str) -> OptionsT:
        """Return the options of named values.

        Raises:
            CheckpointError: an option is not known, or has no such value.
        """
        try:
            return self.options.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                known = ", ".join(self.options.model_fields) or "none"
                raise CheckpointError(f"{source}: {name}: {self.name} has no such option; it has {known}") from None
            raise CheckpointError(f"{source}: {name}: {first['msg'].lower()}, got {first['input']!r}") from None


def check_whole_patches(image_size: int, patch_size: int) -> None:
    """Raise CheckpointError if an input is not whole patches."""
    if image_size <= 0 or image_size % patch_size:
        raise CheckpointError(f"size {image_size}: expected a multiple of the patch size, {patch_size}")


def check_numbers(found: Mapping[str, object], expected: Architecture | None, what: str, source: str) -> None:
    """Raise CheckpointError if weights are of another architecture than the expected one, if there is one.

    Args:
        found: numbers read off the weights, by the names that the architecture has for them.
        what: names what was expected: "a tower", for example.
    """
    if expected is None:
        return
    for name, got in found.items():
        if got != getattr(expected, name):
            raise CheckpointError(f"{source}: expected {what} whose {name} is {getattr(expected, name)}, got {got}")


AnyFamily: TypeAlias = BackboneFamily[Any, Any]
