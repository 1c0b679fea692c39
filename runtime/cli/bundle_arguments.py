"""How commands are told which bundle they are about."""

from __future__ import annotations

import argparse

from runtime.hub.names import BUNDLE_FORMS


def add_bundle_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``BUNDLE``, of commands that are about one."""
    parser.add_argument("bundle", metavar="BUNDLE", help=BUNDLE_FORMS)


def add_bundle_flag(parser: argparse.ArgumentParser, help: str, required: bool = False) -> None:
    """Add ``--bundle BUNDLE``, whose former name ``--engines`` is still taken."""
    parser.add_argument("--bundle", "--engines", required=required, metavar="BUNDLE", help=f"{help}: {BUNDLE_FORMS}")
