"""Measures the quality and speed of each backend and precision: `python benchmarks/precision.py engines/demo`.

Quality is measured on held-out demo scenes, against ONNX Runtime in float32: the cosine of tokens, the share of
captions that say exactly the same, and the share of boxes, masks and traces whose caption is right in colour and shape,
and in every word. Speed is measured on the same bundle, or on a larger one of random weights:

    python benchmarks/precision.py engines/demo --also engines/demo8 --speed engines/vitb --speed-also engines/vitb8
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import get_args

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.scoring.demo_scenes import EvaluationCase, evaluation_cases, names_objects
from benchmarks.timing.stages import PipelineStages
from export.command_line import bundle_folder, run_command
from export.demo import scenes
from runtime import BackendError, Captioner, PatchcaptionError
from runtime.options import Precision

_ONE_OBJECT = ("box", "mask", "trace")
_SCENES_AT_ONCE = 16
_REGIONS = (1, 16)
_RUNS = 5


@dataclass(frozen=True)
class RunConfig:
    """How a bundle is run."""

    bundle: Path
    backend: str
    precision: Precision

    def open(self) -> Captioner:
        return Captioner.load(self.bundle, self.backend, precision=self.precision, verify=False)


@dataclass(frozen=True, eq=False)
class SceneOutputs:
    """The tokens (B, T, D) of all scenes and, region by region, the captions."""

    tokens: Tensor
    texts: list[str]


@dataclass(frozen=True)
class Speed:
    """Best of a few runs, in milliseconds: the backbone on one image, and all steps for 1 and for 16 regions."""

    backbone_ms: float
    decoding_ms: tuple[float, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Compare backends and precisions in quality and speed.")
    parser.add_argument("bundle", type=bundle_folder, nargs="?", default=Path("engines/demo"), help="the demo bundle")
    parser.add_argument(
        "--also", type=bundle_folder, action="append", default=[], help="the demo built in another precision"
    )
    parser.add_argument("--scenes", type=int, default=100, help="how many held-out scenes (default: 100)")
    parser.add_argument("--speed", type=bundle_folder, help="the bundle whose speed is measured (default: the demo)")
    parser.add_argument(
        "--speed-also", type=bundle_folder, action="append", default=[], help="for each --also, in its precision"
    )
    return run_command(partial(_run, parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    if options.speed and len(options.speed_also) != len(options.also):
        raise PatchcaptionError(f"--speed-also: expected {len(options.also)}, one for each --also")
    bundles = [options.bundle, *options.also]
    timed = [options.speed, *options.speed_also] if options.speed else bundles
    Console(width=160).print(_compare(bundles, timed, options.scenes))


def _compare(bundles: Sequence[Path], timed: Sequence[Path], count: int) -> Table:
    cases = _draw_cases(count)
    table = Table(title=f"{count} scenes; speed of {timed[0]}, best of {_RUNS}", box=box.MARKDOWN)
    headings = ("bundle", "backend", "backbone ms", *(f"decoding {n} ms" for n in _REGIONS))
    for heading in (*headings, "cosine mean", "least", "same captions", "colour and shape", "every word"):
        table.add_column(heading, justify="left" if heading in ("bundle", "backend") else "right")
    exact: SceneOutputs | None = None
    for bundle, of_speed in zip(bundles, timed, strict=True):
        for backend, precision in (("cpu", "fp32"), *(("openvino", each) for each in get_args(Precision))):
            try:
                with RunConfig(bundle, backend, precision).open() as captioner:
                    name, outputs = captioner.backend.name, _caption_scenes(captioner, cases)
                with RunConfig(of_speed, backend, precision).open() as captioner:
                    speed = _measure_speed(captioner)
            except BackendError as error:
                print(f"note: {backend} in {precision}: {error}", file=sys.stderr)
                continue
            exact = exact or outputs
            times = [f"{each:,.0f}" for each in (speed.backbone_ms, *speed.decoding_ms)]
            table.add_row(bundle.name, name, *times, *_quality(outputs, exact, cases))
    return table


def _draw_cases(count: int) -> list[tuple[scenes.Scene, list[EvaluationCase]]]:
    seeds = range(scenes.HELD_OUT_SEED, scenes.HELD_OUT_SEED + count)
    drawn = [(scenes.draw_scene(seed), seed) for seed in seeds]
    return [(scene, list(evaluation_cases(scene, seed))) for scene, seed in drawn]


def _caption_scenes(captioner: Captioner, cases: Sequence[tuple[scenes.Scene, list[EvaluationCase]]]) -> SceneOutputs:
    tokens, texts = [], list[str]()
    for start in _batches(len(cases)):
        some = cases[start : start + _SCENES_AT_ONCE]
        features = captioner.encode([scene.image for scene, _ in some])
        captions = captioner.describe(features, [[case.region for case in own] for _, own in some])
        tokens.append(features.tokens)
        texts += [caption.text for caption in chain(*captions)]
    return SceneOutputs(torch.cat(tokens), texts)


def _batches(count: int) -> Iterable[int]:
    starts = range(0, count, _SCENES_AT_ONCE)
    return track(starts, "captioning", console=Console(stderr=True), transient=True)


def _quality(
    outputs: SceneOutputs, exact: SceneOutputs, cases: Sequence[tuple[scenes.Scene, list[EvaluationCase]]]
) -> list[str]:
    cosines = torch.cosine_similarity(outputs.tokens, exact.tokens, dim=-1)
    same = np.mean([one == other for one, other in zip(outputs.texts, exact.texts, strict=True)])
    of_objects = [
        (case, text)
        for case, text in zip(chain(*(own for _, own in cases)), outputs.texts, strict=True)
        if case.kind in _ONE_OBJECT
    ]
    named = np.mean([names_objects(text, case.looks) for case, text in of_objects])
    right = np.mean([text == case.caption for case, text in of_objects])
    return [f"{cosines.mean():.5f}", f"{cosines.min():.3f}", f"{same:.1%}", f"{named:.1%}", f"{right:.1%}"]


def _measure_speed(captioner: Captioner) -> Speed:
    stages = PipelineStages(captioner)
    width = captioner.manifest.backbone.output_dim
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(max(_REGIONS), width, generator=generator), dim=1)
    steps = captioner.manifest.decoder.max_new_tokens

    def all_steps(count: int) -> Callable[[], object]:
        return lambda: stages.decode(vectors[:count], steps)

    return Speed(
        _best_ms(lambda: stages.encode_noise(1)),
        tuple(_best_ms(all_steps(count)) for count in _REGIONS),
    )


def _best_ms(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(1 + _RUNS):
        start = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - start))
    return min(taken[1:])


if __name__ == "__main__":
    sys.exit(main())
