"""What clients do wrong, by mistake or on purpose: it is refused in one line, and the next request is served."""

from __future__ import annotations

import base64
import io
import itertools
import json
import resource
import select
import socket
import struct
import zlib
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import httpx
import pytest
from PIL import Image

from runtime import Captioner
from runtime.options import DecodingOptions, PoolingOptions
from runtime.serving.http import connections, door, server
from runtime.serving.http.settings import LIMITS, Access, ServiceLimits
from tests.serving.http.raw import HOST, ask, connected, read_answer
from tests.serving.http.served import served
from tests.serving.http.test_calls import TRIANGLE, as_form

TOKEN = "correct-horse-battery-staple"
JSON = {"content-type": "application/json"}
HEAD_OF_POST = b"POST /v1/captions HTTP/1.1\r\n" + HOST
CALLS = (
    "/v1/captions",
    "/v1/features",
    "/v1/features/x",
    "/v1/features/x/captions",
    "/v1/features/x/attention",
    "/v1/info",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/",
    "/page/index.html",
    "/nothing",
)


@pytest.fixture(autouse=True)
def is_served_after(url: str) -> Iterator[None]:
    """The next request, on a connection of its own, is served."""
    yield
    assert httpx.get(f"{url}/readyz", timeout=60).json() == {"status": "ok"}


@pytest.fixture(scope="module")
def path(client: httpx.Client, scene_file: bytes) -> str:
    """Of the captions of a feature map."""
    return f"/v1/features/{client.post('/v1/features', **as_form(scene_file)).json()['id']}/captions"


def get(target: bytes, *headers: bytes, method: bytes = b"GET") -> bytes:
    return method + b" " + target + b" HTTP/1.1\r\n" + HOST + b"".join(one + b"\r\n" for one in headers) + b"\r\n"


def post(body: bytes, *headers: bytes) -> bytes:
    return HEAD_OF_POST + b"".join(one + b"\r\n" for one in headers) + b"\r\n" + body


def refusal_of(response: httpx.Response) -> str:
    """Return the line of a refusal."""
    answer = response.json()
    assert set(answer) == {"error"}
    assert len(answer["error"].splitlines()) == 1
    assert len(answer["error"]) <= 1003
    return str(answer["error"])


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"\x00\xff\x00 nothing\r\n\r\n", id="no text"),
        pytest.param(bytes.fromhex("16030100a5010000a10303") + b"\r\n\r\n", id="TLS"),
        pytest.param(b"GET /healthz\r\n\r\n", id="HTTP/0.9"),
        pytest.param(b"GET /healthz HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(get(b"/healthz", HOST[:-2]), id="two Hosts"),
        pytest.param(get(b"/healthz", b"Host: evil.example"), id="two names"),
        pytest.param(get(b"/\xff"), id="bytes in the path"),
        pytest.param(get(b"/healthz", b"X: a\x00b"), id="NUL in a header"),
        pytest.param(get(b"/healthz", b"X : a"), id="space before the colon"),
        pytest.param(post(b"abcde", b"Content-Length: 4", b"Content-Length: 5"), id="two lengths"),
        pytest.param(post(b"abcde", b"Content-Length: -4"), id="a length below zero"),
        pytest.param(post(b"abcde", b"Content-Length: 0x5"), id="a length in hexadecimal"),
        pytest.param(post(b"abcde", b"Content-Length: " + b"9" * 5000), id="a length of 5000 digits"),
        pytest.param(post(b"0\r\n\r\n", b"Transfer-Encoding: gzip, chunked"), id="another coding"),
        pytest.param(post(b"0\r\n\r\n", b"Transfer-Encoding: xchunked"), id="no such coding"),
        pytest.param(post(b"0\r\n\r\n", b"Transfer-Encoding : chunked"), id="a coding before a space"),
        pytest.param(post(b"zz\r\n\r\n", b"Transfer-Encoding: chunked"), id="a chunk of no length"),
        pytest.param(post(b"-5\r\nabcde\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"), id="a chunk below zero"),
        pytest.param(post(b"f" * 70 + b"\r\nabcde", b"Transfer-Encoding: chunked"), id="a chunk of 280 bits"),
    ],
)
def test_what_is_no_http_is_refused_and_the_connection_ends(request_: bytes, url: str) -> None:
    (answer,) = ask(url, request_ + get(b"/healthz"), count=2)
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert answer.error.startswith("not HTTP/1.1: ")


@pytest.mark.parametrize(
    "lengths",
    [
        (b"Content-Length: 4", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    ],
)
def test_a_request_that_two_readers_would_end_at_different_places_is_refused(
    lengths: tuple[bytes, bytes], url: str
) -> None:
    (answer,) = ask(url, post(b"0\r\n\r\n" + get(b"/v1/info"), *lengths), count=2)
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert answer.error == "Content-Length and Transfer-Encoding: expected one of them, got both"


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(get(b"/healthz", b"X: " + b"a" * 2**21), id="one header"),
        pytest.param(get(b"/healthz", *[b"X: a"] * 200_000), id="many headers"),
        pytest.param(get(b"/" + b"a" * 2**21), id="path"),
        pytest.param(b"A" * 2**21 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", id="method"),
    ],
)
def test_a_huge_head_is_read_no_further_than_its_limit(head: bytes, url: str) -> None:
    answers = ask(url, head)
    assert [(answer.status, answer.error) for answer in answers] in (
        [(431, "not HTTP/1.1: Receive buffer too long")],
        [],  # the connection was reset while more was being sent, before the answer was read
    )


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get(b"/page/..%2f..%2fapp.py"), 404),
        (get(b"/page/../app.py"), 404),
        (get(b"/page/%2e%2e/app.py"), 404),
        (get(b"/page/%252e%252e/app.py"), 404),
        (get(b"/page/..\\app.py"), 404),
        (get(b"/page//etc/passwd"), 404),
        (get(b"/page/%2fetc%2fpasswd"), 404),
        (get(b"/page/%00"), 404),
        (get(b"/page/index.html%00.js"), 404),
        (get(b"/page/" + b"a" * 9000), 404),
        (get(b"/page/%ff%fe"), 404),
        (get(b"/page"), 404),
        (get(b"/page/"), 404),
        (get(b"//healthz"), 404),
        (get(b"/healthz/"), 404),
        (get(b"//evil.example/"), 404),
        (get(b"/v1/features/"), 404),
        (get(b"/v1/features/a%2fb"), 404),
        (get(b"/v1/features/%00"), 404),
        (get(b"/v1/features/%0d%0aSet-Cookie:%20a=b"), 404),
        (get(b"/v1/features/" + b"a" * 60_000), 404),
        (get(b"/v1/features/%ed%a0%80/attention"), 404),
        (get(b"/v1/features/..%2f..%2fhealthz"), 404),
        (get(b"http://evil.example/healthz"), 404),
        (get(b"*", method=b"OPTIONS"), 404),
        (get(b"evil.example:443", method=b"CONNECT"), 404),
        (get(b"/healthz", method=b"BREW"), 405),
        (get(b"/healthz", method=b"get"), 405),
        (get(b"/healthz", b"Origin: null"), 403),
        (get(b"/healthz", b"Origin: http://evil.example"), 403),
        (get(b"/healthz", b"Origin: http://127.0.0.1:1"), 403),
        (get(b"/healthz", b"Origin: \xff"), 403),
        (get(b"/healthz").replace(b"127.0.0.1", b"evil.example"), 421),
        (get(b"/healthz").replace(b"127.0.0.1", b"evil.example:80"), 421),
        (get(b"/healthz").replace(b"127.0.0.1", b"127.0.0.1.evil.example"), 421),
        (get(b"/healthz").replace(b"127.0.0.1", b"evil@127.0.0.1"), 421),
        (get(b"/healthz").replace(b"127.0.0.1", b"127.0.0.1@evil.example"), 421),
        (get(b"/healthz").replace(b"127.0.0.1", b"[::1"), 421),
        (get(b"/healthz").replace(b"127.0.0.1", b"\xff"), 421),
        (get(b"/healthz").replace(b"127.0.0.1", b""), 421),
        (get(b"/healthz").replace(b"127.0.0.1", b"0x7f000001"), 421),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 421),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 421),
        (post(b"{}", b"Content-Length: 2", b"Content-Type: \xff\xfe"), 415),
        (post(b"{}", b"Content-Length: 2", b"Content-Type: multipart/form-data; boundary=" + b"x" * 5000), 400),
        (post(b"", b"Content-Length: 999999999999999999"), 413),
    ],
    ids=itertools.count(),
)
def test_an_odd_request_is_refused_in_one_line(request_: bytes, status: int, url: str) -> None:
    answer = ask(url, request_)[0]
    assert answer.status == status, answer
    assert answer.error
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /healthz HTTP/1.0\r\n" + HOST + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: LOCALHOST.:99\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        get(b"/healthz", b"Connection: upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"),
        get(b"/healthz", b"Connection: upgrade, http2-settings", b"Upgrade: h2c", b"HTTP2-Settings: AA"),
        get(b"/healthz", b"X: \xff"),
        get(b"/healthz?" + b"a" * 9000),
        get(b"/page/index.html", b"Range: bytes=9999999-"),
        get(b"/page/index.html", b"Range: bytes=x-y"),
        get(b"/page/index.html", b"Range: bytes=" + b",".join(b"%d-%d" % (i, i) for i in range(2000))),
        get(b"/page/index.html", b"If-Modified-Since: Sat, 99 Foo 99999 99:99:99 GMT"),
    ],
    ids=itertools.count(),
)
def test_an_odd_request_that_means_something_is_answered(request_: bytes, url: str) -> None:
    assert ask(url, request_)[0].status == 200


def test_requests_that_come_together_are_answered_in_turn(url: str) -> None:
    answers = ask(url, get(b"/healthz") * 5 + get(b"/nothing") + get(b"/readyz"), count=7)
    assert [answer.status for answer in answers] == [200] * 5 + [404, 200]


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "PATCH", "TRACE", "DELETE", "PROPFIND"])
def test_no_route_takes_another_method(method: str, path: str, client: httpx.Client) -> None:
    answer = client.request(method, path)
    is_missing = path == "/nothing" or (method, path) == ("DELETE", "/v1/features/x")
    assert answer.status_code == (404 if is_missing else 405)
    assert refusal_of(answer)


@pytest.mark.parametrize("path", CALLS)
def test_head_says_what_get_would_say(path: str, url: str) -> None:
    with connected(url) as connection:
        connection.sendall(get(path.encode(), method=b"HEAD"))
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
        connection.sendall(get(b"/healthz"))  # right after it: there is no body
        following, _ = read_answer(connection, head.partition(b"\r\n\r\n")[2])
    status = int(head.split(b" ")[1])
    assert status == ask(url, get(path.encode()))[0].status
    assert b"content-length: " in head.lower()
    assert following is not None
    assert following.body == b'{"status":"ok"}'


def test_a_head_that_does_not_come_ends_its_connection_alone(
    url: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    for sent in (b"", b"GET / HT", get(b"/healthz")[:-2]):
        with connected(url) as connection:
            connection.sendall(sent)
            assert client.get("/healthz").status_code == 200
            assert connection.recv(1) == b""
    with connected(url) as connection:  # the second head of a connection
        connection.sendall(get(b"/healthz") + b"GET / HT")
        answer, rest = read_answer(connection)
        assert answer is not None
        assert answer.status == 200
        connection.sendall(b"TP")
        assert rest + connection.recv(1) == b""


@pytest.mark.parametrize(
    "start",
    [
        post(b'{"ima', b"Content-Length: 400", b"Content-Type: application/json"),
        post(b"f\r\nab", b"Transfer-Encoding: chunked", b"Content-Type: application/json"),
        post(b"", b"Content-Length: 400", b"Expect: 100-continue"),
    ],
    ids=["with a length", "in chunks", "after 100"],
)
def test_a_body_that_does_not_come_is_408_and_takes_no_place(start: bytes, demo: Captioner) -> None:
    limits = replace(LIMITS, seconds=0.5, queue=1)
    with served(demo, limits=limits) as url:
        answer = ask(url, start, count=2 if b"Expect" in start else 1)[-1]
        assert (answer.status, answer.error) == (408, "body: not there after 0.45 s")
        assert answer.headers["connection"] == "close"
        assert httpx.post(f"{url}/v1/features/x/captions", json={}).status_code == 404  # no 429


def test_who_reads_no_answer_loses_the_connection_and_keeps_nobody_waiting(
    url: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.3)
    with connected(url, receive_buffer=4096) as connection:
        connection.settimeout(0.1)
        asked = get(b"/openapi.json", b"X: " + b"a" * 60_000)
        assert sent_until_refused(connection, asked, 64 * 2**20)  # the service reads no more requests either
        assert client.get("/healthz").status_code == 200
        ended = select.poll()
        ended.register(connection, select.POLLERR)
        assert ended.poll(30_000)


def sent_until_refused(connection: socket.socket, piece: bytes, most: int) -> int:
    """Return how much could be sent before the service took no more, which is less than ``most``."""
    sent = 0
    try:
        while sent < most:
            sent += connection.send(piece)
    except OSError:  # it was closed, or nothing was taken for a while
        return sent
    raise AssertionError(f"the service still reads after {sent} bytes")


def test_an_upload_that_is_cut_off_gives_its_place_back(demo: Captioner, scene_file: bytes) -> None:
    with served(demo, limits=replace(LIMITS, queue=1)) as url:
        for start in (
            b"x" * 20_000,
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + scene_file[:9000],
        ):
            with connected(url) as connection:
                connection.sendall(
                    post(start, b"Content-Length: 99999", b"Content-Type: multipart/form-data; boundary=x")
                )
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset
        for _ in range(1000):
            if "queue_requests 0.0" in httpx.get(f"{url}/metrics").text:
                break
        assert httpx.post(f"{url}/v1/captions", **as_form(scene_file)).status_code == 200


def test_a_body_without_length_is_read_no_further_than_the_limit(
    demo: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "LINGER_SECONDS", 5.0)
    limit, chunk = 2**20, b"10000\r\n" + b"x" * 2**16 + b"\r\n"
    with served(demo, limits=replace(LIMITS, bytes=limit)) as url, connected(url) as connection:
        connection.sendall(post(b"", b"Transfer-Encoding: chunked", b"Content-Type: image/png"))
        assert limit <= sent_until_refused(connection, chunk, 2 * limit + 16 * 2**20)  # so much the system itself takes


@pytest.mark.parametrize("kind", ["with a length", "in chunks"])
def test_a_body_of_100_megabytes_is_413(kind: str, client: httpx.Client) -> None:
    pieces = (b"x" * 10**6 for _ in range(100))
    content = pieces if kind == "in chunks" else b"x" * 10**8
    answer = client.post("/v1/captions", content=content, headers=JSON)
    assert answer.status_code == 413
    assert refusal_of(answer).startswith("body: expected at most 33554432 bytes, got ")


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(get(b"/healthz", b"Content-Length: 1000000000"), id="GET"),
        pytest.param(get(b"/healthz", b"Transfer-Encoding: chunked"), id="GET in chunks"),
        pytest.param(get(b"/v1/features/x", b"Content-Length: 1000000000", method=b"DELETE"), id="DELETE"),
        pytest.param(post(b"", b"Content-Length: 1000000000"), id="413"),
        pytest.param(post(b"", b"Content-Length: 1000", b"Origin: null"), id="403"),
    ],
)
def test_the_rest_of_a_body_that_nobody_wants_is_not_waited_for(
    request_: bytes, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "LINGER_SECONDS", 0.1)
    with connected(url) as connection:
        connection.sendall(request_)
        answer, rest = read_answer(connection)
        assert answer is not None
        assert answer.headers["connection"] == "close"
        assert rest + connection.recv(1) == b""


@pytest.mark.parametrize(
    ("limits", "headers", "status"),
    [
        (replace(LIMITS, bytes=10**6), (), 413),
        (replace(LIMITS, queue_bytes=10**5), (), 429),
        (LIMITS, (b"Host: evil.example",), 421),
        (LIMITS, (HOST[:-2], b"Origin: null"), 403),
    ],
)
def test_who_reads_after_the_whole_body_is_sent_reads_why(
    limits: ServiceLimits, headers: tuple[bytes, ...], status: int, demo: Captioner
) -> None:
    """The connection does not end with a reset, which would take the answer with it."""
    body = bytes(2 * 10**6)
    head = post(b"", b"Content-Length: %d" % len(body), *headers)
    head = head.replace(HOST, b"", 1) if headers else head
    with served(demo, limits=limits) as url, connected(url) as connection:
        connection.sendall(head + body[: limits.bytes])
        answer, rest = read_answer(connection)
        assert answer is not None
        assert answer.status == status
        assert answer.error
        assert rest == b""


def test_who_says_that_nothing_more_comes_is_answered(url: str, scene_file: bytes) -> None:
    length = b"Content-Length: %d" % len(scene_file)
    with connected(url) as connection:
        connection.sendall(post(scene_file, length, b"Content-Type: image/jpeg"))
        connection.shutdown(socket.SHUT_WR)
        answer, _ = read_answer(connection)
        assert answer is not None
        assert answer.status == 200
        assert connection.recv(1) == b""


def test_connections_that_ask_nothing_make_room(demo: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_CONNECTIONS", 8)
    with served(demo, limits=replace(LIMITS, queue=1)) as url:
        held = [connected(url) for _ in range(20)]
        idle = [one.__enter__() for one in held]
        try:
            with httpx.Client(base_url=url) as client:
                assert [client.get("/healthz").status_code for _ in range(3)] == [200] * 3
            for connection in idle[:13]:  # the oldest ones went
                assert ended(connection)
            idle[-1].sendall(get(b"/healthz"))
            assert read_answer(idle[-1])[0] is not None
        finally:
            for one in held:
                one.__exit__(None, None, None)


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_as_many_connections_as_there_are_descriptors_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in ((1024, 896), (100, 1), (resource.RLIM_INFINITY, 1024), (2**20, 1024)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert connections.most_connections(1024) == most


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def tiff(width: int, height: int) -> bytes:
    tags = ((256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 10))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(20)


def altered(format: str, mark: bytes, offset: int, size: bytes, **options: Any) -> bytes:
    """Return a small image whose header says that it is large."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format, **options)
    content = bytearray(file.getvalue())
    at = content.index(mark) + offset
    content[at : at + len(size)] = size
    return bytes(content)


INFLATED = zlib.compress(bytes(2 * 10**8))
BOMBS = {
    "png": png(50_000, 50_000),
    "png of most pixels": png(2**31 - 1, 2**31 - 1),
    "png of one column": png(1, 100_000_001),
    "png of nothing": png(0, 0),
    "png with a text": png(8, 8, chunk(b"zTXt", b"k\0\0" + INFLATED)),
    "png with a profile": png(8, 8, chunk(b"iCCP", b"k\0\0" + INFLATED)),
    "gif": altered("GIF", b"GIF", 6, struct.pack("<HH", 65_535, 65_535)),
    "jpeg": altered("JPEG", b"\xff\xc0", 5, struct.pack(">HH", 65_500, 65_500)),
    "tiff": tiff(60_000, 60_000),
    "tiff of most pixels": tiff(2**32 - 1, 2**32 - 1),
    "webp": altered("WEBP", b"VP8L", 9, struct.pack("<I", 16_383 | (16_383 << 14)), lossless=True),
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 10**5, 10**5, 1, 24, 0, 0, 0, 0, 0, 0),
    "ico": b"\0\0\1\0\1\0\0\0\0\0" + struct.pack("<HHII", 1, 32, 100, 22) + png(50_000, 50_000),
    "ppm": b"P6\n99999999 99999999\n255\n",
    "ppm of many digits": b"P6\n" + b"9" * 5000 + b" 1\n255\n",
    "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miafMA1A",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nquit\n",
    "pdf": b"%PDF-1.7\n",
    "text": b"\0" * 1000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_image_that_would_fill_the_memory_is_refused_by_its_header(name: str, client: httpx.Client) -> None:
    answer = client.post("/v1/features", content=BOMBS[name], headers={"content-type": "image/png"})
    assert answer.status_code in (400, 413)
    assert refusal_of(answer).startswith("image")


IMAGE_PART = b'--x\r\nContent-Disposition: form-data; name="image"'


@pytest.mark.parametrize(
    "part",
    [
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc',
        IMAGE_PART + b"\r\nContent-Transfer-Encoding: base64\r\n\r\n&&&\r\n--x--\r\n",
        IMAGE_PART + b"\r\nContent-Transfer-Encoding: odd\r\n\r\nabc\r\n--x--\r\n",
        b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n",
        b"--x\r\n\r\nabc\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="image"; filename=""\r\n\r\n\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="' + b"n" * 10**6 + b'"\r\n\r\nabc\r\n--x--\r\n',
        b"--x\r\n" + b"A: b\r\n" * 100_000 + b"\r\nabc\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="regions"\r\n\r\n[]\r\n' * 17 + b"--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="a\x00\xff"\r\n\r\n[]\r\n--x--\r\n',
        b"--x\r\nContent-Disposition: form-data; name*=utf-16''%ff%fe\r\n\r\n[]\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="regions"\r\n\r\n\xff\r\n--x--\r\n',
    ],
    ids=itertools.count(),
)
def test_a_form_that_is_none_is_refused(part: bytes, client: httpx.Client) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/v1/captions", content=part, headers=headers)
    assert answer.status_code == 400
    assert refusal_of(answer)


LONG = "9" * 4000
BOX = {"kind": "box", "xyxy": [0, 0, 9, 9]}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("[" * 10**6, 400),
        ('{"regions":' + "[" * 900 + "]" * 900 + "}", 400),
        ('{"regions":[{"kind":' + "[" * 900 + "]" * 900 + "}]}", 400),
        ('{"options":{"mode":' + "[" * 900 + "]" * 900 + "}}", 400),
        ('{"regions":' + '{"box":' * 900 + "1" + "}" * 901, 400),
        ('{"a":' * 10**5, 400),
        ('{"regions":[{"kind":"point","x":' + "9" * 5000 + ',"y":1}]}', 400),
        ('{"regions":3,"regions":"\\u0000\\ud800"}', 400),
        ('{"regions":{"a":1}}', 400),
        ('{"\\ud800\\u0000\\n":1}', 400),
        (json.dumps({"regions": [{"kind": "point", "x": 1, "y": 1}] * 10_000}), 413),
        (json.dumps({"regions": [{"kind": "crop", "xyxy": [0, 0, 9, 9]}] * 17}), 413),
        (json.dumps({"regions": [{"kind": "polygon", "points": [[i % 600, i % 599] for i in range(10**5)]}]}), 413),
        (json.dumps({"regions": [{"kind": "trace", "points": [[i % 600, i % 599] for i in range(10**5)]}]}), 413),
        (json.dumps({"regions": [{"kind": "box_set", "boxes": [BOX] * 20_000}]}), 413),
        ('{"regions":[{"kind":"mask","size":[100000,100000],"counts":[0,10000000000]}]}', 413),
        ('{"regions":[{"segmentation":{"size":[100000,100000],"counts":"PPYo0"}}]}', 413),
        ('{"regions":[{"kind":"mask","size":[' + LONG + ',1],"counts":[0,5]}]}', 413),
        ('{"regions":[{"kind":"mask","size":[1e308,1e308],"counts":[0,5]}]}', 200),
    ],
    ids=itertools.count(),
)
def test_a_question_that_costs_too_much_is_refused(body: str, status: int, path: str, client: httpx.Client) -> None:
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == status, answer.text[:300]
    assert status == 200 or refusal_of(answer)


NUMBERS = ("1e308", "-1e308", "1e400", "-0.0", "5e-324", "NaN", "-Infinity", LONG, "null", "true", '"1"', "[]", "{}")
FORMS = (
    '{"kind":"box","xyxy":[%s,0,99,99]}',
    '{"kind":"box","xyxy":[0,0,99,99],"variance":%s}',
    '{"kind":"box","xyxy":[0,0,99,99],"pool":%s}',
    '{"kind":"box","xyxy":[0,0,99,99],"confidence":%s}',
    '{"kind":"box","xyxy":[0,0,99,99],"id":%s}',
    '{"kind":"box","xyxy":[0,0,99,99],"class_name":%s}',
    '{"kind":"box","xyxy":%s}',
    '{"kind":"box_set","boxes":[{"kind":"box","xyxy":[%s,0,99,99]}]}',
    '{"kind":"box_set","boxes":%s}',
    '{"kind":"crop","xyxy":[%s,0,99,99]}',
    '{"kind":"mask","size":[%s,9],"counts":[0,81]}',
    '{"kind":"mask","size":[672,672],"counts":[0,%s]}',
    '{"kind":"mask","size":[672,672],"counts":%s}',
    '{"kind":"polygon","points":[[%s,0],[99,0],[99,99]]}',
    '{"kind":"polygon","points":%s}',
    '{"kind":"polygon_set","polygons":%s}',
    '{"kind":"trace","points":[[%s,0],[99,99]]}',
    '{"kind":"trace","points":%s}',
    '{"kind":"point","x":%s,"y":1}',
    '{"kind":"patch","row":%s,"column":1}',
    '{"kind":"whole_image","pool":%s}',
    '{"kind":%s}',
    '{"bbox":[%s,0,9,9],"category_id":1}',
    '{"x_min":%s,"y_min":0,"x_max":9,"y_max":9}',
    "[%s,0,9,9]",
    "%s",
)


@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_every_size_and_kind_are_captioned_or_their_rows_errors(
    form: str, path: str, client: httpx.Client
) -> None:
    given = [form % number for number in NUMBERS if (number, "size" in form) != (LONG, True)]  # which is 413
    answer = client.post(path, content=f'{{"regions":[{",".join([*given, json.dumps(TRIANGLE)])}]}}', headers=JSON)
    assert answer.status_code == 200, answer.text[:300]
    captions = answer.json()["captions"]
    assert len(captions) == len(given) + 1
    assert captions[-1]["text"] == "a large striped red triangle"
    assert all(bool(caption["text"]) != ("error" in caption) for caption in captions)


OPTIONS = (
    *(field.name for kind in (PoolingOptions, DecodingOptions) for field in fields(kind)),
    *("on_bad", "timeout_s", "channels", "features", "regions", "self"),
)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_every_type_are_taken_or_refused(name: str, path: str, client: httpx.Client) -> None:
    for value in (*NUMBERS, "2", "0.5", "-1", '"\\ud800\\u0000"', '"decode"', "1" + "0" * 400):
        body = f'{{"regions":[{{"kind":"point","x":1,"y":1}}],"options":{{"{name}":{value}}}}}'
        answer = client.post(path, content=body, headers=JSON)
        assert answer.status_code in (200, 400, 413), (name, value, answer.text[:300])
        assert answer.status_code == 200 or refusal_of(answer)


TEXTS = ("\0", "\ud800", "\U0001f53a", "\u202e", "a\r\nb", "三角形", "é" * 10_000, "")


@pytest.mark.parametrize("text", TEXTS, ids=itertools.count())
def test_letters_of_every_kind_go_anywhere(text: str, path: str, client: httpx.Client) -> None:
    for values, status in (
        ({"regions": [TRIANGLE | {"class_name": text}]}, 200),
        ({"regions": [TRIANGLE | {"kind": text}, TRIANGLE | {"pool": text}, {text: 1}, text]}, 200),
        ({"regions": text}, 400),
        ({"regions": [TRIANGLE], text: 1}, 400),
        ({"regions": [TRIANGLE], "options": {text: 1}}, 400),
        ({"regions": [TRIANGLE], "options": {"mode": text}}, 400),
        ({"regions": [TRIANGLE], "options": text}, 400),
        ({"image": text}, 400),
    ):
        answer = client.post(path, content=json.dumps(values), headers=JSON)
        assert answer.status_code == status, (values, answer.text[:300])
        assert status == 200 or refusal_of(answer)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer wrong",
        b"Bearer " + TOKEN.encode()[:-1],
        b"Bearer " + TOKEN.encode() + b"x",
        b"Bearer " + TOKEN.upper().encode(),
        b"Bearer " + b"x" * 50_000,
        b"Bearer \xff\xfe",
        b"Bearer " + "é".encode() * 14,
        b"Basic " + base64.b64encode(TOKEN.encode()),
        TOKEN.encode(),
    ],
    ids=itertools.count(),
)
def test_without_the_token_nothing_is_told(authorization: bytes | None, guarded: str) -> None:
    headers = [] if authorization is None else [b"Authorization: " + authorization]
    for target in (b"/v1/info", b"/metrics", b"/openapi.json", b"/v1/features/x", b"/nothing"):
        answer = ask(guarded, get(target, *headers))[0]
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.error == "expected the header Authorization: Bearer TOKEN"
    assert ask(guarded, post(b"{}", b"Content-Length: 2", *headers))[0].status == 401
    for target in (b"/", b"/page/index.html", b"/healthz", b"/readyz"):
        assert ask(guarded, get(target, *headers))[0].status == 200


def test_with_the_token_all_is_told(guarded: str) -> None:
    for scheme in (b"Bearer ", b"bearer ", b"BEARER   "):
        assert ask(guarded, get(b"/v1/info", b"Authorization: " + scheme + TOKEN.encode()))[0].status == 200


@pytest.fixture(scope="module")
def guarded(demo: Captioner) -> Iterator[str]:
    with served(demo, Access(token=TOKEN)) as url:
        yield url
