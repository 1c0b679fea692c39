"""Threads that load, describe, stream, batch, cancel and close at once: no crash, no wrong caption, nothing that grows.

PATCHCAPTION_CONCURRENCY says for how many seconds; CI does 30 twice, and before a release 600 are done.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.children import run_child

SECONDS = float(os.environ.get("PATCHCAPTION_CONCURRENCY", "30"))
LOADERS = int(os.environ.get("PATCHCAPTION_CONCURRENT_LOADERS", "3"))
MAX_GROWTH_MIB = 48.0
"""From the middle to the end, with no thread at work at either. Allocators keep some for each thread; a captioner that
is not released is 60 MiB."""

CHECKING_ALLOCATORS = {"PYTHONMALLOC": "debug", "MALLOC_PERTURB_": "165", "MALLOC_CHECK_": "3"}
"""Python's writes guards around its memory and checks them, the C library's overwrites what is freed."""

WORK = """
import asyncio, ctypes, json, random, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
import numpy as np
from runtime import Box, Captioner, PatchcaptionError, WholeImage
from tests.robustness.test_memory_growth import resources

folder, seconds, num_loaders = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
images = [np.kron(rng.integers(0, 256, (6, 8, 3), np.uint8), np.ones((20, 20, 1), np.uint8)) for _ in range(6)]
regions = [Box(10, 10, 90, 80), Box(40, 30, 155, 110), WholeImage()]
shared = Captioner.load(folder, "cpu", threads=1)
expected = [[one.text for one in shared.caption(image, regions)] for image in images]
rounds, faults, stopping, running = {}, [], threading.Event(), threading.Event()
running.set()

def check(index, captions):
    found = [one.text for one in captions]
    if found != expected[index]:
        faults.append(f"wrong caption: {found}, expected {expected[index]}")

def load(random):
    index = random.randrange(6)
    with Captioner.load(folder, "cpu", threads=1, verify=False) as captioner:
        check(index, captioner.caption(images[index], regions))

def describe(random):
    index = random.randrange(6)
    check(index, shared.describe(shared.encode(images[index]), regions))

def stream(random):
    order = [random.randrange(6) for _ in range(8)]
    with shared.stream([images[index] for index in order], regions, workers=1) as results:
        for result in results:
            check(order[result.frame.number], result.captions)
            if random.random() < 0.1:
                break

def drop(random):
    for result in shared.stream((images[number % 6] for number in count()), regions, policy="drop", workers=1):
        check(result.frame.number % 6, result.captions)
        break

def batch(random):
    with shared.batching(max_wait_ms=1, max_regions=12) as batching, ThreadPoolExecutor(3) as callers:
        def ask(index):
            try:
                check(index, batching.caption(images[index], regions, timeout_s=random.choice([None, 1e-4])))
            except TimeoutError:
                pass
        list(callers.map(ask, [random.randrange(6) for _ in range(6)]))

def cancel(random):
    async def both(batching):
        kept, cancelled = random.randrange(6), random.randrange(6)
        tasks = [asyncio.ensure_future(batching.acaption(images[index], regions)) for index in (kept, cancelled)]
        await asyncio.sleep(random.choice([0, 0.01]))
        tasks[1].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        check(kept, results[0])
    with shared.batching(max_wait_ms=1) as batching:
        asyncio.run(both(batching))

def close(random):
    batching = shared.batching(max_wait_ms=5)
    def ask():
        try:
            check(0, batching.caption(images[0], regions))
        except PatchcaptionError as error:
            assert "was closed" in str(error), error
    with ThreadPoolExecutor(2) as callers:
        asked = [callers.submit(ask) for _ in range(2)]
        batching.close()
        for one in asked:
            one.result()

def work(kind, seed):
    choice = random.Random(seed)
    while not stopping.is_set():
        running.wait()
        with at_work:
            try:
                kind(choice)
                rounds[kind.__name__] += 1
            except BaseException as error:
                faults.append(f"{kind.__name__}: {error!r}")

def resources_at_rest(after_s):
    # Let all work for so long, and each kind be done twice; then look while none is at work.
    end, enough = time.monotonic() + after_s, {name: number + 2 for name, number in rounds.items()}
    while time.monotonic() < end or not faults and any(rounds[name] < number for name, number in enough.items()):
        time.sleep(0.05)
    running.clear()
    for _ in threads:
        at_work.acquire()
    ctypes.CDLL(None).malloc_trim(0)
    held = resources()
    for _ in threads:
        at_work.release()
    running.set()
    return held

others = [describe, describe, describe, stream, stream, stream, drop, drop, batch, batch, cancel, cancel, close]
kinds = (others * 2)[: 16 - num_loaders] + [load] * num_loaders
rounds |= dict.fromkeys((kind.__name__ for kind in kinds), 0)
at_work = threading.Semaphore(len(kinds))
threads = [threading.Thread(target=work, args=(kind, seed)) for seed, kind in enumerate(kinds)]
for thread in threads:
    thread.start()
before = resources_at_rest(seconds / 2)
after = resources_at_rest(seconds / 2)
stopping.set()
for thread in threads:
    thread.join()
deadline = time.monotonic() + 30

def ours():
    return [one.name for one in threading.enumerate() if "patchcaption" in one.name]

while (left := ours()) and time.monotonic() < deadline:
    time.sleep(0.05)
report = {"rounds": rounds, "faults": faults[:5], "growth_mib": after[0] - before[0], "threads_left": left}
report |= {"files": [before[1], after[1], resources()[1]], "memory_mib": after[0]}
shared.close()
print(json.dumps(report))
"""


@pytest.mark.slow
@pytest.mark.parametrize("allocators", [{}, CHECKING_ALLOCATORS], ids=["", "checked"])
def test_sixteen_threads_neither_crash_nor_grow_nor_get_wrong_captions(
    demo_bundle: Path, allocators: dict[str, str]
) -> None:
    result = run_child(WORK, demo_bundle, str(SECONDS), str(LOADERS), timeout_s=SECONDS + 240, variables=allocators)
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(result.stdout)
    print(report)
    assert report["faults"] == []
    assert min(report["rounds"].values()) >= 4, report["rounds"]
    assert report["threads_left"] == []
    assert report["growth_mib"] < MAX_GROWTH_MIB
    assert report["files"][2] <= report["files"][0]
