"""The port of web functions stays from start to start, and addresses are those that clients can use."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kedge.server import web as web_module
from kedge.server.settings import Settings
from kedge.server.web import REMEMBERED, Web, context_of
from tests.wire.test_tls import CERTIFICATES


def settings(directory: Path, **options: Any) -> Settings:
    return Settings(home=directory, **options)


@contextmanager
def bound(directory: Path, **options: Any) -> Iterator[Web]:
    chosen = settings(directory, **options)
    web = Web(chosen, directory, context_of(chosen))
    web.bind()
    try:
        yield web
    finally:
        web.release()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> int:
    """The usual port, for the time of a test."""
    port = free_port()
    monkeypatch.setattr(web_module, "HTTP_PORT", port)
    return port


def test_a_port_that_is_taken_for_a_while_comes_back(tmp_path: Path, usual: int) -> None:
    with bound(tmp_path) as web:
        assert (web.port, web.wanted, web.url()) == (usual, 0, f"http://127.0.0.1:{usual}")
    with socket.create_server(("127.0.0.1", usual)):
        with bound(tmp_path) as web:
            assert web.wanted == usual
            other = web.port
        with bound(tmp_path) as web:
            assert (web.port, web.wanted) == (other, usual)
    with bound(tmp_path) as web:
        assert (web.port, web.wanted) == (usual, 0)


def test_where_another_program_has_it_a_free_one_is_taken_and_stays(tmp_path: Path, usual: int) -> None:
    with socket.create_server(("127.0.0.1", usual)), bound(tmp_path) as web:
        assert web.wanted == usual
        assert web.port != usual
        port = web.port
    assert stat.S_IMODE((tmp_path / REMEMBERED).stat().st_mode) == 0o600
    with bound(tmp_path) as web:
        assert (web.port, web.wanted) == (port, 0), "addresses stay, although the usual port is free again"
    (tmp_path / REMEMBERED).write_text("nonsense")
    with bound(tmp_path) as web:
        assert web.port == usual


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(OSError, match=f"cannot listen on 127.0.0.1, port {port}: Address already in use"),
            bound(tmp_path, port=port),
        ):
            pass


def test_connections_may_come_before_anything_answers(tmp_path: Path) -> None:
    with bound(tmp_path, port=0) as web, socket.create_connection(("127.0.0.1", web.port)) as early:
        early.sendall(b"GET / HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    ("options", "host", "url", "domain"),
    [
        ({}, "", "http://127.0.0.1:PORT", "localhost:PORT"),
        ({"host": "0.0.0.0"}, "", "http://127.0.0.1:PORT", "localhost:PORT"),
        ({"host": "0.0.0.0"}, "10.0.0.7", "http://10.0.0.7:PORT", ""),
        ({"host": "::"}, "fd00::7", "http://[fd00::7]:PORT", ""),
        ({"host": "127.0.0.2"}, "", "http://127.0.0.2:PORT", "localhost:PORT"),
        ({"domains": ("apps.example", "b.example")}, "", "http://127.0.0.1:PORT", "apps.example:PORT"),
        ({"public_url": "https://apps.example"}, "10.0.0.7", "https://apps.example", ""),
        (
            {"public_url": "https://apps.example", "domains": ("apps.example",)},
            "10.0.0.7",
            "https://apps.example",
            "apps.example",
        ),
    ],
)
def test_clients_are_told_addresses_that_they_can_use(
    tmp_path: Path, options: dict[str, Any], host: str, url: str, domain: str
) -> None:
    with bound(tmp_path, port=0, **options) as web:
        assert web.url(host) == url.replace("PORT", str(web.port))
        assert web.domain(local=not host) == domain.replace("PORT", str(web.port))


def test_with_a_certificate_addresses_are_https(tmp_path: Path) -> None:
    files = {"tls_cert": str(CERTIFICATES / "server.pem"), "tls_key": str(CERTIFICATES / "server.key")}
    with bound(tmp_path, port=0, **files) as web:
        assert web.url() == f"https://127.0.0.1:{web.port}"
    with pytest.raises(ValueError, match=r"ca\.pem and .*server\.key are no certificate with its key: "):
        context_of(settings(tmp_path, tls_cert=str(CERTIFICATES / "ca.pem"), tls_key=files["tls_key"]))
