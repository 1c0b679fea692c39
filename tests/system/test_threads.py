"""Threads end before the program does, and errors of any class pass from one to another."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from runtime.system.threads import call_in_thread, join_all, passable
from tests.children import run_child

LEAVING = """
import socket, sys, threading
import numpy as np
from runtime import Captioner, WholeImage

def endless():
    while True:
        yield np.random.default_rng().integers(0, 256, (300, 400, 3), np.uint8)

captioner = Captioner.load(sys.argv[1], "cpu")
how = sys.argv[2]
if how == "break":
    for result in captioner.stream(endless(), [WholeImage()], reuse=None):
        break
elif how == "held":
    stream = captioner.stream(endless(), [WholeImage()], reuse=None)
    next(stream)
elif how == "exit":
    stream = captioner.stream(endless(), [WholeImage()], reuse=None)
    next(stream)
    sys.exit(0)
elif how == "waiting":
    stream = captioner.stream(iter(threading.Event().wait, None), [WholeImage()])
elif how == "batching":
    batching = captioner.batching(max_wait_ms=60_000)
    try:
        batching.caption(next(endless()), [WholeImage()] * 64, timeout_s=1e-3)  # it is at work, and nobody waits
    except TimeoutError:
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["break", "held", "exit", "waiting", "batching"])
def test_a_program_may_end_with_a_stream_or_a_batching_at_work(demo_bundle: Path, how: str) -> None:
    result = run_child(LEAVING, demo_bundle, how)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_threads_are_joined_for_so_long_and_never_by_themselves() -> None:
    may_end = threading.Event()
    thread = threading.Thread(target=may_end.wait)
    thread.start()
    assert not join_all([thread], 0.01)
    may_end.set()
    assert join_all([thread], 20)
    assert join_all([threading.Thread(target=may_end.wait)], 20), "one that was not started has nothing to end"
    assert not join_all([threading.current_thread()], 20)


def test_a_stop_iteration_passes_as_a_runtime_error_and_all_others_as_they_are() -> None:
    for error in (ValueError(), SystemExit(), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()):
        assert passable(error) is error
    replaced = passable(StopIteration(3))
    assert isinstance(replaced, RuntimeError)
    assert isinstance(replaced.__cause__, StopIteration)


def test_a_coroutine_gets_the_stop_iteration_of_a_thread() -> None:
    def stop() -> None:
        raise StopIteration

    async def wait_for_it() -> None:
        await asyncio.wait_for(call_in_thread(stop), 20)

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(wait_for_it())
    assert asyncio.run(call_in_thread(lambda: 7)) == 7
