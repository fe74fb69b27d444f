"""Bodies that come and go in parts: whole, unbuffered, at the pace of the slower side."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from benchmarks.web import GREAT_BODY, MEMORY_MB, processes_of
from benchmarks.web_clients import Memory, download_s, upload_s

from tests.e2e import web_functions as functions
from tests.e2e.web_clients import Raw, http, lines_of, url_of, wait_for_line, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def running_quay(kedge_home: Path) -> Iterator[None]:
    with functions.app.run():
        yield


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with http() as client:
        yield client


@pytest.fixture
def site() -> str:
    return url_of(functions.site)


# ---------------------------------------------------------------- to the code


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 20_000_000])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_arrives_as_it_was_sent(client: httpx.Client, site: str, size: int, chunked: bool) -> None:
    data = os.urandom(size)
    content = (data[at : at + 100_000] for at in range(0, size, 100_000)) if chunked else data
    answer = client.post(site + "echo", content=content).json()
    assert answer["size"] == size
    assert answer["sha256"] == hashlib.sha256(data).hexdigest()


def test_parts_are_given_to_the_code_as_they_come(site: str) -> None:
    with Raw(site) as raw:
        raw.send("POST {path}refill/ HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n")
        # More than travels with the head, so that the code begins while the body is still under way.
        raw.send(b"11000\r\n" + b"a" * 0x11000 + b"\r\n")
        assert raw.head().startswith("HTTP/1.1 200")
        got = b""
        while len(got) < 0x11000:
            got += raw.chunk()
        for part in (b"bcd", b"efg"):
            raw.send(b"3\r\n" + part + b"\r\n")
            assert raw.chunk() == part.upper()
        raw.send(b"0\r\n\r\n")
        assert raw.chunk() == b""


def test_chunks_with_extensions_and_trailers_are_taken_politely(site: str) -> None:
    with Raw(site) as raw:
        raw.send("POST {path}echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n")
        raw.send(b"3;note=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n")
        assert b'"size":5' in raw.answer().body
        raw.send("GET {path}file/1 HTTP/1.1\r\nHost: {host}\r\n\r\n")
        assert raw.answer().body == b'"1"'


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 3x\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
    ],
)
def test_a_body_whose_length_is_ambiguous_is_refused(site: str, head: str) -> None:
    with Raw(site) as raw:
        raw.send(f"POST {{path}}echo HTTP/1.1\r\nHost: {{host}}\r\n{head}\r\nabcd")
        assert raw.answer().status in (400, 501)
        assert raw.closed()


def test_nonsense_in_the_middle_of_a_body_ends_the_request(site: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with Raw(site) as raw:
        raw.send(f"POST {{path}}slurp?path={marker} HTTP/1.1\r\nHost: {{host}}\r\nTransfer-Encoding: chunked\r\n\r\n")
        raw.send(b"11000\r\n" + b"a" * 0x11000 + b"\r\n")
        wait_for_line(marker, "part")
        raw.send(b"not a number\r\n")
        wait_until(lambda: lines_of(marker)[-1] not in ("part", "whole"), "the handler hears of it")


def test_a_client_that_leaves_before_its_body_is_whole(site: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with Raw(site) as raw:
        raw.send(f"POST {{path}}slurp?path={marker} HTTP/1.1\r\nHost: {{host}}\r\nContent-Length: 1000000\r\n\r\n")
        raw.send(b"a" * 500_000)
        wait_for_line(marker, "part")
    wait_until(lambda: lines_of(marker)[-1] not in ("part", "whole"), "the handler hears of it")


def test_an_answer_may_come_before_the_body_is_read(client: httpx.Client, site: str) -> None:
    try:
        assert client.post(site + "refuse", content=b"x" * 5_000_000).status_code == 413
    except httpx.WriteError:
        pass  # The connection was closed while the client was still sending: it may miss the answer.
    assert client.get(site + "file/1").json() == "1"


# ---------------------------------------------------------------- from the code


@pytest.mark.parametrize("size", [0, 1, 65_537, 20_000_000])
def test_a_body_comes_as_it_was_made(client: httpx.Client, site: str, size: int) -> None:
    answer = client.get(site + "download", params={"size": size})
    expected = hashlib.sha256()
    for part in functions.pattern(size):
        expected.update(part)
    assert len(answer.content) == size
    assert hashlib.sha256(answer.content).hexdigest() == expected.hexdigest()


def test_events_go_out_one_by_one(site: str, tmp_path: Path) -> None:
    with Raw(site) as raw:
        raw.send(f"GET {{path}}events?directory={tmp_path} HTTP/1.1\r\nHost: {{host}}\r\n\r\n")
        assert "text/event-stream" in raw.head()
        for n in range(3):
            assert raw.chunk() == f"data: {n}\n\n".encode()
            (tmp_path / str(n)).touch()
        assert raw.chunk() == b""


def test_code_makes_no_more_than_its_client_reads(site: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    size = 1_000_000_000
    with Raw(site) as raw:
        raw.send(f"GET {{path}}measured?path={made}&size={size} HTTP/1.1\r\nHost: {{host}}\r\n\r\n")
        assert raw.head().startswith("HTTP/1.1 200")
        seen: list[str] = []

        def stands_still() -> bool:
            seen.append(made.read_text() if made.exists() else "")
            return len(seen) > 50 and seen[-1] != "" and len(set(seen[-50:])) == 1

        wait_until(stands_still, "the code waits for its client")
        assert int(seen[-1]) < 40_000_000
        assert raw.chunk()
    with http() as client:
        assert client.get(site + "file/1").json() == "1"


def test_a_stream_ends_when_its_client_leaves(site: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with Raw(site) as raw:
        raw.send(f"GET {{path}}endless?path={marker} HTTP/1.1\r\nHost: {{host}}\r\n\r\n")
        raw.head()
        assert raw.chunk()
    wait_for_line(marker, "ended")


def test_a_client_of_http_1_0_gets_a_stream_that_ends_with_the_connection(site: str) -> None:
    with Raw(site) as raw:
        raw.send("GET {path}download?size=200000 HTTP/1.0\r\nHost: {host}\r\n\r\n")
        answer = raw.answer()
        assert "transfer-encoding" not in answer.headers
        assert len(answer.body) == 200_000


def test_a_gigabyte_passes_through_the_server_and_does_not_stay() -> None:
    from benchmarks.web_functions import app, bare_site

    with app.run():
        url = url_of(bare_site)
        upload_s(url, 10_000_000)
        download_s(url, 10_000_000)
        memory = Memory(processes_of(url))
        upload_s(url, GREAT_BODY, chunked=True)
        download_s(url, GREAT_BODY)
        assert memory.grown_mb() < MEMORY_MB
