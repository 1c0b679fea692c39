"""Builds the bundle of a published checkpoint, in a process of its own: the exporter is no part of the runtime."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from runtime.errors import BundleError
from runtime.hub.cache import damaged_file
from runtime.hub.client import HubListing
from runtime.hub.messages import note

_ROOT = Path(__file__).parents[2]
"""Where the packages of this version are: a clone, or site-packages."""
_ERROR = re.compile(rb"(?:^|(?<=[\r\n]))(?:\x1b\[[0-9;]*m)*(?:patchcaption: )?error: ")
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BLOCK_BYTES = 2**16
_END_S = 30


def build_bundle(listing: HubListing, target: Path, lock_descriptor: int) -> Path:
    """Build the bundle of a commit's checkpoint with the build's default options; return ``target``, where it is put.

    Args:
        target: a folder of the cache, which may have a damaged bundle.
        lock_descriptor: of the repository's lock, which the build keeps, should this process be killed.

    Raises:
        BundleError: it cannot be built; the message is the build's.
    """
    if not sys.executable:
        raise BundleError(f"{listing}: a checkpoint; build it first: {_by_hand(listing)}")
    note(f"{listing}: a checkpoint, of which a bundle is built in {target}; that takes minutes, once")
    if target.exists() and damaged_file(target) is not None:
        shutil.rmtree(target)
    process = _start(listing, target, lock_descriptor)
    assert process.stderr is not None
    with process:
        try:
            reason = _relay(process.stderr)
            code = process.wait()
        except BaseException:
            _end(process)
            raise
    if code or not target.is_dir():
        raise BundleError(
            f"{listing}: its checkpoint was not built: {reason or _ending(code)}; by hand: {_by_hand(listing)}"
        )
    return target


def _start(listing: HubListing, target: Path, lock_descriptor: int) -> subprocess.Popen[bytes]:
    arguments = ["build", f"{listing.repository}@{listing.commit}", "--out", str(target)]
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "patchcaption", *arguments],
            cwd=target.parent,  # where no module of the user's is that Python would find first
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(lock_descriptor,),
        )
    except OSError as error:
        raise BundleError(
            f"{listing}: a checkpoint, and {sys.executable} cannot be run to build it: {error.strerror}; "
            f"by hand: {_by_hand(listing)}"
        ) from None


def _by_hand(listing: HubListing) -> str:
    return f"patchcaption build {listing.repository}@{listing.commit[:12]} --out FOLDER"


def _environment() -> dict[str, str]:
    """Return this environment, with this version's packages, and the bar of a terminal where stderr is one."""
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(_ROOT)])}
    with suppress(AttributeError, ValueError):  # no stderr, or a closed one
        if sys.stderr.isatty():
            columns, lines = shutil.get_terminal_size()
            environment |= {"FORCE_COLOR": "1", "COLUMNS": str(columns), "LINES": str(lines)}
    return environment


def _relay(pipe: IO[bytes]) -> str:
    """Pass on what a process says on stderr until its end, but its error; return that, as one line."""
    said, failed = b"", False
    while block := os.read(pipe.fileno(), _BLOCK_BYTES):
        said += block
        if failed:
            continue
        found = _ERROR.search(said)
        failed = found is not None
        end = len(said) if found is None else found.start()
        _pass_on(said[:end])
        said = said[end:]
    text = _COLOURS.sub("", said.decode(errors="replace"))
    return " ".join(text.partition("error: ")[2].split())


def _pass_on(block: bytes) -> None:
    with suppress(OSError, ValueError, AttributeError):  # nobody is there to be told
        sys.stderr.write(block.decode(errors="replace"))
        sys.stderr.flush()


def _ending(code: int) -> str:
    if code < 0:
        return f"the build was killed by signal {-code}; had it too little memory?"
    return f"the build ended with the exit code {code}, and has said why above"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a build that is not waited for any more; it removes what it has begun."""
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
