"""Make a model repository for Triton of a bundle: `patchcaption triton-repository BUNDLE --out models`.

The folder of the model holds all that the server reads: config.pbtxt, the code that it runs, and a copy of the bundle,
unless that lies on the server already. The server's Python needs patchcaption installed (docs/triton.md).
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import get_args

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

from export.checkpoint import CheckpointError
from export.command_line import positive_int, print_note, run_command
from export.triton_server.config import MARK, Kind, ModelConfig
from runtime.backends import BACKEND_NAMES, BACKENDS, PRECISION_NAMES
from runtime.bundle import MANIFEST, Bundle, new_folder
from runtime.errors import BundleError
from runtime.hub import open_bundle
from runtime.hub.names import BUNDLE_FORMS
from runtime.image import Fit
from runtime.system.standard_streams import show

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_CODE = Path(__file__).parent / "triton_server" / "model.py"
_CONFIG, _VERSION, _BUNDLE = "config.pbtxt", "1", "bundle"
_OWN_FILES = {_CODE.name, _BUNDLE, "__pycache__"}
"""What the folder of the version holds; the last is the server's Python's."""
_MAX_INSTANCES = 128
_MAX_DELAY_US = 10_000_000


def main(arguments: Sequence[str] | None = None, prog: str = "triton_repository.py") -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Make a model repository for Triton Inference Server of a bundle."
    )
    _add_arguments(parser)
    options = parser.parse_args(arguments)
    return run_command(partial(_run, options), interrupted=f"interrupted: {options.out} is as it was")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help=BUNDLE_FORMS)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the repository, of any models")
    parser.add_argument("--name", default="patchcaption", help="of the model, and of its folder (default: %(default)s)")
    parser.add_argument(
        "--bundle-path", metavar="PATH", help="where the bundle is on the server, instead of a copy in the repository"
    )
    parser.add_argument(
        "--instances",
        type=positive_int,
        default=1,
        metavar="N",
        help="captioners, each in a process with a bundle of its own (default: %(default)s)",
    )
    parser.add_argument("--kind", choices=get_args(Kind), help="what they run on (default: what the backend runs on)")
    parser.add_argument(
        "--max-batch-size",
        type=positive_int,
        metavar="N",
        help="images that are encoded together (default: as many as the bundle's backbone takes)",
    )
    parser.add_argument(
        "--max-queue-delay-us",
        type=int,
        default=0,
        metavar="N",
        help="how long the first of a batch waits for others; those who come while one is answered need not wait to "
        "be the next (default: %(default)s)",
    )
    parser.add_argument(
        "--max-queue-size",
        type=positive_int,
        default=128,
        metavar="N",
        help="requests that wait; more are refused (default: %(default)s)",
    )
    parser.add_argument("--backend", choices=BACKEND_NAMES, default="auto", help="(default: %(default)s)")
    parser.add_argument(
        "--precision",
        choices=PRECISION_NAMES,
        default="fp32",
        help="auto: the one that `patchcaption tune` chose on the server; bf16: with openvino on CPUs "
        "(default: %(default)s)",
    )
    parser.add_argument("--fit", choices=[fit.value for fit in Fit], default=Fit.STRETCH.value)
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="of an instance (default: its share of the server's cores)"
    )


def _run(options: argparse.Namespace) -> None:
    _check(options)
    bundle = open_bundle(options.bundle)
    config = _config(options, bundle)
    model = options.out / options.name
    # Not in the repository: the server takes whatever is in there for a model, and would not start beside leftovers.
    with new_folder(model, _check_replaceable, beside=options.out) as folder:
        version = folder / _VERSION
        version.mkdir()
        shutil.copyfile(_CODE, version / _CODE.name)
        if options.bundle_path is None:
            (version / _BUNDLE).mkdir()
            for name in (MANIFEST, *bundle.manifest.files):
                shutil.copyfile(bundle.path(name), version / _BUNDLE / name)
        (folder / _CONFIG).write_text(config.text(), encoding="utf-8")
    if options.bundle_path is None and bundle.manifest.plans:
        print_note(
            "the server may run the bundle's TensorRT plans once its user has said so there: patchcaption trust "
            f"{PurePosixPath(options.name, _VERSION, _BUNDLE)}"
        )
    show(f"{model}: a model for Triton; tritonserver --model-repository {shlex.quote(str(options.out.absolute()))}")


def _check(options: argparse.Namespace) -> None:
    if not _NAME.fullmatch(options.name):
        raise CheckpointError(f"--name {options.name!r}: expected letters, digits and ._-, a letter or digit first")
    if options.instances > _MAX_INSTANCES:
        raise CheckpointError(f"--instances: expected at most {_MAX_INSTANCES}, got {options.instances}")
    if not 0 <= options.max_queue_delay_us <= _MAX_DELAY_US:
        raise CheckpointError(f"--max-queue-delay-us: expected 0 to {_MAX_DELAY_US}, got {options.max_queue_delay_us}")
    path = options.bundle_path
    if path is not None and not (PurePosixPath(path).is_absolute() and path.isprintable()):
        raise CheckpointError(f"--bundle-path {path!r}: expected an absolute path of the server")


def _config(options: argparse.Namespace, bundle: Bundle) -> ModelConfig:
    backend = bundle.manifest.backend if options.backend == "auto" else options.backend
    device: Kind = "gpu" if BACKENDS[backend].device == "cuda" else "cpu"
    if options.kind not in (None, device):
        raise CheckpointError(
            f"--kind {options.kind}: the backend {backend} runs on the {device.upper()}; choose another --backend, or "
            "leave --kind out"
        )
    parameters = {
        "bundle": options.bundle_path or _BUNDLE,
        "backend": options.backend,
        "precision": options.precision,
        "fit": options.fit,
    }
    if options.threads is not None:
        parameters["threads"] = options.threads
    return ModelConfig(
        device,
        options.instances,
        options.max_batch_size or bundle.manifest.backbone.max_batch_size,
        options.max_queue_delay_us,
        options.max_queue_size,
        parameters,
    )


def _check_replaceable(model: Path) -> None:
    """Raise if a folder holds something other than a model that this command has written.

    Raises:
        BundleError: names what would be lost.
    """
    advice = "would be lost; choose another --out or --name, or remove it"
    try:
        names = {path.name for path in model.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise BundleError(f"{model}: exists and is no model of ours ({error.strerror}): it {advice}") from None
    config, version = model / _CONFIG, model / _VERSION
    if names and not (config.is_file() and config.read_bytes().startswith(MARK.encode())):
        raise BundleError(f"{model}: exists and is no model of ours: {min(names)} {advice}")
    inside = {path.name for path in version.iterdir()} if version.is_dir() else set()
    others = sorted(names - {_CONFIG, _VERSION}) + sorted(f"{_VERSION}/{name}" for name in inside - _OWN_FILES)
    if others:
        raise BundleError(f"{model}: {others[0]} is not of the model that is there, and {advice}")


if __name__ == "__main__":
    sys.exit(main())
