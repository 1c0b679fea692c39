"""The backbone that a Patch-ioner configuration asks for, by the tables of the families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from export.checkpoint import CheckpointError
from export.models import BackboneModel
from export.readers.backbone_family import (
    AnyFamily,
    Architecture,
    BackboneRequest,
    FamilyOptions,
    Settings,
    WeightFile,
    published_banks,
)
from export.readers.families import BACKBONE_FAMILIES, architecture_names, recognize_family
from export.readers.hub import FileRequest
from export.readers.weight_files import read_weights
from export.text_spaces import TEXT_SPACES, TextSpace, text_space

PUBLISHED = "published"
"""This project's own key, and the option of families that it becomes: reproduce a row that rests on a fault."""

_DEFAULT_SIZE = 518


@dataclass(frozen=True)
class ConfiguredBackbone:
    """What a configuration says of its backbone.

    Attributes:
        name: of its architecture, or what the configuration calls it.
        family, architecture: None for weights that were never published, whose family shows when they are read.
        settings: all of the configuration.
        source: the configuration, for messages.
    """

    name: str
    family: AnyFamily | None
    architecture: Architecture | None
    settings: Settings
    source: str

    @property
    def is_as_published(self) -> bool:
        """Whether a published row is to be reproduced, faults included."""
        return bool(self.settings.get(PUBLISHED))

    @property
    def text_space(self) -> str | None:
        """The name of the space of its published banks and decoders; None where there is none."""
        return self.architecture.text_space if self.architecture else None

    def space_called(self, name: str, width: int) -> TextSpace:
        """Return how banks of a space are used with it.

        Args:
            name: of the space; one that was never published goes by the rules of the backbone's own.
            width: D, the width of its tokens.
        """
        if name in TEXT_SPACES and name != self.text_space:
            return TEXT_SPACES[name]
        if self.family is None or self.architecture is None:
            return text_space(None, width)
        return self.family.space_of(self.architecture, self._options(self.family))

    @property
    def image_size(self) -> int:
        """S, the side of its input in pixels."""
        asked, crop = self.own_size, self.settings.get("crop_dim")
        if asked is not None and crop is not None and asked != crop:
            raise CheckpointError(f"{self.source}: crop_dim: expected {asked}, the size that is set for it, got {crop}")
        default = self.architecture.default_size if self.architecture else _DEFAULT_SIZE
        return whole_number(self.settings, "crop_dim", asked or default, self.source)

    @property
    def own_size(self) -> int | None:
        """The size that the family's own settings ask for."""
        return None if self.family is None else _asked(self.family.size_of, self.settings, self.source)

    @property
    def banks(self) -> tuple[str, ...]:
        """The names that its published bank may have, with ``{captions}`` and ``{rows}`` in them."""
        if self.family is None or self.architecture is None:
            unpublished = Architecture(output_dim=0, depth=0, files=())
            return published_banks(self.settings, unpublished)
        try:
            return self.family.banks_of(self.settings, self.architecture)
        except CheckpointError as error:
            raise CheckpointError(f"{self.source}: {error}") from None

    def requests(self, repository: str | None = None) -> list[FileRequest]:
        """Return the requests for the files of its weights.

        Args:
            repository: the hub's, which has the files that the configuration names.
        """
        files = self.architecture.files if self.architecture else ()
        named = self.settings.get("dino_weights")
        if named is not None:
            names = [str(name) for name in named] if isinstance(named, list) else [str(named)]
            if not 1 <= len(names) <= max(1, len(files)):
                raise CheckpointError(
                    f"{self.source}: dino_weights: expected 1 to {max(1, len(files))} names of files, got {len(names)}"
                )
            requests = [
                FileRequest(
                    "dino_weights, the backbone", (name,), ((repository, Path(name).name),) if repository else ()
                )
                for name in names
            ]
            return requests + [self._request(file) for file in files[len(names) :]]
        own = None if self.family is None else _asked(self.family.weights_of, self.settings, self.source)
        first = [] if own is None else [replace(self._request(files[0]), names=(own,), sources=())]
        return first + [self._request(file) for file in files[len(first) :]]

    def _request(self, file: WeightFile) -> FileRequest:
        folders = [repository.split("/")[1] for repository in file.repositories]
        names = (file.name, *folders, *(f"{folder}.safetensors" for folder in folders))
        hub = f"; also as {' or '.join(file.repositories)} on the hub" if file.repositories else ""
        origin = hub or (f"; {file.origin}" if file.origin else "")
        sources = tuple((repository, name) for repository in file.repositories for name in file.hub_names)
        return FileRequest(f"{self.name}, the backbone{origin}", names, sources)

    def read(self, paths: list[Path]) -> BackboneModel:
        """Make the model of its files, those of `requests`.

        Raises:
            CheckpointError: they do not fit, or a setting has no such value.
        """
        files = self.architecture.files if self.architecture else ()
        prefixes = [file.prefix for file in files] or [""]
        state: dict[str, Tensor] = {}
        for prefix, path in zip(prefixes, paths, strict=True):
            state |= {f"{prefix}{name}": value for name, value in read_weights(path).items()}
        source = ", ".join(map(str, paths))
        family = self.family or recognize_family(state, source)
        request = BackboneRequest(self.image_size, source, self.architecture, self._options(family))
        return family.from_state(state, request)

    def _options(self, family: AnyFamily) -> FamilyOptions:
        options = dict(_asked(family.options_of, self.settings, self.source))
        if self.is_as_published and PUBLISHED in family.options.model_fields:
            options.setdefault(PUBLISHED, True)
        return family.read_options(options, self.source)


def configured_backbone(settings: Settings, source: str) -> ConfiguredBackbone:
    """Return the backbone that a configuration asks for, by a family's own keys or by ``dino_model``.

    Raises:
        CheckpointError: it asks for none, for one that is not known, or for two.
    """
    name, chosen = settings.get("dino_model"), _chosen(settings, source)
    if len(chosen) > 1:
        known = frozenset({"dino_model"}).union(*(family.settings for family, _ in chosen))
        given = ", ".join(key for key in settings if key in known and settings[key])
        families = " and ".join(family.name for family, _ in chosen)
        raise CheckpointError(f"{source}: {given}: they ask for backbones of {families}; leave those of one")
    if chosen:
        ((family, architecture),) = chosen
        return ConfiguredBackbone(architecture, family, family.architectures[architecture], settings, source)
    if name is None:
        raise CheckpointError(f"{source}: dino_model is missing; it names the backbone, or a key such as invite_config")
    if "dino_weights" not in settings:
        raise CheckpointError(f"{source}: dino_model: expected one of {', '.join(architecture_names())}, got {name!r}")
    return ConfiguredBackbone(str(name), None, None, settings, source)


def _chosen(settings: Settings, source: str) -> list[tuple[AnyFamily, str]]:
    """Return each family that settings ask for, with the name of its architecture."""
    name, chosen = settings.get("dino_model"), []
    for family in BACKBONE_FAMILIES:
        found = _asked(family.chosen_by, settings, source) or (family.find(name) if isinstance(name, str) else None)
        if found is not None:
            chosen.append((family, found))
    return chosen


def _asked(hook: Callable[[Settings], Any], settings: Settings, source: str) -> Any:
    """Return what a family's function makes of settings; its errors name the configuration."""
    try:
        return hook(settings)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


def whole_number(settings: Settings, key: str, default: int, source: object, at_least: int = 1) -> int:
    """Return a whole number of a configuration.

    Raises:
        CheckpointError: it is none, or too small.
    """
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise CheckpointError(f"{source}: {key}: expected a whole number of at least {at_least}, got {value!r}")
    return value
