"""Time the decoding of a bundle of ViECap beside the published algorithm in torch, in turns in one process.

    python benchmarks/prompted.py recording:PATH/viecap_main.json --regions 16

The checkpoint is one with made-up weights: a recording or `seeded:...,decoder=viecap`. A bundle of it is built, and
opened with each backend. "12 tokens" stops every caption at the length of a usual one, which made-up weights do not
give.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.eager_viecap import GROUP, EagerViecap
from benchmarks.timing.machine_limits import describe_machine, measure_limits
from export.bundle_builder import BuildOptions, build
from export.command_line import run_command, show_progress
from export.prompts import EntityPromptSource
from export.readers import read_checkpoint
from runtime import Captioner
from runtime.decoding.kv_cache import KvCache
from runtime.decoding.prompted import PromptedDecoder

_TOKENS = 12
"""Of a usual caption."""
_TURNS = 3
_BACKENDS: Mapping[str, tuple[str, str]] = {
    "onnxruntime": ("cpu", "fp32"),
    "openvino": ("openvino", "fp32"),
    "openvino bf16": ("openvino", "bf16"),
}


@dataclass(frozen=True)
class DecodingTimes:
    """The times of one way to decode, in seconds.

    Attributes:
        whole: until the captions end by themselves.
        usual: captions of `_TOKENS` tokens; as the whole for the published algorithm, which takes all steps anyway.
        cache_share: of the time of the steps, what goes to copying the KV cache; None where that is not known.
        same: how many captions have the tokens of the published algorithm.
    """

    whole: float
    usual: float
    cache_share: float | None
    same: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Time ViECap's decoding beside the published algorithm.")
    parser.add_argument("checkpoint", help="recording:PATH/NAME.json or seeded:ARCHITECTURE,decoder=viecap")
    parser.add_argument("--regions", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--backends", nargs="+", choices=_BACKENDS, default=list(_BACKENDS))
    return run_command(partial(_run, parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    console = Console(width=120)
    checkpoint = read_checkpoint(options.checkpoint)
    assert isinstance(checkpoint.prompts, EntityPromptSource)
    names = [checkpoint.tokenizer.decode(list(ids)).strip() for ids, _ in checkpoint.prompts.pieces.pieces]
    vectors = _vectors(checkpoint.prompts, options.regions)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with show_progress(Console(stderr=True), BuildOptions().steps) as progress:
            build(options.checkpoint, folder / "bundle", progress, BuildOptions())
        eager = EagerViecap.of(checkpoint, names)
        del checkpoint
        captioners = {name: stack.enter_context(_load(folder / "bundle", name)) for name in options.backends}
        times = _measure(eager, captioners, vectors)
    console.print(_table(times, options.regions))
    limits = measure_limits(torch.device("cpu"))
    console.print(f"{describe_machine()}\n{limits}")


def _load(bundle: Path, name: str) -> Captioner:
    backend, precision = _BACKENDS[name]
    return Captioner.load(bundle, backend, precision=precision)  # type: ignore[arg-type]  # names of the table


def _vectors(prompts: EntityPromptSource, regions: int) -> Tensor:
    """Return vectors (R, D) near one entity, near two, and near none."""
    generator = torch.Generator().manual_seed(0)
    embeddings = prompts.embeddings
    rows = torch.randint(len(embeddings), (regions, 2), generator=generator)
    weights = torch.tensor([[1.0, 0.0], [1.0, 0.99], [0.0, 0.0], [1.0, 0.5]]).repeat(regions // 4 + 1, 1)[:regions]
    near = (embeddings[rows] * weights[..., None]).sum(dim=1)
    return near + 0.3 * torch.randn(regions, embeddings.shape[1], generator=generator) / embeddings.shape[1] ** 0.5


def _measure(eager: EagerViecap, captioners: Mapping[str, Captioner], vectors: Tensor) -> dict[str, DecodingTimes]:
    """Return the medians of all ways, which take turns."""
    wanted = eager(vectors)
    runs: dict[str, dict[str, list[float]]] = {name: {} for name in ("published", *captioners)}
    same = dict.fromkeys(runs, len(vectors))
    for turn in range(_TURNS + 1):  # the first warms up
        timed = {("published", "whole"): _seconds(lambda: eager(vectors))}
        for name, captioner in captioners.items():
            decoder = captioner.pipeline.decoder
            assert isinstance(decoder, PromptedDecoder)
            timed[name, "whole"] = _seconds(lambda decoder=decoder: decoder.greedy.decode(vectors))  # type: ignore[misc]
            timed[name, "usual"] = _seconds(lambda decoder=decoder: _decode_usual(decoder, vectors))  # type: ignore[misc]
        for (name, what), seconds in timed.items():
            if turn:
                runs[name].setdefault(what, []).append(seconds)
    for name, captioner in captioners.items():
        groups = vectors.split(GROUP)
        found = [one for group in groups for one in captioner.decode(group, prompt_padding="reference")]
        same[name] = sum(list(one.ids) == ids for one, ids in zip(found, wanted, strict=True))
    return {
        name: DecodingTimes(
            statistics.median(of["whole"]),
            statistics.median(of.get("usual", of["whole"])),
            _cache_share(captioners[name], vectors, of) if name in captioners else None,
            same[name],
        )
        for name, of in runs.items()
    }


def _decode_usual(decoder: PromptedDecoder, vectors: Tensor) -> None:
    """Decode captions that all have `_TOKENS` tokens."""
    decoder.greedy.decode(vectors, ignore_eos=True, max_new_tokens=_TOKENS)


def _cache_share(captioner: Captioner, vectors: Tensor, times: Mapping[str, Sequence[float]]) -> float:
    """Return the share of a usual caption's time that goes to writing steps' entries into the cache."""
    config = captioner.manifest.decoder
    cache = KvCache(config, len(vectors), vectors.device)
    outputs = cache.present_buffers()

    def write_steps() -> None:
        for _ in range(_TOKENS):
            cache.append(outputs)

    return _seconds(write_steps) / statistics.median(times["usual"])


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _table(times: Mapping[str, DecodingTimes], regions: int) -> Table:
    table = Table(title=f"decoding of {regions} regions", box=box.MARKDOWN)
    for heading in ("", "s", "times as fast", f"s, {_TOKENS} tokens", "times as fast", "cache %", "same ids"):
        table.add_column(heading, justify="right" if heading else "left")
    published = times["published"]
    for name, of in times.items():
        ratios = (f"{published.whole / seconds:.1f}" for seconds in (of.whole, of.usual))
        share = "" if of.cache_share is None else f"{100 * of.cache_share:.1f}"
        whole, usual = ratios
        table.add_row(name, f"{of.whole:.2f}", whole, f"{of.usual:.2f}", usual, share, str(of.same))
    return table


if __name__ == "__main__":
    sys.exit(main())
