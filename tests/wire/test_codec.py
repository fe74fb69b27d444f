"""Frames carry every message unchanged, however they are cut, and what is no frame is refused with a reason."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.model import protocol as p
from kedge.model.payload import INLINE_LIMIT, ErrorInfo, Payload, Result
from kedge.wire import codec
from kedge.wire.codec import HEADER_SIZE, MAGIC, FrameDecoder, FrameError, encode, encode_all
from tests.wire.values import SPOKEN, UNIONS, messages

PACK = msgspec.msgpack.encode
BYE = p.SessionClosed("bye")


def frame(body: bytes) -> bytes:
    return MAGIC + len(body).to_bytes(4, "little") + body


def read(data: bytes, cuts: list[int], union: Any = p.FromClient) -> tuple[list[Any], str]:
    """What comes out of a stream that arrives in pieces, and why it ended."""
    decoder = FrameDecoder(union)
    found: list[Any] = []
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    try:
        for start, end in pairwise(places):
            found += decoder.feed(data[start:end])
        found += decoder.feed(b"")
    except FrameError as error:
        return found, str(error)
    return found, ""


# ---------------------------------------------------------------- what is right


@pytest.mark.parametrize(("union", "kind"), SPOKEN, ids=lambda value: getattr(value, "__name__", value))
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_every_message_comes_out_as_it_went_in(union: str, kind: type, data: st.DataObject) -> None:
    message = data.draw(messages(kind))
    assert FrameDecoder(UNIONS[union]).feed(encode([message])) == [message]


def test_fields_that_an_older_peer_does_not_send_have_their_defaults() -> None:
    body = PACK([["InputsSubmitted", "fc-1", "fu-1", 0, []]])
    assert FrameDecoder(p.FromClient).feed(frame(body)) == [p.InputsSubmitted("fc-1", "fu-1", 0, [])]


def test_fields_that_a_newer_peer_adds_are_ignored() -> None:
    body = PACK([["SessionClosed", "bye", "something new", {"deep": [1]}]])
    assert FrameDecoder(p.FromClient).feed(frame(body)) == [BYE]


def test_halves_of_surrogate_pairs_travel_as_escapes() -> None:
    """File names and messages of exceptions may hold them; a peer that gets nothing would wait for ever."""
    value = {"names": ["a\udcff"], "\udcff": [b"\xff", 1, None]}
    sent = [p.Reply(1, value, ErrorInfo("ValueError", "\ud800")), p.Reply(2, "plain")]
    assert read(encode(sent), [], p.ToClient) == (
        [
            p.Reply(1, {"names": ["a\\udcff"], "\\udcff": [b"\xff", 1, None]}, ErrorInfo("ValueError", "\\ud800")),
            p.Reply(2, "plain"),
        ],
        "",
    )


def test_a_stream_may_be_cut_anywhere() -> None:
    sent = [BYE, p.Hello(p.CLIENT, token="t"), p.InputsSubmitted("fc-1", "fu-1", 3, [Payload(data=b"x" * 50)] * 2)]
    stream = encode(sent[:1]) + encode(sent[1:])
    for place in range(len(stream) + 1):
        assert read(stream, [place]) == (sent, "")
    assert read(stream, list(range(len(stream)))) == (sent, "")


def test_many_frames_may_come_at_once() -> None:
    assert read(b"".join(encode([p.CallClosed("fc-1", i)]) for i in range(1000)), [])[0] == [
        p.CallClosed("fc-1", i) for i in range(1000)
    ]


def test_an_empty_frame_is_a_frame() -> None:
    assert read(encode([]) + encode([BYE]), []) == ([BYE], "")


def test_pending_counts_the_bytes_of_an_unfinished_frame() -> None:
    decoder = FrameDecoder(p.FromClient)
    whole = encode([BYE])
    assert decoder.feed(whole + whole[:7]) == [BYE]
    assert decoder.pending == 7
    assert decoder.feed(whole[7:]) == [BYE]
    assert decoder.pending == 0


def test_messages_that_are_too_much_for_one_frame_leave_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_FRAME", 1000)
    sent = [p.CallRequested(i, "fc-" + "x" * 100) for i in range(20)]
    frames = list(encode_all(sent))
    assert 2 <= len(frames) <= 4
    assert all(len(one) <= 1000 + HEADER_SIZE for one in frames)
    assert read(b"".join(frames), []) == (sent, "")
    assert len(list(encode_all(sent[:5]))) == 1


def test_one_message_that_is_too_large_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_FRAME", 1000)
    too_large = p.InputsSubmitted("fc-1", "fu-1", 0, [Payload(data=bytes(2000))])
    with pytest.raises(FrameError, match=r"a frame of 20\d\d bytes was about to be sent; the limit is 1000"):
        list(encode_all([BYE, too_large]))


def test_a_portion_of_the_largest_values_fits_a_frame() -> None:
    from kedge.server.driver import MAX_PORTION

    output = p.Output(0, Result(payload=Payload(data=bytes(INLINE_LIMIT))))
    assert len(encode([p.OutputsDelivered("fc-1", [output] * MAX_PORTION)])) < codec.MAX_FRAME


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", r"not a kedge frame: it starts with b'GET ', expected b'kdg\\x01'"),
        (b"\x00", r"not a kedge frame: it starts with b'\\x00'"),
        (b"kdX", r"not a kedge frame: it starts with b'kdX'"),
        (b"kdg\x02\x00", r"protocol version 2, expected 1: use the same kedge on both sides"),
        (MAGIC + (2**32 - 1).to_bytes(4, "little"), r"a frame of 4294967295 bytes, the limit is 67108864"),
        (frame(b""), r"undecodable frame of 0 bytes: Input data was truncated"),
        (frame(b"\xc1"), r"undecodable frame of 1 bytes"),
        (frame(PACK("text")), r"Expected `array`, got `str`"),
        (frame(PACK({"a": 1})), r"Expected `array`, got `object`"),
        (frame(PACK([["NoSuchMessage", 1]])), r"Invalid value 'NoSuchMessage'"),
        (frame(PACK([["InputsDispatched", []]])), r"Invalid value 'InputsDispatched'"),
        (frame(PACK([["CallClosed", "fc-1"]])), r"Expected `array` of at least length 3"),
        (frame(PACK([["CallClosed", "fc-1", "many"]])), r"Expected `int`, got `str`"),
        (frame(PACK([["CallClosed", "fc-1", 1]]) + b"more"), r"trailing"),
        (frame(PACK([["CallClosed", "fc-1", 1]])[:-1]), r"truncated"),
        (frame(b"\x91\x92\xadSessionClosed\xa2\xff\xfe"), r"utf-8"),
    ],
)
def test_what_is_no_frame_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(FrameError, match=reason):
        FrameDecoder(p.FromClient).feed(data)


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff",  # a list of 4 billion, in five bytes
        b"\x91\x95\xafInputsSubmitted\xa1c\xa1p\x00\xdd\xff\xff\xff\xff",
        b"\x91\x93\xadCallCancelled\xc6\xff\xff\xff\xff",
        b"\x91\x94\xadSessionClosed\xa0\xa0" + b"\x91" * 1_000_000 + b"\x90",  # deep nesting in an unknown field
        b"\x91" * 1_000_000,
        b"\x81" * 1_000_000,
    ],
)
def test_bombs_are_refused_without_being_unpacked(body: bytes) -> None:
    with pytest.raises(FrameError, match=f"undecodable frame of {len(body)} bytes"):
        FrameDecoder(p.FromClient).feed(frame(body))


def test_a_value_of_any_kind_can_nest_only_so_deep() -> None:
    body = b"\x91\x93\xa5Reply\x01" + b"\x91" * 100_000 + b"\x90"
    with pytest.raises(FrameError, match="recursion"):
        FrameDecoder(p.ToClient).feed(frame(body))


def test_a_reason_does_not_repeat_all_that_the_peer_has_said() -> None:
    body = PACK([["Message" * 10_000]])
    with pytest.raises(FrameError) as caught:
        FrameDecoder(p.FromClient).feed(frame(body))
    assert len(str(caught.value)) < 400


def test_a_decoder_has_a_limit_of_its_own() -> None:
    decoder = FrameDecoder(p.FromClient, limit=20)
    large = encode([p.SessionClosed("x" * 30)])
    assert decoder.feed(encode([BYE])) == [BYE]
    with pytest.raises(FrameError, match=r"a frame of 47 bytes, the limit is 20"):
        decoder.feed(large)
    patient = FrameDecoder(p.FromClient, limit=20)
    patient.limit = 1000
    assert patient.feed(large) == [p.SessionClosed("x" * 30)]


def test_messages_before_a_bad_frame_are_given_and_nothing_after_it() -> None:
    decoder = FrameDecoder(p.FromClient)
    assert decoder.feed(encode([BYE]) + b"garbage " + encode([BYE])) == [BYE]
    assert "not a kedge frame" in str(decoder.failure)
    for _ in range(2):
        with pytest.raises(FrameError, match="not a kedge frame"):
            decoder.feed(encode([BYE]))
    assert decoder.pending == 0


def test_threads_find_every_message_prepared() -> None:
    """msgspec crashes where two threads are the first to decode a struct."""
    program = """
        import sys
        import msgspec
        import kedge.wire.codec
        from kedge.model import payload, protocol, spec

        prepared_late = []
        def watch(frame, event, argument):
            if event == "call" and frame.f_code.co_name == "get_class_annotations":
                prepared_late.append(frame.f_locals["obj"].__name__)
        sys.setprofile(watch)
        for kind in (protocol.FromClient, protocol.ToClient, protocol.ToContainer, spec.AppSpec, spec.Variant,
                     spec.FunctionSpec, payload.Result, payload.Payload):
            msgspec.msgpack.Decoder(kind)
        class Other(msgspec.Struct):
            field: int
        msgspec.msgpack.Decoder(Other)
        print(prepared_late)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['Other']"


# ---------------------------------------------------------------- whatever comes

streams = st.lists(
    st.lists(messages(p.SessionClosed, p.CallClosed, p.InputsSubmitted), max_size=3).map(encode), max_size=4
).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Good frames in which a few bytes were changed, taken out or put in."""
    data = bytearray(draw(streams))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data)


@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=200) | mutated() | st.binary(max_size=60).map(frame), cuts=st.lists(st.integers(0)))
def test_any_bytes_give_messages_and_then_at_most_a_reason_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    found, reason = read(data, [])
    again, reason_again = read(data, cuts)
    assert again == found
    assert bool(reason_again) == bool(reason)
