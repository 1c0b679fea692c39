"""Many clients at once: every answer is right, none is lost, and the service keeps what it has.

PATCHCAPTION_REQUESTS says how many requests the last ones are; 10000 takes a minute.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from benchmarks.timing.http_clients import Step, ask_at_once
from benchmarks.timing.http_sessions import pages, uploads
from runtime import Captioner
from runtime.serving.http.encoding import MOST_IMAGES
from runtime.serving.http.settings import LIMITS
from tests.conftest import SAMPLE
from tests.robustness.test_memory_growth import resources
from tests.serving.http.child import serving
from tests.serving.http.served import served

CLIENTS = 64
REQUESTS = int(os.environ.get("PATCHCAPTION_REQUESTS", "400"))
WARM_UP = 0.3
"""Share of the requests after which allocators, caches and threads have what they need."""
MAX_GROWTH_MIB = 16.0
"""In the rest; the C library keeps some for each thread. The bodies of 300 uploads would be 25 MiB."""
MAX_OF_WORKERS_MIB = 160.0
"""What three more images at a time take, each with its activations and its thread's memory; not their bundle."""

pytestmark = pytest.mark.slow


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def count(sessions: list[list[Step]]) -> int:
    return sum(map(len, sessions))


def test_64_clients_get_the_captions_of_the_library(demo: Captioner) -> None:
    sessions = pages(demo, hovers=4)
    with served(demo) as url:
        tally = asyncio.run(ask_at_once(port_of(url), sessions, CLIENTS, most=1))
    assert tally.wrong == []
    assert tally.rejected == {}
    assert tally.answers == CLIENTS // len(sessions) * count(sessions)


def test_where_the_queue_is_short_some_are_told_to_come_again_and_all_others_are_served(demo: Captioner) -> None:
    most = 2
    with served(demo, limits=replace(LIMITS, queue=2)) as url:
        tally = asyncio.run(ask_at_once(port_of(url), uploads(demo), CLIENTS, most=most))
    assert tally.wrong == []
    rejected = sum(tally.rejected.values())
    assert rejected > 0
    assert tally.answers > 0
    assert tally.answers + rejected == CLIENTS * most


def test_many_requests_leave_nothing_behind(demo: Captioner) -> None:
    sessions, clients = pages(demo, hovers=4), 8
    rounds = max(1, REQUESTS // count(sessions))
    with served(demo) as url, httpx.Client(base_url=url) as client:

        def ask(most: int) -> None:
            tally = asyncio.run(ask_at_once(port_of(url), sessions, clients, most=most))
            assert tally.wrong == []

        def settled() -> tuple[float, int, int]:
            """Return the resources once the service has heard that its clients went."""
            for _ in range(1000):
                assert client.get("/metrics").status_code == 200
                if open_files() <= files_at_first:
                    break
            return resources()

        client.get("/metrics")
        files_at_first = open_files()
        reach_every_batch(demo)
        ask(max(1, int(WARM_UP * rounds)))
        memory_before, files_before, threads_before = settled()
        ask(rounds - int(WARM_UP * rounds))
        memory, files, threads = settled()
    print(f"{rounds * count(sessions)} requests: {memory - memory_before:+.1f} MiB")
    assert memory - memory_before < MAX_GROWTH_MIB
    assert files == files_before
    assert threads <= threads_before + 2  # those of asyncio come when they are wanted


def reach_every_batch(captioner: Captioner) -> None:
    """Let the backbone allocate what it keeps for as many images as the service's two workers may encode together."""
    sizes = [size for size in range(1, MOST_IMAGES + 1) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        for _ in threads.map(lambda size: captioner.encode([SAMPLE / "scene.jpg"] * size), sizes):
            pass


def test_workers_share_one_bundle(demo_bundle: Path) -> None:
    used = {workers: memory_of(demo_bundle, workers) for workers in (1, 4)}
    print(f"RSS with 1 worker {used[1]:.0f} MiB, with 4 {used[4]:.0f} MiB")
    assert used[4] - used[1] < MAX_OF_WORKERS_MIB


def memory_of(bundle: Path, workers: int) -> float:
    """Return the MiB of a service that has had as many images at once as it has workers, several times."""
    image, headers = (SAMPLE / "scene.jpg").read_bytes(), {"content-type": "image/jpeg"}
    with serving(bundle, "--workers", str(workers)) as service, ThreadPoolExecutor(workers) as threads:

        def upload(_: int) -> int:
            return httpx.post(f"{service.url}/v1/captions", content=image, headers=headers, timeout=60).status_code

        assert set(threads.map(upload, range(12))) == {200}
        status = Path(f"/proc/{service.process.pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
