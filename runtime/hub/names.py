"""What the user wrote for a bundle: the path of a folder, or the name of a repository on the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace

from runtime.errors import BundleError
from runtime.system.files import is_folder

BUNDLE_FORMS = "a folder, or OWNER/NAME[@REVISION] of the Hugging Face hub"
"""What a bundle is named by, for the help of commands."""
_SCHEME = "hf://"
_PART = "[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_NAME = re.compile(f"(?P<repository>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?")
_MAX_REPOSITORY, _MAX_REVISION = 96, 200
_UNUSED = ("--", "..")
"""What no repository has in its name; the first separates owner and name in the cache."""
_BUILDS = "engines"
"""The folder that bundles are built in by default: what is missing there is not asked of the hub."""
_FILES = (".yaml", ".yml", ".json")
"""The ends of checkpoints' names that are paths."""
_DEFAULT_REVISION = "main"


@dataclass(frozen=True)
class HubName:
    """A revision of a repository on the hub.

    Attributes:
        repository: "owner/name".
        revision: a branch, a tag or a commit.
        is_certain: whether no folder can have been meant.
    """

    repository: str
    revision: str = _DEFAULT_REVISION
    is_certain: bool = field(default=False, compare=False)

    @property
    def is_default(self) -> bool:
        """Whether no revision was asked for."""
        return self.revision == _DEFAULT_REVISION

    def __str__(self) -> str:
        return self.repository if self.is_default else f"{self.repository}@{self.revision}"


def hub_name(bundle: str | os.PathLike[str]) -> HubName | None:
    """Return the repository that the user means; None for a folder of this machine.

    A folder wins: a name is taken for a path if that, or its first part, is there. ``hf://owner/name`` is a repository
    in any case, and a `Path` a folder.

    Raises:
        BundleError: it is neither a path nor a name, or what begins with ``hf://`` is no name of a repository.
    """
    if not isinstance(bundle, str):
        if not isinstance(bundle, os.PathLike) or not isinstance(os.fspath(bundle), str):
            raise BundleError(f"bundle: expected a folder or a name of the hub, got {type(bundle).__name__}")
        return None
    if bundle.startswith(_SCHEME):
        return repository_name(bundle)
    first = bundle.partition("/")[0]
    if first == _BUILDS or os.path.lexists(bundle) or is_folder(first):
        return None
    return _parse(bundle)


def repository_name(text: str) -> HubName:
    """Return the repository that is meant, whatever folders there are; ``hf://`` may be before it.

    Raises:
        BundleError: it is no name of a repository.
    """
    name = _parse(text.removeprefix(_SCHEME))
    if name is None:
        raise BundleError(f"{text!r}: expected a repository of the hub, OWNER/NAME or OWNER/NAME@REVISION")
    return replace(name, is_certain=True)


def repository_of_checkpoint(checkpoint: str) -> str | None:
    """Return the repository that a bundle's checkpoint is of, by what the manifest calls it; None for any other."""
    name = None if checkpoint.endswith(_FILES) else _parse(checkpoint)
    return None if name is None else name.repository


def _parse(text: str) -> HubName | None:
    match = _NAME.fullmatch(text)
    if match is None or any(part in text for part in _UNUSED):
        return None
    repository, revision = match["repository"], match["revision"] or _DEFAULT_REVISION
    if len(repository) > _MAX_REPOSITORY or len(revision) > _MAX_REVISION or repository.endswith(".git"):
        return None
    return HubName(repository, revision)
