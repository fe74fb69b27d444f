"""What the headers of a request say about its connection, and what the code gets to see of them."""

from __future__ import annotations

import pytest

from kedge.server.ingress.head import forwarded, read_head
from kedge.server.ingress.replies import Headers, Refusal


def lines(text: str) -> Headers:
    pairs = (line.partition(":") for line in text.strip().splitlines())
    return [(name.strip().lower().encode(), value.strip().encode()) for name, _, value in pairs]


def refused(text: str, version: str = "1.1") -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        read_head(lines("Host: a\n" + text), version)
    assert caught.value.close
    return caught.value.status, caught.value.text


def test_headers_of_the_connection_are_not_for_the_code() -> None:
    head = read_head(
        lines(
            """
            Host: a
            Connection: keep-alive, X-Mine, Cookie
            X-Mine: 1
            Cookie: c
            Keep-Alive: timeout=5
            Proxy-Connection: keep-alive
            TE: trailers
            Trailer: X-Sum
            Upgrade: h2c
            Expect: 100-continue
            Accept: */*
            X-Other: 2
            """
        ),
        "1.1",
    )
    assert sorted(head.headers) == sorted(lines("Host: a\nCookie: c\nAccept: */*\nX-Other: 2"))
    assert head.expects
    assert head.upgrade == b""


def test_a_chunked_body_is_told_apart_from_one_of_known_length() -> None:
    chunked = read_head(lines("Host: a\nTransfer-Encoding: Chunked"), "1.1")
    assert (chunked.chunked, chunked.length, chunked.has_body) == (True, None, True)
    assert chunked.headers == lines("Host: a")
    sized = read_head(lines("Host: a\nContent-Length: 7"), "1.1")
    assert (sized.chunked, sized.length, sized.has_body) == (False, 7, True)
    assert sized.headers == lines("Host: a\nContent-Length: 7")
    assert not read_head(lines("Host: a\nContent-Length: 0"), "1.1").has_body


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ("Content-Length: 1\nContent-Length: 1", 400, "there is more than one Content-Length"),
        ("Content-Length: 1\nContent-Length: 2", 400, "there is more than one Content-Length"),
        ("Content-Length: 1, 1", 400, "Content-Length is no number of bytes"),
        ("Content-Length: +1", 400, "Content-Length is no number of bytes"),
        ("Content-Length: -1", 400, "Content-Length is no number of bytes"),
        ("Content-Length: 0x1", 400, "Content-Length is no number of bytes"),
        ("Content-Length:", 400, "Content-Length is no number of bytes"),
        ("Content-Length: 9999999999999999999", 400, "Content-Length is no number of bytes"),
        (
            "Content-Length: 1\nTransfer-Encoding: chunked",
            400,
            "there are a Content-Length and a Transfer-Encoding; a request has one of them",
        ),
        (
            "Transfer-Encoding: chunked\nTransfer-Encoding: chunked",
            400,
            "Transfer-Encoding must be said once, and not in HTTP/1.0",
        ),
        ("Transfer-Encoding: gzip, chunked", 501, "the only Transfer-Encoding that is understood is chunked"),
        ("Transfer-Encoding: xchunked", 501, "the only Transfer-Encoding that is understood is chunked"),
        ("Host: b", 400, "there is more than one Host header"),
        ("Expect: magic", 417, "the only Expect that is understood is 100-continue"),
    ],
)
def test_what_two_readers_could_understand_differently_is_refused(text: str, status: int, says: str) -> None:
    assert refused(text) == (status, says)


def test_http_1_0_knows_no_chunks_and_needs_no_host() -> None:
    assert refused("Transfer-Encoding: chunked", "1.0")[0] == 400
    assert read_head([], "1.0").host is None
    with pytest.raises(Refusal, match="the Host header is missing"):
        read_head([], "1.1")
    assert not read_head(lines("Expect: 100-continue"), "1.0").expects


@pytest.mark.parametrize(
    ("version", "text", "stays"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: close", False),
        ("1.1", "Connection: keep-alive, Close", False),
        ("1.1", "Accept: */*", True),
        ("1.0", "", False),
        ("1.0", "Accept: */*", False),
        ("1.0", "Connection: Keep-Alive", True),
        ("1.0", "Content-Length: 0", False),
    ],
)
def test_how_long_a_connection_lasts(version: str, text: str, stays: bool) -> None:
    assert read_head(lines("Host: a\n" + text), version).keep_alive is stays


def test_an_upgrade_counts_only_where_the_connection_says_so() -> None:
    assert read_head(lines("Host: a\nUpgrade: WebSocket\nConnection: Upgrade"), "1.1").upgrade == b"websocket"
    assert read_head(lines("Host: a\nUpgrade: websocket"), "1.1").upgrade == b""


def test_keys_are_read_under_both_names_and_never_shown_to_the_code() -> None:
    for prefix in ("Kedge", "Modal"):
        head = read_head(lines(f"Host: a\n{prefix}-Key: k\n{prefix}-Secret: s"), "1.1")
        assert (head.key, head.secret, head.headers) == ("k", "s", lines("Host: a"))


def test_a_proxy_is_believed_only_for_what_it_saw_itself() -> None:
    told = lines("X-Forwarded-For: 1.2.3.4, 10.0.0.9\nX-Forwarded-Proto: https")
    assert forwarded(told, ("127.0.0.1", 5), "http") == (("10.0.0.9", 0), "https")
    odd = lines("X-Forwarded-For:\nX-Forwarded-Proto: gopher")
    assert forwarded(odd, ("127.0.0.1", 5), "http") == (("127.0.0.1", 5), "http")
