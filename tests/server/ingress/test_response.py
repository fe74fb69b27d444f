"""What the code sends becomes a response that no client can misunderstand, or none at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.model.web import BodySent, MessageSent, ResponseStarted, Sent, SocketAccepted
from kedge.server.ingress.replies import Refusal
from kedge.server.ingress.response import BadAnswer, Response, header_lines

DATE = b"date: now\r\n"


def response(head_only: bool = False, version: str = "1.1", keep_alive: bool = True) -> Response:
    made = Response(head_only, version, keep_alive)
    made.date = DATE
    return made


def said(made: Response, *events: Sent) -> bytes:
    return b"".join(made.feed(list(events)))


def start(status: int = 200, **headers: str) -> ResponseStarted:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return ResponseStarted(status, pairs)


def test_a_short_response_gets_a_length() -> None:
    made = response()
    assert said(made, start(content_type="text/plain"), BodySent(b"hello", False)) == (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\ndate: now\r\nserver: kedge\r\n\r\nhello"
    )
    assert made.complete
    assert made.keep_alive


def test_a_stream_is_chunked() -> None:
    made = response()
    assert said(made, start()) == (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ndate: now\r\nserver: kedge\r\n\r\n"
    )
    assert said(made, BodySent(b"abc"), BodySent(b"")) == b"3\r\nabc\r\n"
    assert said(made, BodySent(b"x" * 17, False)) == b"11\r\n" + b"x" * 17 + b"\r\n0\r\n\r\n"
    assert made.complete


def test_what_the_code_says_itself_is_kept() -> None:
    made = response()
    text = said(made, start(date="then", server="mine", content_length="3", x_a="1"), BodySent(b"abc", False))
    assert text == b"HTTP/1.1 200 OK\r\ndate: then\r\nserver: mine\r\nx-a: 1\r\ncontent-length: 3\r\n\r\nabc"


def test_headers_of_the_connection_are_ours() -> None:
    headers = {"transfer_encoding": "gzip", "keep_alive": "x", "upgrade": "h2c", "trailer": "x", "te": "x"}
    text = said(response(), start(connection="keep-alive", **headers), BodySent(b"", False))
    assert text == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ndate: now\r\nserver: kedge\r\n\r\n"


def test_the_code_may_close_the_connection() -> None:
    made = response()
    assert b"\r\nconnection: close\r\n" in said(made, start(connection="Close"), BodySent(b"", False))
    assert not made.keep_alive


def test_http_1_0_is_told_the_length_or_gets_the_end_of_the_connection() -> None:
    kept = response(version="1.0")
    assert b"content-length: 1\r\nconnection: keep-alive\r\n" in said(kept, start(), BodySent(b"a", False))
    assert kept.keep_alive
    ended = response(version="1.0")
    text = said(ended, start()) + said(ended, BodySent(b"a")) + said(ended, BodySent(b"b", False))
    assert text.endswith(b"\r\nconnection: close\r\ndate: now\r\nserver: kedge\r\n\r\nab")
    assert not ended.keep_alive


def test_head_gets_the_length_and_no_body() -> None:
    made = response(head_only=True)
    assert b"content-length: 1234\r\n" in said(made, start(content_length="1234"))
    assert said(made, BodySent(b"x" * 5), BodySent(b"", False)) == b""
    assert made.complete
    unknown = said(response(head_only=True), start())
    assert b"transfer-encoding" not in unknown
    assert b"content-length: 5\r\n" in said(response(head_only=True), start(), BodySent(b"hello", False))
    left_out = said(response(head_only=True), start(), BodySent(b"", False))
    assert b"content-length" not in left_out, "GET may have a body, and nothing says how long that is"


def test_some_statuses_have_no_body() -> None:
    empty = said(response(), start(204, content_length="5"), BodySent(b"hello", False))
    assert empty == b"HTTP/1.1 204 No Content\r\ndate: now\r\nserver: kedge\r\n\r\n"
    unchanged = said(response(), start(304, content_length="5"), BodySent(b"", False))
    assert unchanged == b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\ndate: now\r\nserver: kedge\r\n\r\n"
    assert said(response(), start(299), BodySent(b"", False)).startswith(b"HTTP/1.1 299 \r\n")


def test_a_refusal_is_a_plain_text() -> None:
    made = response()
    text = b"".join(made.refuse(Refusal(503, "later", (b"retry-after", b"2"))))
    assert text == (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\nretry-after: 2\r\n"
        b"content-length: 6\r\ndate: now\r\nserver: kedge\r\n\r\nlater\n"
    )
    last = response()
    assert b"connection: close" in b"".join(last.refuse(Refusal(400, "no", close=True)))


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([start(x="a\r\nset-cookie: b")], "has a line break or a NUL in a header of its response"),
        ([start(x="a\nb")], "has a line break or a NUL in a header of its response"),
        ([start(x="a\rb")], "has a line break or a NUL in a header of its response"),
        ([start(x="a\0b")], "has a line break or a NUL in a header of its response"),
        (
            [ResponseStarted(200, [(b"x: y\r\nz", b"1")])],
            r"has a header named b'x: y\\r\\nz' in its response, which is no name of a header",
        ),
        (
            [ResponseStarted(200, [(b"", b"1")])],
            "has a header named b'' in its response, which is no name of a header",
        ),
        ([start(99)], "started its response with the status 99; it must be from 200 to 999"),
        ([start(101)], "started its response with the status 101; it must be from 200 to 999"),
        ([start(1000)], "started its response with the status 1000; it must be from 200 to 999"),
        ([start(), start()], "started its response twice"),
        ([BodySent(b"x")], "sent a body before it had started its response"),
        ([start(content_length="3"), BodySent(b"abcd")], "sent 1 bytes more than its Content-Length says"),
        ([start(content_length="3"), BodySent(b"ab", False)], "sent 1 bytes less than its Content-Length says"),
        (
            [start(content_length="x")],
            "has a Content-Length of b'x' in its response, which is no number of bytes",
        ),
        (
            [ResponseStarted(200, [(b"content-length", b"1"), (b"Content-Length", b"2")])],
            "says a Content-Length of 1 and of 2 in one response",
        ),
        ([MessageSent(b"x")], "answered an HTTP request with MessageSent, which is for WebSockets"),
        ([SocketAccepted()], "answered an HTTP request with SocketAccepted, which is for WebSockets"),
    ],
)
def test_what_is_no_response_is_told_to_the_log(events: list[Sent], says: str) -> None:
    with pytest.raises(BadAnswer, match=f"^{says}$"):
        response().feed(events)


def test_what_comes_after_the_end_is_dropped() -> None:
    made = response()
    once = said(made, start(), BodySent(b"a", False), BodySent(b"b"), start())
    assert once.endswith(b"\r\n\r\na")
    assert made.feed([BodySent(b"c", False)]) == []


def test_headers_of_a_handshake_follow_the_same_rules() -> None:
    headers = [(b"X-A", b"1"), (b"upgrade", b"x"), (b"Connection", b"x"), (b"sec-websocket-accept", b"x")]
    assert header_lines(headers, frozenset([b"sec-websocket-accept"])) == b"X-A: 1\r\n"
    with pytest.raises(BadAnswer):
        header_lines([(b"a", b"1\r\nb: 2")])


HEADER = st.tuples(
    st.sampled_from([b"a", b"content-length", b"Connection", b"date", b"x y", b"Transfer-Encoding"])
    | st.binary(max_size=4),
    st.sampled_from([b"1", b"5", b"close", b"chunked", b""]) | st.binary(max_size=4),
)
EVENTS = st.lists(
    st.builds(BodySent, st.binary(max_size=6), st.booleans())
    | st.builds(ResponseStarted, st.sampled_from([200, 204, 304, 99, 500]), st.lists(HEADER, max_size=3))
    | st.builds(MessageSent, st.binary(max_size=3)),
    max_size=6,
)


@given(batches=st.lists(EVENTS, max_size=4), head=st.booleans(), version=st.sampled_from(["1.0", "1.1"]))
def test_any_events_become_one_whole_response_or_none(batches: list[list[Sent]], head: bool, version: str) -> None:
    made, out = response(head, version), b""
    try:
        for events in batches:
            out += b"".join(made.feed(events))
    except BadAnswer:
        return
    if not made.started:
        assert not out
        return
    top, _, body = out.partition(b"\r\n\r\n")
    lines = top.split(b"\r\n")
    names = [line.partition(b":")[0].lower() for line in lines[1:]]
    assert b"\n" not in top.replace(b"\r\n", b"")
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    if head or b" 204" in lines[0] or b" 304" in lines[0]:
        assert not body
    elif made.complete and b"transfer-encoding" in names:
        assert body.endswith(b"0\r\n\r\n")
    elif made.complete and b"content-length" in names:
        length = next(line for line in lines if line.startswith(b"content-length"))
        assert length == b"content-length: %d" % len(body)
    else:
        assert made.complete is False or (version == "1.0" and not made.keep_alive)
