"""`patchcaption serve`: captions over HTTP, and a page."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from functools import partial
from pathlib import Path

from runtime.cli import exits
from runtime.cli.bundle_arguments import add_bundle_argument
from runtime.cli.captioner_arguments import add_captioner_flags, load_captioner
from runtime.errors import OptionError, PatchcaptionError
from runtime.serving.http.settings import DEFAULT_WORKERS, LOOPBACK, Access, ServiceLimits
from runtime.system.standard_streams import show

_FIX = "pip install 'patchcaption[serve]'"
_LIMITS = {
    "bytes": ("--max-bytes", "of a request's body"),
    "pixels": ("--max-pixels", "of an image"),
    "regions": ("--max-regions", "of a request, times their beams"),
    "crops": ("--max-crops", "of a request; each is encoded by itself"),
    "queue": ("--queue", "requests that are answered or wait at a time"),
    "queue_bytes": ("--queue-bytes", "of their bodies together"),
    "seconds": ("--timeout", "seconds for a request, its body included"),
    "feature_bytes": ("--feature-bytes", "of the feature maps that are kept, with their images"),
    "feature_seconds": ("--feature-seconds", "seconds for which a feature map that nobody asks is kept"),
}
"""The flag of each field of `ServiceLimits`, and its help."""


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.set_defaults(run=run_serve)
    add_bundle_argument(parser)
    parser.add_argument("--host", default=LOOPBACK.host, help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default: %(default)s)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="clients must send the token in it")
    parser.add_argument(
        "--no-auth", action="store_true", help="let other machines ask without a token, where --host is not this one"
    )
    parser.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="another name of this machine; repeatable"
    )
    parser.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="let pages of this origin ask; repeatable"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=DEFAULT_WORKERS,
        metavar="N",
        help="images encoded at a time (default: %(default)s)",
    )
    _add_limits(parser)
    add_captioner_flags(parser)


def run_serve(options: argparse.Namespace) -> int:
    """Serve the bundle until a signal ends it; requests that have come are answered first."""
    try:
        from runtime.serving.http.app import create_app
        from runtime.serving.http.connections import bind
        from runtime.serving.http.server import serve
    except ModuleNotFoundError as error:
        raise PatchcaptionError(f"serve: {error}: {_FIX}") from None
    access = Access.of(
        options.host,
        options.token_file,
        is_open=options.no_auth,
        names=tuple(options.allowed_host),
        origins=tuple(options.cors),
    )
    limits = _limits_of(options)
    with closing(_bound(options, bind)) as bound, load_captioner(options) as captioner:
        app = create_app(captioner, access, limits, options.workers)
        said = f"serving {options.bundle} ({captioner.backend.name}) on {_address(options.host, bound)}"
        serve(app, limits, bound, partial(show, said, partial(print, flush=True)))
    return exits.DONE


def _add_limits(parser: argparse.ArgumentParser) -> None:
    for field in fields(ServiceLimits):
        flag, help = _LIMITS[field.name]
        parser.add_argument(
            flag,
            dest=f"limit_{field.name}",
            type=type(field.default),
            default=field.default,
            metavar="N",
            help=f"{help} (default: %(default)s)",
        )


def _limits_of(options: argparse.Namespace) -> ServiceLimits:
    try:
        return ServiceLimits(**{name: getattr(options, f"limit_{name}") for name in _LIMITS})
    except OptionError as error:
        name, _, rest = str(error).partition(":")
        raise OptionError(f"{_LIMITS[name][0]}:{rest}") from None


def _bound(options: argparse.Namespace, bind: Callable[[str, int], socket.socket]) -> socket.socket:
    """Return the socket to listen on; before the bundle is loaded, so that what is mistaken is said at once."""
    try:
        return bind(options.host, options.port)
    except (OSError, OverflowError, UnicodeError) as error:  # of a port beyond 65535, of a name that is none
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PatchcaptionError(f"--host {options.host} --port {options.port}: cannot listen there: {reason}") from None


def _address(host: str, bound: socket.socket) -> str:
    name = f"[{host.strip('[]')}]" if ":" in host else host
    return f"http://{name}:{bound.getsockname()[1]}"
