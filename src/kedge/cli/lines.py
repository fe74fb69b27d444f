"""What a terminal may show of a line that a container wrote.

A carriage return starts its line anew, as on a terminal, so of a progress bar only the last state counts. Nothing here
trusts the bytes: they may be no text at all.
"""

from __future__ import annotations

import re

_UNSAFE = re.compile(
    "\x1b\\[[0-9;:]*m"  # colours stay: the one alternative with no group
    "|(\x1b\\[[0-?]*[ -/]*[@-~]"  # cursor movements, clearing, modes
    "|\x1b[\\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\\\)?"  # titles, links and other strings
    "|\x1b[ -/]*[0-~]?"  # other escapes
    "|[\x00-\x08\x0a-\x1f\x7f\x80-\x9f])"  # control characters, except for the tab
)

_COLOURS = re.compile("\x1b\\[[0-9;:]*m")


def shown(line: bytes) -> str:
    """What a terminal may show of a line: its last state as text; of control sequences only colours are left.

    >>> shown(b"10 %\\r20 %\\r\\n")
    '20 %'
    >>> shown(b"\\x1b[2Jall \\x1b[1mclear\\x1b[0m\\xff")
    'all \\x1b[1mclear\\x1b[0m\\ufffd'
    """
    text = line.rstrip(b"\r\n").rpartition(b"\r")[2].decode("utf-8", "replace")
    if text.isprintable():
        return text
    return _UNSAFE.sub(lambda match: "" if match[1] is not None else match[0], text)


def plain(line: bytes) -> str:
    """The same without colours."""
    return _COLOURS.sub("", shown(line))
