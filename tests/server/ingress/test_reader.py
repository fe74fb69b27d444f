"""Bytes become requests: however they are cut, and whatever they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.server.ingress.reader import (
    HEAD_SLICE,
    MAX_HEAD,
    MAX_HEADERS,
    MAX_OVERHEAD,
    MAX_PIPELINED,
    MAX_TARGET,
    MAX_WAITING,
    SHORT,
    Incoming,
    Reader,
)

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(body: bytes, path: bytes = b"/c", *lines: bytes) -> bytes:
    rest = b"".join(line + b"\r\n" for line in lines)
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n" % (path, len(body), rest) + body


def read(*pieces: bytes) -> list[Incoming]:
    reader = Reader()
    for piece in pieces:
        reader.feed(piece)
    return list(reader.requests)


def told(requests: list[Incoming]) -> list[tuple[str, bytes, bytes, bool]]:
    return [(r.method, r.target, b"".join(r.parts), r.complete) for r in requests]


def refusal(*pieces: bytes) -> tuple[int, str]:
    last = read(*pieces)[-1]
    assert last.refusal is not None
    assert last.refusal.close
    return last.refusal.status, last.refusal.text


# ---------------------------------------------------------------- what is well said


def test_requests_come_out_in_their_order() -> None:
    found = told(read(GET + post(b"body") + CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n" + GET))
    assert found == [
        ("GET", b"/a", b"", True),
        ("POST", b"/c", b"body", True),
        ("POST", b"/b", b"abcde", True),
        ("GET", b"/a", b"", True),
    ]


@given(cuts=st.lists(st.integers(1, 400), max_size=20))
def test_cuts_make_no_difference(cuts: list[int]) -> None:
    whole = GET + post(b"b" * 50) + CHUNKED + b"a;x=y\r\n0123456789\r\n0\r\nT: 1\r\n\r\n" + GET
    whole += (
        b"POST /u HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nbody" + GET
    )
    at, pieces = 0, []
    for cut in cuts:
        pieces.append(whole[at : at + cut])
        at += cut
    assert told(read(*pieces, whole[at:])) == told(read(whole))


def test_a_body_is_there_as_far_as_it_has_come() -> None:
    (request,) = read(post(b"x" * 100)[:-40])
    assert (request.received, request.complete, request.is_short) == (60, False, True)
    assert (request.take_all(), request.waiting) == (b"x" * 60, 0)


def test_which_bodies_are_short() -> None:
    assert read(post(b"x" * SHORT))[0].is_short
    assert not read(post(b"x" * (SHORT + 1))[:-1])[0].is_short
    assert not read(CHUNKED + b"1\r\na\r\n")[0].is_short
    assert read(CHUNKED + b"1\r\na\r\n0\r\n\r\n")[0].is_short


def test_the_last_request_of_a_connection_ends_the_reading() -> None:
    reader = Reader()
    reader.feed(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + GET)
    reader.feed(GET + b"\0garbage")
    assert len(reader.requests) == 1
    assert reader.requests[0].refusal is None


def test_who_asks_for_another_protocol_is_answered_without() -> None:
    wish = [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"]
    found = read(post(b"GET /evil HTTP/1.1\r\n\r\n", b"/h", *wish) + GET)
    assert told(found) == [("POST", b"/h", b"GET /evil HTTP/1.1\r\n\r\n", True), ("GET", b"/a", b"", True)]
    assert not found[0].is_socket


def test_behind_the_handshake_of_a_websocket_is_no_http() -> None:
    reader = Reader()
    reader.feed(GET + b"GET /w HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00")
    reader.feed(b"\x82\x00")
    assert [request.is_socket for request in reader.requests] == [False, True]
    assert reader.early == b"\x81\x00\x82\x00"


# ---------------------------------------------------------------- what is not


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"HELLO\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\n 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA b: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: \x01\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_refused_and_ends_the_reading(data: bytes) -> None:
    status, text = refusal(GET + data, GET)
    assert status == 400
    assert text.startswith("this is not HTTP/1.1 as it should be: ")


def test_versions_and_methods_that_are_not_served() -> None:
    assert refusal(b"GET / HTTP/2.0\r\n\r\n") == (505, "this server speaks HTTP/1.1 and HTTP/1.0")
    assert refusal(b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n") == (
        405,
        "this server is no proxy: CONNECT leads nowhere",
    )
    wish = [b"Connection: Upgrade", b"Upgrade: websocket"]
    assert refusal(post(b"x", b"/", *wish)) == (400, "the handshake of a WebSocket has no body")


def test_a_body_that_breaks_off_spoils_its_request_only() -> None:
    good, bad = read(GET + CHUNKED + b"3\r\nabcdef\r\n")
    assert good.refusal is None
    assert bad.refusal is not None
    assert not bad.complete


# ---------------------------------------------------------------- limits


def test_a_head_has_a_limit() -> None:
    too_large = (431, f"the head of the request has more than {MAX_HEAD} bytes or {MAX_HEADERS} headers")
    fits = b"GET / HTTP/1.1\r\nHost: x\r\nA: %b\r\n\r\n"
    assert read(fits % (b"a" * (MAX_HEAD - 100)))[0].refusal is None
    assert refusal(fits % (b"a" * MAX_HEAD)) == too_large
    assert refusal(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * (MAX_HEADERS + 1) + b"\r\n") == too_large
    endless = [b"GET / HTTP/1.1\r\nA: ", *[b"a" * 1000] * (MAX_HEAD // 1000 + 10)]
    assert refusal(*endless) == too_large
    assert refusal(*[b"\r\n" * 500] * (MAX_HEAD // 1000 + 10)) == too_large


def test_an_address_has_a_limit() -> None:
    assert read(b"GET /" + b"a" * (MAX_TARGET - 1) + b" HTTP/1.1\r\nHost: x\r\n\r\n")[0].refusal is None
    assert refusal(*[b"GET /", *[b"a" * 1000] * 20]) == (414, f"the address has more than {MAX_TARGET} bytes")


@pytest.mark.parametrize("waste", [b"1;" + b"x" * 999, b"0\r\nT: " + b"x" * 999])
def test_what_of_a_body_is_no_data_has_a_limit(waste: bytes) -> None:
    assert refusal(CHUNKED, waste, *[b"x" * 1000] * (MAX_OVERHEAD // 1000 + 5)) == (
        400,
        "the chunks of the body have too much in them that is no data",
    )


def test_tiny_chunks_are_no_waste() -> None:
    reader = Reader()
    reader.feed(CHUNKED + b"1\r\nx\r\n" * 30_000 + b"0\r\n\r\n")
    (request,) = reader.requests
    while reader.stuck:
        assert len(request.parts) < 2000, "only so many are taken apart ahead"
        request.take_all()
        reader.go_on()
    assert (request.received, request.complete, request.refusal) == (30_000, True, None)


def test_only_so_many_requests_are_taken_apart_ahead() -> None:
    reader = Reader()
    reader.feed(GET * 5000)
    assert MAX_PIPELINED <= len(reader.requests) <= MAX_PIPELINED + HEAD_SLICE // len(GET)
    assert reader.full
    assert reader.stuck
    count = 0
    while reader.requests:
        reader.requests.popleft()
        count += 1
        reader.go_on()
    assert count == 5000
    assert not reader.stuck


def test_only_so_much_of_bodies_is_held_ahead() -> None:
    reader = Reader()
    reader.feed(GET)
    for _ in range(100):
        reader.feed(post(b"x" * 60_000))
    held = sum(request.waiting for request in reader.requests)
    assert MAX_WAITING <= held <= MAX_WAITING + 128 * 1024
    assert reader.stuck


# ---------------------------------------------------------------- whatever comes

FRAGMENTS = [
    GET,
    CHUNKED,
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"\r\n",
    b"HTTP/1.1",
    b"Host: y\r\n",
    b"Upgrade: websocket\r\n",
]
FRAGMENTS += [b"Connection: upgrade\r\n", b"Content-Length: 5\r\n", b"GET / HTTP/1.1\r\n", b"Expect: 100-continue\r\n"]
PIECES = st.lists(st.binary(max_size=30) | st.sampled_from(FRAGMENTS), max_size=30)


@given(pieces=PIECES)
def test_any_bytes_become_requests_or_a_refusal(pieces: list[bytes]) -> None:
    reader = Reader()
    for piece in pieces:
        reader.feed(piece)
    for request in list(reader.requests)[:-1]:
        assert request.refusal is None
        assert request.complete
