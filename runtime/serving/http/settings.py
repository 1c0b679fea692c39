"""What a service allows: how much of everything, and whom."""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import OptionError, PatchcaptionError
from runtime.serving.limits import InputLimits

DEFAULT_WORKERS = 2
"""Threads that encode images."""
_MIN_TOKEN = 16
"""Characters of a token: fewer can be guessed."""
_TOKEN = re.compile(r"[\x21-\x7e]+")
_HOST_HEADER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:\d*)?")


@dataclass(frozen=True)
class ServiceLimits(InputLimits):
    """How much a service takes, beside what a single request may ask for.

    Attributes:
        queue: requests that are answered or wait at a time.
        queue_bytes: of their bodies together.
        seconds: from a request's first byte to its answer.
        feature_bytes: of the feature maps that are kept, with their images.
        feature_seconds: for which one that nobody asks is kept.

    Raises:
        OptionError: one is no number from 1 on.
    """

    queue: int = 128
    queue_bytes: int = 256 * 2**20
    seconds: float = 30.0
    feature_bytes: int = 512 * 2**20
    feature_seconds: float = 600.0


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        host: the address that the service listens on.
        token: what ``Authorization: Bearer`` must say; None for no such header.
        names: other names and addresses of this machine that the Host header may give.
        origins: of pages elsewhere that may ask ("https://example.org"), by CORS.
    """

    host: str = "127.0.0.1"
    token: str | None = None
    names: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        host: str,
        token_file: Path | None = None,
        *,
        is_open: bool = False,
        names: tuple[str, ...] = (),
        origins: tuple[str, ...] = (),
    ) -> Access:
        """Return the access of a service that listens on an address.

        Args:
            token_file: a file that holds the token alone.
            is_open: whether other machines may ask without a token.

        Raises:
            OptionError: the address can be reached from other machines, and there is no token; or there are both.
            PatchcaptionError: the file cannot be read, or what it holds is no token.
        """
        if token_file is not None and is_open:
            raise OptionError("--token-file and --no-auth exclude each other")
        if token_file is None and not is_open and not is_loopback(host):
            raise OptionError(
                f"--host {host}: other machines can reach it; give a --token-file that clients must know, or say "
                "--no-auth"
            )
        return cls(host, None if token_file is None else _read_token(token_file), names, origins)

    def is_token(self, given: str) -> bool:
        """Return whether a client knows the token, in a time that does not depend on how much of it."""
        return hmac.compare_digest(given.encode("utf-8", "replace"), (self.token or "").encode())

    def is_own_host(self, header: str) -> bool:
        """Return whether a Host header names this service.

        It is how a page elsewhere whose name leads to this machine (DNS rebinding) is told from our own. A literal
        address cannot be such a name.
        """
        found = _HOST_HEADER.fullmatch(header.strip())
        if found is None:
            return False
        name = found[1].strip("[]").rstrip(".").lower()
        own = {self.host.strip("[]").lower(), *(one.strip("[]").lower() for one in self.names)}
        if name in own:
            return True
        if is_loopback(self.host):
            return is_loopback(name)
        return _is_wildcard(self.host) and (_is_address(name) or name in ("localhost", socket.gethostname().lower()))


LIMITS = ServiceLimits()
"""What a service allows that was told nothing else."""
LOOPBACK = Access()
"""This machine alone, without a token."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    if host.lower() == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host.strip("[]")).is_loopback


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _is_wildcard(host: str) -> bool:
    return _is_address(host) and ipaddress.ip_address(host.strip("[]")).is_unspecified


def _read_token(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise PatchcaptionError(f"--token-file {file}: cannot be read: {reason}") from None
    if len(token) < _MIN_TOKEN or not _TOKEN.fullmatch(token):
        raise PatchcaptionError(
            f"--token-file {file}: expected one word of {_MIN_TOKEN} or more ASCII letters, digits and signs, got "
            f"{len(token)} characters; make one: openssl rand -hex 32"
        )
    return token
