"""A backend leaves the threads of a program with stacks on which signals can be handled."""

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


@pytest.mark.parametrize("order", ["mm", "oo", "mo", "om"])
def test_a_signal_is_handled_after_captioners_were_closed_in_any_order_and_thread(
    demo_bundle: Path, order: str
) -> None:
    done = run_child(SIGNALLED, demo_bundle, order)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1]\n", "")
