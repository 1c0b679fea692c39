"""The command line: `patchcaption caption|batch|video|serve|info|verify|trust|push|pull|tune|doctor`.

Results go to stdout, messages to stderr. Exit codes: 0 done; 1 a bundle, backend or output file is not usable; 2 a
mistake on the command line or in what it names (an image, a region); 130 interrupted; 129 and 143 ended by SIGHUP and
SIGTERM.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import NoReturn

from runtime.cli import exits
from runtime.errors import ImageError, OptionError, PatchcaptionError, RegionError
from runtime.system.signals import Terminated, terminating
from runtime.system.standard_streams import finish_standard_streams, open_standard_streams
from runtime.system.version import __version__

_FLAG, _NEGATIVE = re.compile("--[a-z-]+"), re.compile(r"-[\d.]")
_NONE: Mapping[str, str] = MappingProxyType({})
_COMMANDS: Mapping[str, tuple[str, str]] = {
    "caption": ("caption_command", "caption regions of an image, or the whole of it"),
    "batch": ("batch_command", "caption many images into one file, here or on a cluster"),
    "video": ("video_command", "caption regions of every frame of a video, a camera or a URL"),
    "serve": ("serve_command", "answer over HTTP, for programs in any language, and with a page"),
    "info": ("bundle_commands", "say what a bundle is"),
    "verify": ("bundle_commands", "compare every file of a bundle with its manifest and open its engines"),
    "trust": ("bundle_commands", "trust a bundle's TensorRT plans (they are executable code)"),
    "push": ("hub_commands", "publish a bundle on the Hugging Face hub"),
    "pull": ("hub_commands", "take the newest of a published bundle or checkpoint into the cache"),
    "tune": ("tune_command", "measure what is fastest here and what it costs in quality, and keep the choice"),
    "doctor": ("machine_commands", "say what this machine has, and whether it works"),
}
"""The module of each command, where ``add_NAME`` adds its arguments, and a line of help."""


def main(arguments: Sequence[str] | None = None, others: Mapping[str, str] = _NONE) -> int:
    """Run one command; return its exit code.

    Args:
        arguments: those of the command line by default.
        others: names of commands that the caller runs, and a line of help on each.
    """
    open_standard_streams()
    with terminating():
        try:
            code = _run(arguments, others)
        except KeyboardInterrupt as stop:
            code = _interrupted(stop)
        except SystemExit as stop:  # argparse's, after --help and after mistakes
            code = int(stop.code or 0)
    try:
        finish_standard_streams()
    except PatchcaptionError as error:
        return exits.fail(str(error), code or exits.UNUSABLE)
    return code


def import_command(name: str) -> None:
    """Import what a command needs, which takes seconds; nothing for what is no command."""
    if name in _COMMANDS:
        _adder(name)


def _adder(name: str) -> Callable[[argparse.ArgumentParser], None]:
    """Return the function that adds a command's arguments to a parser."""
    module = import_module(f"runtime.cli.{_COMMANDS[name][0]}")
    adder: Callable[[argparse.ArgumentParser], None] = getattr(module, f"add_{name}")
    return adder


def _run(arguments: Sequence[str] | None, others: Mapping[str, str]) -> int:
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        options = _parser(others, next(iter(arguments), "")).parse_args(_join_negative(arguments))
        return int(options.run(options))
    except (ImageError, OptionError, RegionError) as error:
        return exits.fail(str(error), exits.BAD_INPUT)
    except PatchcaptionError as error:
        return exits.fail(str(error), exits.UNUSABLE)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        return exits.DONE


def _join_negative(arguments: Sequence[str]) -> list[str]:
    """Write a flag and a value that begins with a minus sign and a digit as one, which argparse takes for a flag."""
    joined: list[str] = []
    for argument in arguments:
        if joined and _FLAG.fullmatch(joined[-1]) and _NEGATIVE.match(argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _interrupted(stop: KeyboardInterrupt) -> int:
    if isinstance(stop, Terminated):
        return exits.fail(str(stop), stop.exit_code)
    return exits.fail("interrupted", exits.INTERRUPTED)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all of this command's are."""

    def error(self, message: str) -> NoReturn:
        sys.exit(exits.fail(f"{message}; see {self.prog} --help", exits.BAD_INPUT))


def _parser(others: Mapping[str, str], command: str) -> argparse.ArgumentParser:
    """Return the parser of all commands, and of the arguments of one of them."""
    parser = _Parser(prog="patchcaption", description="Describe any region of an image in words.")
    parser.add_argument("--version", action="version", version=f"patchcaption {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (_, summary) in _COMMANDS.items():
        one = commands.add_parser(name, help=summary)
        if name == command:
            _adder(name)(one)
    for name, summary in others.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
