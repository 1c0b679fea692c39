"""The command from its start to its end: signals, kills, ports, flags, and streams that cannot be written."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import httpx
import pytest

from runtime.cli.main import main
from tests.children import run_child
from tests.conftest import SAMPLE
from tests.serving.http.child import Service, run, serving
from tests.serving.http.raw import HOST, connected, read_answer

IMAGE = (SAMPLE / "scene.jpg").read_bytes()
HEAD = b"POST /v1/captions HTTP/1.1\r\n" + HOST + b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(IMAGE)
FAILED, WRONG_USAGE = 1, 2
WITHIN_S = 60.0
"""In which a service hears a signal, on any machine."""
CAPTION = "five shapes on a checked white background"


@contextmanager
def half_asked(service: Service) -> Iterator[socket.socket]:
    """Yield a connection whose request is being read by the service."""
    with connected(service.url) as connection:
        connection.sendall(HEAD.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        answer, _ = read_answer(connection)
        assert answer is not None
        assert answer.status == 100
        yield connection


def wait_until_refused(service: Service) -> None:
    """Ask for new connections until there are none."""
    until = monotonic() + WITHIN_S
    while monotonic() < until:
        try:
            httpx.get(f"{service.url}/readyz")
        except httpx.TransportError:
            if not listens(service.port):
                return
    raise AssertionError("it still takes connections")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_when_those_who_asked_are_answered(ending: signal.Signals, demo_bundle: Path) -> None:
    with serving(demo_bundle) as service, connected(service.url) as idle, half_asked(service) as connection:
        service.process.send_signal(ending)
        wait_until_refused(service)
        assert idle.recv(1) == b""
        connection.sendall(IMAGE)
        answer, _ = read_answer(connection)
        assert answer is not None
        assert (answer.status, CAPTION in answer.body.decode()) == (200, True)
        assert connection.recv(1) == b""
        assert service.ended() == (0, "")


@pytest.mark.slow
def test_the_second_interrupt_ends_it_at_once(demo_bundle: Path) -> None:
    with serving(demo_bundle) as service, half_asked(service):
        service.process.send_signal(signal.SIGINT)
        wait_until_refused(service)
        service.process.send_signal(signal.SIGINT)
        code, said = service.ended()
        assert code in (0, 130)
        assert "Traceback" not in said


@pytest.mark.slow
def test_who_sends_no_more_is_waited_for_no_longer_than_the_limit(demo_bundle: Path) -> None:
    with serving(demo_bundle, "--timeout", "1") as service, half_asked(service) as connection:
        service.process.send_signal(signal.SIGTERM)
        answer, _ = read_answer(connection)
        assert answer is not None
        assert answer.status == 408
        assert service.ended() == (0, "")


@pytest.mark.slow
def test_killed_and_started_again_it_serves_on_the_same_port(demo_bundle: Path) -> None:
    with serving(demo_bundle) as service, half_asked(service), connected(service.url):
        for _ in range(8):  # the service closes these itself: they stay in TIME_WAIT
            assert httpx.get(f"{service.url}/healthz", headers={"connection": "close"}).status_code == 200
        service.process.kill()
        assert service.ended()[0] == -signal.SIGKILL
        with serving(demo_bundle, port=service.port) as again:
            assert again.port == service.port
            answer = httpx.post(f"{again.url}/v1/captions", content=IMAGE, headers={"content-type": "image/jpeg"})
            assert answer.json()["captions"][0]["text"] == CAPTION


@pytest.mark.slow
def test_nohup_keeps_it_alive(demo_bundle: Path) -> None:
    with serving(demo_bundle, before=["nohup"]) as service:
        service.process.send_signal(signal.SIGHUP)
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        service.process.send_signal(signal.SIGTERM)
        assert service.ended()[0] == 0


@pytest.mark.slow
def test_where_nobody_can_read_its_address_it_does_not_serve(demo_bundle: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = run(demo_bundle, "--port", "0", stdout=full.fileno())
    assert (done.returncode, done.stderr) == (
        FAILED,
        "patchcaption: error: stdout: cannot be written: No space left on device\n",
    )


def test_without_the_extra_it_says_what_to_install(demo_bundle: Path) -> None:
    names = ("fastapi", "uvicorn", "h11", "prometheus_client", "python_multipart")
    done = run_child(
        """
        import sys
        from runtime.cli.main import main

        for name in sys.argv[2:]:
            for loaded in [one for one in sys.modules if one.startswith("runtime.serving.http")]:
                del sys.modules[loaded]
            found, sys.modules[name] = sys.modules.get(name), None
            print(main(["serve", sys.argv[1], "--port", "0"]))
            if found is not None:
                sys.modules[name] = found
            else:
                del sys.modules[name]
        """,
        demo_bundle,
        *names,
    )
    assert done.stdout.split() == [str(FAILED)] * len(names), done.stderr
    for name, line in zip(names, done.stderr.splitlines(), strict=True):
        assert line.startswith("patchcaption: error: serve: ")
        assert name in line
        assert line.endswith("pip install 'patchcaption[serve]'")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, content in {
        "empty": b"",
        "short": b"0123456789abcde",
        "binary": bytes(range(256)),
        "words": b"two words of a token",
        "good": b"0123456789abcdef0123456789abcdef\n",
    }.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--max-bytes 0", "--max-bytes: expected a whole number from 1 on, got 0"),
        ("--max-pixels -1", "--max-pixels: expected a whole number from 1 on, got -1"),
        ("--queue 0", "--queue: expected a whole number from 1 on, got 0"),
        ("--timeout 0", "--timeout: expected a number from 0.001 on, got 0.0"),
        ("--timeout nan", "--timeout: expected a number from 0.001 on, got nan"),
        ("--feature-seconds=-inf", "--feature-seconds: expected a number from 0.001 on, got -inf"),
        ("--workers 0", "workers: expected a whole number from 1 to 512, got 0"),
        ("--workers 100000", "workers: expected a whole number from 1 to 512, got 100000"),
        ("--host 0.0.0.0", "--host 0.0.0.0: other machines can reach it; give a --token-file"),
        ("--host ::", "--host ::: other machines can reach it; give a --token-file"),
        (
            "--host 192.0.2.1 --no-auth",
            "--host 192.0.2.1 --port 0: cannot listen there: Cannot assign requested address",
        ),
        ("--host no.such.invalid --no-auth", "--host no.such.invalid --port 0: cannot listen there: "),
        ("--port 65536", "--host 127.0.0.1 --port 65536: cannot listen there: "),
        ("--port -1", "--host 127.0.0.1 --port -1: cannot listen there: "),
        ("--token-file {}/none", "none: cannot be read: No such file or directory"),
        ("--token-file {}", ": cannot be read: Is a directory"),
        (
            "--token-file {}/empty",
            "empty: expected one word of 16 or more ASCII letters, digits and signs, got 0 charac",
        ),
        (
            "--token-file {}/short",
            "short: expected one word of 16 or more ASCII letters, digits and signs, got 15 chara",
        ),
        ("--token-file {}/words", "words: expected one word of 16 or more ASCII letters, digits and signs"),
        ("--token-file {}/binary", "binary: cannot be read: it is no text"),
        ("--token-file {}/good --no-auth", "--token-file and --no-auth exclude each other"),
    ],
)
def test_what_is_mistaken_is_said_in_one_line(
    flags: str, error: str, demo_bundle: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = flags.format(files).split()
    assert main(["serve", str(demo_bundle), *(() if "--port" in given else ("--port", "0")), *given]) in (
        FAILED,
        WRONG_USAGE,
    )
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("patchcaption: error: ")
    assert error in line
    assert said.out == ""


@pytest.mark.parametrize("flags", ["--port http", "--queue 1.5", "--timeout soon", "--workers", "--unknown"])
def test_what_is_no_flag_is_said_in_one_line(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "bundle", *flags.split()]) == WRONG_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("patchcaption: error: ")
    assert flags.split()[0] in line


def test_a_port_that_is_taken_is_said_before_the_bundle_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(tmp_path), "--port", str(port)]) == FAILED
    expected = f"patchcaption: error: --host 127.0.0.1 --port {port}: cannot listen there: Address already in use\n"
    assert capsys.readouterr().err == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may take every port")
def test_a_port_of_the_system_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path), "--port", "80"]) == FAILED
    assert "cannot listen there: Permission denied" in capsys.readouterr().err


def test_where_there_is_no_bundle_nothing_is_left_that_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert main(["serve", str(tmp_path / "none"), "--port", str(port)]) == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "none") in line
    assert not listens(port)
