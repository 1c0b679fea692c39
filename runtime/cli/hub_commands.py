"""`patchcaption push|pull`: bundles to and from the Hugging Face hub."""

from __future__ import annotations

import argparse

from runtime.cli import exits
from runtime.cli.bundle_arguments import add_bundle_argument
from runtime.hub import open_bundle, pull
from runtime.hub.names import repository_name
from runtime.hub.pushing import PushOptions, push
from runtime.system.standard_streams import show


def add_push(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `push`."""
    parser.set_defaults(run=run_push)
    add_bundle_argument(parser)
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository, which is made if need be")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="another branch than main; it is made if need be")
    parser.add_argument("--message", default=PushOptions.message, metavar="TEXT", help="of the commit")
    parser.add_argument(
        "--license",
        default=PushOptions.license,
        metavar="ID",
        help="what the model card says, for example apache-2.0 (default: %(default)s)",
    )
    parser.add_argument(
        "--with-plans", action="store_true", help="also TensorRT plans, which are programs for some GPUs"
    )


def add_pull(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pull`."""
    parser.set_defaults(run=run_pull)
    parser.add_argument("repository", metavar="OWNER/NAME[@REVISION]", help="a repository of the hub")


def run_push(options: argparse.Namespace) -> int:
    """Verify a bundle and publish it; print the commit."""
    name = repository_name(options.repository)
    if options.revision is not None:
        name = repository_name(f"{name.repository}@{options.revision}")
    bundle = open_bundle(options.bundle)
    asked = PushOptions(options.private, options.license, options.message, options.with_plans)
    show(push(bundle, name, asked))
    return exits.DONE


def run_pull(options: argparse.Namespace) -> int:
    """Take what is the newest of a revision into the cache; print its folder."""
    show(pull(repository_name(options.repository)))
    return exits.DONE
