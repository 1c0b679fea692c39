"""The door of the service: whom it lets in, how much, and for how long."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

import httpx
import pytest
from PIL import Image

from runtime import Captioner
from runtime.features import FeatureMap
from runtime.serving.http.admission import Admission
from runtime.serving.http.errors import RequestError
from runtime.serving.http.settings import LIMITS, LOOPBACK, Access, ServiceLimits
from tests.serving.http.served import served
from tests.serving.http.test_calls import SQUARE, TRIANGLE, answer_of, as_form, as_json

TOKEN = "0123456789abcdef"


@contextmanager
def client_of(
    captioner: Captioner, access: Access = LOOPBACK, limits: ServiceLimits = LIMITS
) -> Iterator[httpx.Client]:
    with served(captioner, access, limits) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def narrow(demo: Captioner) -> Iterator[httpx.Client]:
    """A service that takes little."""
    limits = ServiceLimits(bytes=100_000, pixels=672 * 672, regions=4, crops=1)
    with client_of(demo, limits=limits) as client:
        yield client


def picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def mask(height: int, width: int) -> dict[str, object]:
    return {"kind": "mask", "size": [height, width], "counts": [0, height * width]}


@pytest.mark.parametrize(
    ("question", "error"),
    [
        ({"regions": [TRIANGLE] * 5}, "regions: expected at most 4 regions, got 5"),
        (
            {"regions": [TRIANGLE] * 2, "options": {"beams": 3}},
            "regions: expected at most 4 regions times beams, got 6",
        ),
        ({"regions": [{"kind": "crop", "xyxy": [0, 0, 50, 50]}] * 2}, "regions: expected at most 1 crops, got 2"),
        ({"regions": {"boxes": [[1, 1, 9, 9]] * 5}}, "regions: expected at most 4 regions times beams, got 5"),
        ({"regions": [mask(16384, 16384)]}, "regions: expected at most 1806336 pixels of masks, got 268435456"),
        ({"regions": [{"segmentation": mask(9000, 9000)}]}, "regions: expected at most 1806336 pixels of masks"),
        ({"regions": [mask(672, 672)] * 4 + [mask(1, 1)]}, "regions: expected at most 4 regions, got 5"),
    ],
)
def test_more_than_the_limits_is_refused_before_it_costs(
    question: dict[str, object], error: str, narrow: httpx.Client, scene_file: bytes
) -> None:
    assert answer_of(narrow.post("/v1/captions", **as_json(scene_file, **question)), 413)["error"].startswith(error)


def test_as_much_as_the_limits_is_taken(narrow: httpx.Client, scene_file: bytes) -> None:
    regions = [TRIANGLE, SQUARE, {"kind": "crop", "xyxy": [276, 174, 507, 399]}, mask(672, 672)]
    captions = answer_of(narrow.post("/v1/captions", **as_form(scene_file, regions=regions)))["captions"]
    assert [caption.get("error") for caption in captions] == [None] * 4


def test_pixels_are_counted_before_they_are_decoded(narrow: httpx.Client) -> None:
    answer = answer_of(narrow.post("/v1/features", **as_form(picture(673, 672))), 413)
    assert answer["error"] == "image: expected at most 451584 pixels, got 673 x 672"


def test_bodies_are_refused_by_what_they_say_and_by_what_they_are(narrow: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 10_000

    headers = {"content-type": "image/png"}
    too_large = narrow.post("/v1/features", content=b"x" * 100_001, headers=headers)
    assert answer_of(too_large, 413)["error"] == "body: expected at most 100000 bytes, got 100001"
    assert too_large.headers["connection"] == "close"
    unending = narrow.post("/v1/features", content=endless(), headers=headers)
    assert answer_of(unending, 413)["error"] == "body: expected at most 100000 bytes, got more"


@pytest.mark.parametrize("host", ["example.org", "example.org:8000", "127.0.0.1.example.org", ""])
def test_another_host_is_not_served(host: str, client: httpx.Client) -> None:
    assert "is no name of this service" in answer_of(client.get("/v1/info", headers={"host": host}), 421)["error"]


@pytest.mark.parametrize("origin", ["http://example.org", "null", "https://localhost", "file://"])
def test_a_page_elsewhere_may_not_ask(origin: str, client: httpx.Client, scene_file: bytes) -> None:
    posted = client.post("/v1/features", **as_form(scene_file), headers={"origin": origin})
    assert answer_of(posted, 403)["error"] == f"Origin {origin!r} may not ask; --cors allows it"
    assert "access-control-allow-origin" not in posted.headers


def test_the_page_itself_and_origins_that_are_allowed_may(demo: Captioner) -> None:
    with client_of(demo, Access(origins=("https://robots.example",))) as client:
        own = {"origin": str(client.base_url).rstrip("/")}
        assert client.get("/v1/info", headers=own).status_code == 200
        answer = client.get("/v1/info", headers={"origin": "https://robots.example"})
        assert answer.headers["access-control-allow-origin"] == "https://robots.example"
        asked = {"origin": "https://robots.example", "access-control-request-method": "POST"}
        assert client.options("/v1/features", headers=asked).status_code == 200
        assert client.get("/v1/info", headers={"origin": "https://example.org"}).status_code == 403


def test_a_token_is_wanted_for_all_but_the_page_and_the_probes(demo: Captioner) -> None:
    with client_of(demo, Access(token=TOKEN)) as client:
        for path in ("/", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200
        for header in ("", TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer wrong", f"Bearer {TOKEN}0"):
            refused = client.get("/v1/info", headers={"authorization": header})
            assert answer_of(refused, 401)["error"] == "expected the header Authorization: Bearer TOKEN"
            assert refused.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/openapi.json", "/v1/nowhere"):
            assert client.get(path).status_code == 401
        assert client.get("/v1/info", headers={"authorization": f"bearer {TOKEN}"}).status_code == 200


def test_a_full_queue_says_when_to_come_again(
    demo: Captioner, scene_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, is_in, may_go = demo.encode, Event(), Event()

    def slow(image: bytes) -> FeatureMap:
        is_in.set()
        assert may_go.wait(30)
        return encode(image)

    monkeypatch.setattr(demo, "encode", slow)

    async def ask(url: str) -> tuple[httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            first = asyncio.create_task(client.post("/v1/captions", **as_form(scene_file, regions=[TRIANGLE])))
            await asyncio.to_thread(is_in.wait, 30)
            second = await client.post("/v1/captions", **as_form(scene_file))
            assert (await client.get("/healthz")).status_code == 200  # probes do not wait
            may_go.set()
            return await first, second

    with served(demo, limits=ServiceLimits(queue=1)) as url:
        first, second = asyncio.run(ask(url))
    assert answer_of(first)["captions"][0]["text"] == "a large striped red triangle"
    assert answer_of(second, 429)["error"] == "1 requests wait already; try again in 1 s"
    assert second.headers["retry-after"] == "1"


def test_bodies_that_are_too_large_together_wait_outside() -> None:
    queue = Admission(ServiceLimits(queue_bytes=100))
    with queue.ticket() as first, queue.ticket() as second:
        first.read(60)
        second.read(40)
        with pytest.raises(RequestError, match="the requests that wait have 100 bytes; try again in 1 s"):
            second.read(1)
    assert (queue.waiting, queue.num_bytes) == (0, 0)


def test_what_takes_too_long_is_told_so_and_the_next_is_served(
    demo: Captioner, scene_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go = Event()

    def stuck(_: bytes) -> FeatureMap:
        assert may_go.wait(30)
        raise AssertionError

    with client_of(demo, limits=ServiceLimits(seconds=0.3)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(demo, "encode", stuck)
            late = client.post("/v1/captions", **as_form(scene_file))
            assert answer_of(late, 503)["error"].startswith("the answer takes longer than 0.3 s")
            may_go.set()
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/features", "POST"),
        ("/v1/features/abc", "DELETE, GET, HEAD"),
        ("/v1/features/abc/captions", "POST"),
        ("/healthz", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
        ("/", "GET, HEAD"),
        ("/page/app.js", "GET, HEAD"),
    ],
)
def test_another_method_is_told_those_of_the_path(path: str, allowed: str, client: httpx.Client) -> None:
    answer = client.patch(path)
    assert answer_of(answer, 405)["error"] == f"{path!r}: expected {allowed}"
    assert answer.headers["allow"] == allowed
