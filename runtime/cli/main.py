"""The command line: `python -m runtime caption|video|info|verify|trust|tune|doctor`, also installed as `patchcaption`.

Results go to stdout, messages to stderr. Exit codes: 0 done; 1 a bundle, backend or output file is not usable; 2 a
mistake on the command line or in what it names (an image, a region); 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn, TypeVar

from PIL import Image

from runtime import __version__
from runtime.autotune import ROWS, measure, open_all
from runtime.backends import BACKENDS, PRECISIONS, choose
from runtime.backends.selection import choices_file, keep
from runtime.bundle import Bundle
from runtime.bundle.trust import trust
from runtime.captioner import Captioner
from runtime.cli.region_arguments import add_region_flags, parsed
from runtime.cli.video_command import add_video
from runtime.decoding.beam_search import check_beams
from runtime.doctor import examine
from runtime.errors import ImageError, PatchcaptionError, RegionError
from runtime.image import Fit, open_image
from runtime.output.as_json import caption_as_json
from runtime.output.drawing import draw_captions
from runtime.regions import Region, WholeImage

T = TypeVar("T")

EXIT_UNUSABLE = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ImageError, RegionError) as error:
        return _fail(str(error), EXIT_BAD_INPUT)
    except PatchcaptionError as error:
        return _fail(str(error), EXIT_UNUSABLE)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all of this command's are."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_fail(f"{message}; see {self.prog} --help", EXIT_BAD_INPUT))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="patchcaption", description="Describe any region of an image in words.")
    parser.add_argument("--version", action="version", version=f"patchcaption {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    caption = commands.add_parser("caption", help="caption regions of an image, or the whole of it")
    caption.set_defaults(run=_caption)
    caption.add_argument("image", type=Path)
    caption.add_argument("--engines", type=Path, required=True, metavar="FOLDER", help="the bundle")
    add_region_flags(caption)
    caption.add_argument(
        "--mode", choices=["decode", "nearest"], default="decode", help="the decoder's words, or the memory's nearest"
    )
    caption.add_argument("--n-best", type=int, default=0, metavar="N", help="also the N nearest captions of the memory")
    caption.add_argument(
        "--beams", type=parsed(_beams), default=1, metavar="N", help="beam search with N beams (default: 1, none)"
    )
    caption.add_argument("--json", action="store_true", help="one JSON object a caption, with ids and score")
    caption.add_argument("--save", type=Path, metavar="PICTURE", help="write the image with the captions drawn on it")
    caption.add_argument("--fit", choices=[fit.value for fit in Fit], default=Fit.STRETCH.value)
    caption.add_argument("--backend", choices=BACKENDS, default="auto")
    caption.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="bf16: with openvino, on CPUs that have it"
    )

    add_video(commands.add_parser("video", help="caption regions of every frame of a video, a camera or an address"))

    info = commands.add_parser("info", help="say what a bundle is")
    info.set_defaults(run=_info)
    info.add_argument("engines", type=Path)
    info.add_argument("--json", action="store_true", help="the manifest as it is")
    info.add_argument("--backend", choices=BACKENDS, help="also open the engines, and say what executes them")

    verify = commands.add_parser("verify", help="compare every file of a bundle with its manifest and open its engines")
    verify.set_defaults(run=_verify)
    verify.add_argument("engines", type=Path)
    verify.add_argument("--backend", choices=BACKENDS, default="auto")

    trusting = commands.add_parser("trust", help="let plans be loaded that somebody else built: they are programs")
    trusting.set_defaults(run=_trust)
    trusting.add_argument("engines", type=Path)

    tune = commands.add_parser("tune", help="find out which backend is fastest here, for --backend auto to take")
    tune.set_defaults(run=_tune)
    tune.add_argument("engines", type=Path)
    tune.add_argument("--precision", choices=PRECISIONS, default="fp32")

    doctor = commands.add_parser("doctor", help="say what this machine has, and whether it works")
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--engines", type=Path, metavar="FOLDER", help="also run this bundle on every backend")
    doctor.add_argument("--json", action="store_true", help="one JSON list, for a bug report")
    return parser


def _caption(options: argparse.Namespace) -> int:
    regions: list[Region] = options.regions or [WholeImage()]
    image = open_image(options.image)
    if options.save:
        _check_writable_picture(options.save)
    with Captioner.load(options.engines, options.backend, options.fit, precision=options.precision) as captioner:
        captions = captioner.caption(image, regions, mode=options.mode, n_best=options.n_best, beams=options.beams)
    for caption in captions:
        print(json.dumps(caption_as_json(caption)) if options.json else f"{caption.score:.3f}  {caption.text}")
        if not options.json:
            for match in caption.nearest:
                print(f"    {match.similarity:.3f}  {match.text}")
    if options.save:
        return _save(draw_captions(image, captions), options.save)
    return 0


def _info(options: argparse.Namespace) -> int:
    bundle = Bundle(options.engines, verify=False)
    manifest = bundle.manifest
    if options.json:
        print(manifest.model_dump_json(indent=2))
        return 0
    seen, memory, choice = manifest.architecture, manifest.memory, choose(bundle)
    grid = seen.size // seen.patch
    again = f", re-encoder {manifest.reencoder.precision}" if manifest.reencoder else ""
    lines = {
        "bundle": options.engines,
        "checkpoint": f"{manifest.build.checkpoint}, built {manifest.build.built_at} on {manifest.build.machine}",
        "backbone": f"{seen.name}, width {seen.width}, depth {seen.depth}, {manifest.backbone.precision}{again}",
        "image": f"{seen.size} x {seen.size} pixels, {grid} x {grid} patches of {seen.patch}, "
        f"{seen.registers} registers",
        "memory": f"{memory.rows} captions" if memory else "none (vectors go to the decoder as they are)",
        "decoder": f"{manifest.decoding.layers} layers of width {manifest.decoding.width}, at most "
        f"{manifest.decoding.steps} tokens, {manifest.decoder.precision}",
        "backend": f"auto is {choice.backend} ({choice.reason})",
        "size": f"{sum(record.bytes for record in manifest.files.values()) / 2**20:.1f} MiB",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.build.versions.items()),
    }
    for name, value in lines.items():
        print(f"{name:<11} {value}")
    if options.backend:
        _print_execution(options.engines, options.backend)
    return 0


def _print_execution(engines: Path, backend: str) -> None:
    """What really executes the engines, which the runtimes are asked for."""
    with Captioner.load(engines, backend, verify=False) as captioner:
        captured = captioner.captured()
        for name, runs_on in captioner.runs_on().items():
            kept = [f"not captured ({why_not})" if why_not else "one CUDA graph" for why_not in captured[name][:1]]
            print(f"{'runs':<11} {', '.join([f'{name} on {runs_on}', *kept])}")


def _verify(options: argparse.Namespace) -> int:
    with Captioner.load(options.engines, options.backend, verify=True) as captioner:
        count = len(captioner.manifest.files)
        print(f"{options.engines}: {count} files are as built; the engines open on {captioner.backend.name}")
    return 0


def _trust(options: argparse.Namespace) -> int:
    manifest = Bundle(options.engines).manifest
    if not manifest.plans:
        print(f"{options.engines}: it has no TensorRT plans, and nothing else in a bundle is a program")
    for plan in manifest.plans:
        trust(manifest.files[plan.file].sha256)
        print(f"{options.engines / plan.file}: trusted from now on")
    return 0


def _tune(options: argparse.Namespace) -> int:
    bundle = Bundle(options.engines)
    backends, refused = open_all(bundle, options.precision)
    for reason in refused.values():
        print(f"left out: {reason}", file=sys.stderr)
    timings = measure(bundle, backends)
    print(f"{'ms':<45}{'backbone':>10}" + "".join(f"{f'{rows} at once':>14}" for rows in ROWS))
    for timing in timings.values():
        decoding = "".join(f"{timing.decoding[rows]:>14.1f}" for rows in ROWS)
        print(f"{timing.name:<45}{timing.backbone:>10.1f}{decoding}")
    fastest = keep(bundle, options.precision, None, {name: timing.total for name, timing in timings.items()})
    print(f"auto is {fastest} for {options.engines} in {options.precision} from now on ({choices_file()})")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    findings = []
    for finding in examine(options.engines):
        findings.append(finding)
        if not options.json:
            print(finding, flush=True)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return int(any(finding.state == "fail" for finding in findings))


def _check_writable_picture(path: Path) -> None:
    """Finds out before the work whether the picture can be written after it."""
    if path.suffix.lower() not in Image.registered_extensions():
        raise ImageError(f"{path}: expected a picture's ending, .png or .jpg for example, got {path.suffix!r}")
    if not path.parent.is_dir():
        raise ImageError(f"{path}: the folder {path.parent} does not exist")


def _save(picture: Image.Image, path: Path) -> int:
    """Writes a picture whole or not at all."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        picture.save(part)
        part.replace(path)
    except OSError as error:
        return _fail(f"{path}: cannot be written: {error}", EXIT_UNUSABLE)
    finally:
        part.unlink(missing_ok=True)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"patchcaption: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _beams(text: str) -> int:
    try:
        beams = int(text)
    except ValueError:
        raise PatchcaptionError(f"expected a whole number, got {text!r}") from None
    check_beams(beams)
    return beams


if __name__ == "__main__":
    sys.exit(main())
