"""Who may ask, and how much."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import OptionError, PatchcaptionError
from runtime.serving.http.settings import Access, ServiceLimits, is_loopback

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_loopback_is_what_no_other_machine_reaches(host: str, is_own: bool) -> None:
    assert is_loopback(host) == is_own


@pytest.mark.parametrize(
    ("header", "of_loopback", "of_all", "of_one"),
    [
        ("127.0.0.1:8000", True, True, False),
        ("127.0.0.1", True, True, False),
        ("localhost:9", True, True, False),
        ("localhost.", True, True, False),
        ("[::1]:8000", True, True, False),
        ("192.168.1.5:8000", False, True, True),
        ("10.0.0.1", False, True, False),
        ("box.example.org", False, False, False),
        ("robot.local:8000", True, True, True),
        ("ROBOT.local", True, True, True),
        ("robot.local.example.org", False, False, False),
        ("localhost.example.org", False, False, False),
        ("localhost:8000@example.org", False, False, False),
        ("localhost:http", False, False, False),
        ("::1", False, False, False),
        ("", False, False, False),
        ("a b", False, False, False),
    ],
)
def test_the_host_header_names_this_service(header: str, of_loopback: bool, of_all: bool, of_one: bool) -> None:
    names = ("robot.local",)
    found = [Access(host, names=names).is_own_host(header) for host in ("127.0.0.1", "0.0.0.0", "192.168.1.5")]
    assert found == [of_loopback, of_all, of_one]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_another_address_wants_a_token_or_a_word(host: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=rf"--host {host}: other machines can reach it; give a --token-file"):
        Access.of(host)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert Access.of(host, tmp_path / "token").token == TOKEN
    assert Access.of(host, is_open=True).token is None
    with pytest.raises(OptionError, match="exclude each other"):
        Access.of(host, tmp_path / "token", is_open=True)


@pytest.mark.parametrize("contents", [b"", b"short", b"two words, which is no token", b"\xff" * 20, "ü".encode() * 20])
def test_what_is_no_token_is_refused(contents: bytes, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(contents)
    with pytest.raises(PatchcaptionError, match="--token-file"):
        Access.of("127.0.0.1", tmp_path / "token")


def test_only_the_token_itself_is_known() -> None:
    access = Access(token=TOKEN)
    assert access.is_token(TOKEN)
    assert [one for one in ("", TOKEN[:-1], TOKEN + "0", TOKEN.upper(), "ü", "\ud800") if access.is_token(one)] == []


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"bytes": 0}, "bytes: expected a whole number from 1 on, got 0"),
        ({"queue": 1.5}, "queue: expected a whole number from 1 on, got 1.5"),
        ({"seconds": 0}, "seconds: expected a number from 0.001 on, got 0"),
        ({"feature_seconds": float("nan")}, "feature_seconds: expected a number"),
    ],
)
def test_a_limit_that_lets_nothing_in_is_refused(limit: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ServiceLimits(**limit)
