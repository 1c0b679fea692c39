"""What keeps the hub from giving what is asked of it: one line that says what is wrong, and what mends it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

from runtime.errors import BundleError
from runtime.hub.names import HubName

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_OF_THE_NETWORK = (ConnectionError, TimeoutError, socket.gaierror)
_OF_AN_ANSWER = (json.JSONDecodeError, TypeError, KeyError, AttributeError)
"""Raised where an answer has another form than the hub's."""
NO_FOLDER = "no such folder here, and "
"""Begins the message where a mistyped path is as likely as a wrong name."""


@contextmanager
def hub_errors(name: HubName) -> Iterator[None]:
    """Turn what huggingface_hub raises, and the library that it asks by, into one line.

    Raises:
        BundleError: in its place.
    """
    try:
        yield
    except BundleError:
        raise
    except Exception as error:  # of that HTTP library, of which each version has another
        raise BundleError(f"{name}: {_reason(name, error)}") from error


def _reason(name: HubName, error: BaseException) -> str:
    """Return what went wrong, and what mends it."""
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(name, error, endpoint)
    if isinstance(error, errors.OfflineModeIsEnabled):
        if name.is_certain:
            return "HF_HUB_OFFLINE keeps the hub from being asked; unset it"
        return f"{NO_FOLDER}HF_HUB_OFFLINE keeps the hub from being asked for what is not in the cache; unset it once"
    if isinstance(error, _OF_AN_ANSWER):
        return f"{endpoint} gave an answer that is none of a hub's; is HF_ENDPOINT right?"
    if isinstance(error, ValueError):  # what was asked for is refused before it is sent
        return " ".join(str(error).split())
    if isinstance(error, OSError) and not isinstance(error, _OF_THE_NETWORK):
        return _failure_to_write(error)
    if name.is_certain:
        return f"{endpoint} cannot be reached: {_first_line(error)}; try again with the network"
    return (
        f"{NO_FOLDER}{endpoint}, which is asked for what is not in the cache, cannot be reached: "
        f"{_first_line(error)}; try again with the network"
    )


def _failure_to_write(error: OSError) -> str:
    if error.errno is None:  # huggingface_hub's own: not all of a file has come
        return f"{_first_line(error)}; try again"
    return (
        f"{error.filename or 'a file'}: cannot be written: {error.strerror}; "
        "set XDG_CACHE_HOME to a folder of your own, with room for the bundle"
    )


def _refusal(name: HubName, error: HfHubHTTPError, endpoint: str) -> str:
    """Return why the hub answered with an error."""
    from huggingface_hub import errors

    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return f"its owner must let you in: ask at {endpoint}/{name.repository}, and set HF_TOKEN, or run hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        no_folder = "" if name.is_certain else NO_FOLDER
        return (
            f"{no_folder}no such repository at {endpoint}, or a private one; if you may read it, set HF_TOKEN, or run "
            "hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no branch, tag or commit {name.revision!r}"
    if status == HTTPStatus.UNAUTHORIZED:
        return f"{endpoint} wants a token that it knows (401); set HF_TOKEN, or run hf auth login"
    if status == HTTPStatus.FORBIDDEN:
        return f"{endpoint} forbids it (403); the token in HF_TOKEN must have the right to do that"
    return f"{endpoint} answered {status}: {_first_line(error)}; try again later"


def _first_line(said: object) -> str:
    return next((line.strip() for line in str(said).splitlines() if line.strip()), type(said).__name__)
