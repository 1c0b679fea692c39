"""OpenVINO in the threads of a program: signals are handled afterwards, and nobody waits for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.children import run_child

SIGNALLED = """
import gc, signal, sys
from concurrent.futures import ThreadPoolExecutor
from runtime import Captioner
folder, order = sys.argv[1:]
handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
captioners = [Captioner.load(folder, "openvino", threads=1) for _ in range(2)]
with ThreadPoolExecutor(1) as other:
    for name in order:
        captioner = captioners.pop(0)
        (captioner.close if name == "m" else lambda: other.submit(captioner.close).result())()
        del captioner
gc.collect()
signal.raise_signal(signal.SIGUSR1)
print(handled)
"""

FIRST_RUNS = """
import os, sys, threading
sys.setswitchinterval(1e-6)
from runtime.backends.openvino import OpenVinoBackend
from runtime.bundle import Bundle
from runtime.bundle.admission import engine_contract
from tests.robustness.graph_mutants import inputs_of
bundle = Bundle(sys.argv[1], verify=False)
engine = OpenVinoBackend(1).open(bundle.engine("reencoder"), concurrency=4)
inputs, together = inputs_of(engine_contract(bundle.manifest, "reencoder")), threading.Barrier(4)
def run():
    together.wait()
    engine.run(inputs)
threads = [threading.Thread(target=run) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("order", ["mm", "oo", "mo", "om"])
def test_a_signal_is_handled_after_captioners_were_closed_in_any_order_and_thread(
    demo_bundle: Path, order: str
) -> None:
    done = run_child(SIGNALLED, demo_bundle, order)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1]\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))  # without a lock one of four never ends
def test_threads_may_run_an_engine_for_the_first_time_at_once(demo_bundle: Path, number: int) -> None:
    done = run_child(FIRST_RUNS, demo_bundle)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), number
