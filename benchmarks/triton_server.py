"""Compare a Triton Inference Server with the library alone: `python benchmarks/triton_server.py 127.0.0.1:8000`.

The server runs already, on this machine, with the model of `patchcaption triton-repository` of the same bundle
(docs/triton.md). Library and clients take turns, as what else the machine does changes; every caption is compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from export.command_line import positive_int, run_command
from runtime import Captioner, PatchcaptionError

_MODEL = "patchcaption"
_SCENE = Path(__file__).parents[1] / "export" / "demo" / "sample" / "scene.jpg"
_REGIONS = [[276, 174, 507, 399], [90, 420, 321, 648]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Compare a Triton Inference Server with the library alone.")
    parser.add_argument("server", help="its HTTP address: 127.0.0.1:8000")
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("engines/demo"), help="default: %(default)s")
    parser.add_argument("--clients", type=positive_int, default=8, help="at a time (default: %(default)s)")
    parser.add_argument("--images", type=positive_int, default=128, help="of a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=positive_int, default=5, help="of turns (default: %(default)s)")
    return run_command(partial(_run, parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    image, clients = _SCENE.read_bytes(), options.clients
    rates, batches = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    with Captioner.load(options.bundle) as captioner:
        expected = [caption.text for caption in captioner.caption(image, _REGIONS)]
        ways: dict[str, Callable[[int], object]] = {
            "the library, one by one": lambda count: [captioner.caption(image, _REGIONS) for _ in range(count)],
            f"the library, {clients} at a time": lambda count: [
                captioner.caption([image] * clients, [_REGIONS] * clients) for _ in range(count // clients)
            ],
            "Triton, 1 client": partial(_ask, options.server, image, expected, 1),
            f"Triton, {clients} clients": partial(_ask, options.server, image, expected, clients),
        }
        count = max(1, options.images // clients) * clients
        for number in range(options.rounds + 1):
            for name, work in ways.items():
                before, start = _executions(options.server), time.perf_counter()
                work(count)
                seconds = time.perf_counter() - start
                if number:  # the first round warms up
                    rates[name].append(count / seconds)
                    batches[name].append(count / max(1, _executions(options.server) - before))
    _show(rates, batches)


def _ask(server: str, image: bytes, expected: Sequence[str], clients: int, count: int) -> None:
    """Let clients ask at the same time, each a connection of its own, for as many images together.

    Raises:
        PatchcaptionError: a caption is another than the library's.
    """
    triton = _library()

    def ask(asked: int) -> None:
        texts = {"IMAGE": image, "REGIONS": json.dumps(_REGIONS).encode()}
        inputs = [triton.InferInput(name, [1, 1], "BYTES") for name in texts]
        for given, text in zip(inputs, texts.values(), strict=True):
            given.set_data_from_numpy(np.array([[text]], np.object_))
        with triton.InferenceServerClient(server) as client:
            for _ in range(asked):
                answer = json.loads(client.infer(_MODEL, inputs).as_numpy("CAPTIONS")[0, 0])
                if [caption["text"] for caption in answer] != expected:
                    raise PatchcaptionError(f"{server}: expected {expected}, got {answer}: is it the same bundle?")

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(ask, [count // clients] * clients))


def _executions(server: str) -> int:
    """Return how many batches the server has answered."""
    with _library().InferenceServerClient(server) as client:
        (model,) = client.get_inference_statistics(_MODEL)["model_stats"]
    return int(model.get("execution_count", 0))


def _library() -> Any:
    try:
        import tritonclient.http
    except ModuleNotFoundError as error:
        raise PatchcaptionError(f"{error}: pip install 'tritonclient[http]'") from None
    return tritonclient.http


def _show(rates: dict[str, list[float]], batches: dict[str, list[float]]) -> None:
    table = Table(box=box.MARKDOWN)
    for heading in ("way", "images/s", "lowest", "highest", "images a batch"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name, found in rates.items():
        of_server = f"{statistics.mean(batches[name]):.1f}" if name.startswith("Triton") else ""
        table.add_row(name, *(f"{rate:.1f}" for rate in (statistics.median(found), min(found), max(found))), of_server)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
