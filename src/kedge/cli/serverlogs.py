"""`kedge server logs`: the end of the server's own log, and what is added to it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import IO

import click

from kedge.cli.server import note_elsewhere
from kedge.sdk import server_process
from kedge.server.logfile import OLD_FILES, old

LOOK_S = 0.2
_PIECE = 64 * 1024


def show(lines: int, follow: bool) -> int:
    """Prints the last lines; with `follow` also those that come, until Ctrl-C."""
    note_elsewhere()
    path = Path(server_process.home()) / "logs" / "server.log"
    if not path.exists():
        click.echo(f"Error: there is no log at {path}: no server of this machine has run yet.", err=True)
        return 1
    files = [path, *(old(path, number) for number in range(1, OLD_FILES + 1))]
    size = path.stat().st_size
    _put(b"".join(_last_lines([one for one in files if one.exists()], lines)))
    if follow:
        try:
            _follow(path, size)
        except KeyboardInterrupt:
            pass
    return 0


def _last_lines(files: list[Path], count: int) -> list[bytes]:
    """The last lines of files, of which the first one is the newest."""
    found: list[bytes] = []
    for path in files:
        if len(found) >= count:
            break
        found = [*_tail(path, count - len(found)), *found]
    return found


def _tail(path: Path, count: int) -> list[bytes]:
    if count <= 0:
        return []
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        data = b""
        while position and data.count(b"\n") <= count:
            size = min(_PIECE, position)
            position -= size
            file.seek(position)
            data = file.read(size) + data
    return data.splitlines(keepends=True)[-count:]


def _follow(path: Path, position: int) -> None:
    """Goes on in the new file where the old one has reached its size."""
    while True:
        with path.open("rb") as file:
            file.seek(position)
            while True:
                data = file.read()
                if data:
                    _put(data)
                elif _has_begun_anew(path, file):
                    break
                else:
                    time.sleep(LOOK_S)
        position = 0


def _has_begun_anew(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.stat(path).st_ino != os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _put(data: bytes) -> None:
    sys.stdout.write(data.decode("utf-8", "replace"))
    sys.stdout.flush()
