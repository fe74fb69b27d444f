"""WebSockets to deployed code: messages of every kind and size, and every way to end."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.e2e import web_functions as functions
from tests.e2e.web_clients import PATIENCE_S, crowd, http, lines_of, url_of, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def running_quay(kedge_home: Path) -> Iterator[None]:
    with functions.app.run():
        yield


@pytest.fixture
def site() -> str:
    return url_of(functions.site)


def link_to(url: str, path: str = "ws", **options: object) -> ClientConnection:
    there = url.replace("http", "ws", 1) + path
    return connect(there, open_timeout=PATIENCE_S, max_size=None, proxy=None, **options)  # type: ignore[arg-type]


def closing(link: ClientConnection) -> tuple[int | None, str | None]:
    """Code and reason with which the other side closes."""
    with pytest.raises(ConnectionClosed) as caught:
        link.recv(timeout=PATIENCE_S)
    received = caught.value.rcvd
    return (received.code, received.reason) if received is not None else (None, None)


def test_text_and_bytes_come_back_as_they_were_sent(site: str) -> None:
    with link_to(site) as link:
        for message in ("ahoy", "", "žluťoučký 🐎", b"\0\xff", b""):
            link.send(message)
            assert link.recv(timeout=PATIENCE_S) == message


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, 1_500_000, 10_000_000])
def test_large_messages(site: str, size: int) -> None:
    data = os.urandom(size)
    with link_to(site) as link:
        link.send(data)
        answer = link.recv(timeout=PATIENCE_S)
        assert isinstance(answer, bytes)
        assert hashlib.sha256(answer).digest() == hashlib.sha256(data).digest()
        link.send("x" * size)
        assert link.recv(timeout=PATIENCE_S) == "x" * size


def test_fragments_are_one_message(site: str) -> None:
    with link_to(site) as link:
        link.send(["a", "b" * 70_000, "c"])
        assert link.recv(timeout=PATIENCE_S) == "a" + "b" * 70_000 + "c"


def test_messages_keep_their_order_and_none_is_lost(site: str) -> None:
    with link_to(site) as link:
        for n in range(2_000):
            link.send(str(n))
        assert [link.recv(timeout=PATIENCE_S) for _ in range(2_000)] == [str(n) for n in range(2_000)]


def test_both_forms_of_the_address(site: str) -> None:
    parts = urlsplit(site)
    label = parts.path.strip("/")
    sock = socket.create_connection((parts.hostname or "", parts.port or 80))
    with connect(f"ws://{label}.localhost:{parts.port}/ws", sock=sock, open_timeout=PATIENCE_S, proxy=None) as link:
        link.send("ahoy")
        assert link.recv(timeout=PATIENCE_S) == "ahoy"


def test_pings_are_answered(site: str) -> None:
    with link_to(site) as link:
        assert link.ping("are you there").wait(PATIENCE_S)


def test_a_subprotocol_is_chosen_by_the_code(site: str) -> None:
    with link_to(site, subprotocols=["chat.v2", "chat.v1"]) as link:
        assert link.subprotocol == "chat.v2"


@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (1008, "no entry"), (4321, "my own")])
def test_the_code_closes_with_a_code_and_a_reason(site: str, code: int, reason: str) -> None:
    with link_to(site) as link:
        link.send(f"close {code} {reason}")
        assert closing(link) == (code, reason)


def test_code_that_fails_closes_with_1011(site: str) -> None:
    with link_to(site) as link:
        link.send("boom")
        code, reason = closing(link)
        assert code == 1011
        assert "burst" not in (reason or "")


def test_code_that_returns_closes(site: str) -> None:
    with link_to(site) as link:
        link.send("exit")
        assert closing(link)[0] in (1000, 1011)


def test_refusals_are_http_responses(site: str) -> None:
    for url, path, status in (
        (site, "refused", 403),
        (site, "no-such-route", 403),
        (site, "file/1", 403),
        (site.rstrip("/") + "-other/", "ws", 404),
    ):
        with pytest.raises(InvalidStatus) as caught, link_to(url, path):
            pass
        assert caught.value.response.status_code == status, path


@pytest.mark.parametrize(("code", "heard"), [(1000, "1000"), (4007, "4007")])
def test_the_code_hears_with_which_code_the_client_closed(site: str, tmp_path: Path, code: int, heard: str) -> None:
    marker = tmp_path / "marker"
    with link_to(site, f"ws?path={marker}") as link:
        link.send("ahoy")
        link.recv(timeout=PATIENCE_S)
        link.close(code, "bye")
    wait_until(lambda: lines_of(marker) == [f"disconnected {heard}"], str(lines_of(marker)))


def test_the_code_hears_that_its_client_is_gone(site: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with link_to(site, f"ws?path={marker}") as link:
        link.send("ahoy")
        link.recv(timeout=PATIENCE_S)
        link.socket.close()
    wait_until(lambda: lines_of(marker) in (["disconnected 1006"], ["disconnected 1005"]), str(lines_of(marker)))


def test_a_container_that_dies_closes_its_sockets_and_the_next_one_answers(site: str) -> None:
    with link_to(site) as link:
        link.send("die")
        code, _ = closing(link)
        assert code in (None, 1011, 1012)
    with link_to(site) as link:
        link.send("ahoy")
        assert link.recv(timeout=PATIENCE_S) == "ahoy"


def test_a_socket_holds_its_slot_until_it_ends() -> None:
    url = url_of(functions.narrow)
    with link_to(url) as link, crowd(1) as get:
        link.send("ahoy")
        assert link.recv(timeout=PATIENCE_S) == "ahoy"
        waiting = get(url + "file/1")
        link.send("still here")
        assert link.recv(timeout=PATIENCE_S) == "still here"
        assert not waiting.done()
        link.close()
        assert waiting.result().json() == "1"


def test_a_handshake_that_is_none_is_refused(site: str) -> None:
    headers = {"upgrade": "websocket", "connection": "upgrade"}
    with http() as client:
        assert client.get(site + "ws", headers=headers).status_code in (400, 426)
        version = {"sec-websocket-version": "7", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}
        assert client.get(site + "ws", headers={**headers, **version}).status_code in (400, 426)


def test_garbage_costs_its_own_connection(site: str) -> None:
    with link_to(site) as other, link_to(site) as link:
        link.socket.sendall(b"\xff" * 100)
        assert closing(link)[0] in (None, 1002)
        other.send("ahoy")
        assert other.recv(timeout=PATIENCE_S) == "ahoy"


def test_many_sockets_at_once(site: str) -> None:
    with ExitStack() as stack:
        links = [stack.enter_context(link_to(site)) for _ in range(40)]
        for n, link in enumerate(links):
            link.send(str(n))
        assert [link.recv(timeout=PATIENCE_S) for link in links] == [str(n) for n in range(40)]
