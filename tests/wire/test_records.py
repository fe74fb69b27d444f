"""Records: what containers print, framed with the input that printed it."""

from __future__ import annotations

import pytest

from kedge.wire.records import (
    DATA_LIMIT,
    NOBODY,
    RECORD_LIMIT,
    STDERR,
    STDOUT,
    Origin,
    Reader,
    announcement,
    pack_header,
)


def record(lease: int, data: bytes, kind: int = STDOUT, writer: int = 1, at: float = 1.0) -> bytes:
    return pack_header(len(data), kind, writer, lease, at) + data


def test_records_come_apart_wherever_the_bytes_were_cut() -> None:
    origin = Origin("fc-1", 3, 1, "generate")
    data = announcement(9, origin, 0.0) + record(9, b"one\n") + record(9, b"two\n", STDERR, 2, 5.0) + record(0, b"x")
    for cut in range(len(data)):
        reader = Reader()
        records = reader.feed(data[:cut]) + reader.feed(data[cut:])
        assert [(r.kind, r.writer, r.origin, r.at, r.data) for r in records] == [
            (STDOUT, 1, origin, 1.0, b"one\n"),
            (STDERR, 2, origin, 5.0, b"two\n"),
            (STDOUT, 1, NOBODY, 1.0, b"x"),
        ]


def test_a_lease_that_was_never_announced_belongs_to_nobody() -> None:
    assert Reader().feed(record(4, b"lost\n"))[0].origin == NOBODY


def test_a_lease_announced_again_counts_as_the_newest() -> None:
    reader = Reader()
    reader.MEMORY = 2
    data = b"".join(announcement(lease, Origin(f"fc-{lease}", 0), 0.0) for lease in (1, 2, 1, 3))
    reader.feed(data)
    records = reader.feed(record(1, b"a") + record(2, b"b") + record(3, b"c"))
    assert [r.origin.call for r in records] == ["fc-1", "", "fc-3"]


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(ValueError, match=f"a record of {DATA_LIMIT + 1} bytes: longer than any"):
        Reader().feed(pack_header(DATA_LIMIT + 1, STDOUT, 0, 0, 0.0))
    with pytest.raises(ValueError, match="an announcement that cannot be read"):
        Reader().feed(pack_header(1, 0, 0, 5, 0.0) + b"\xc1")


def test_an_announcement_fits_a_record_however_large_the_batch() -> None:
    members = tuple((f"fc-{number:022d}", number) for number in range(1000))
    data = announcement(1, Origin("fc-0", 0, members=members), 0.0)
    assert len(data) <= RECORD_LIMIT
    reader = Reader()
    reader.feed(data)
    known = reader.feed(record(1, b"x"))[0].origin.members
    assert known == members[: len(known)]
    assert len(known) > 60
