"""A terminal that knows as much as the display uses: what would a person see?"""

from __future__ import annotations

import io
import re

_PART = re.compile(r"\x1b\[(\d*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class FakeTerminal(io.StringIO):
    """Text, newlines, carriage returns, cursor up, clearing a line; colours are swallowed. Lines never wrap."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = [""]
        self.row = self.column = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for part in _PART.finditer(text):
            self._do(part[0], part[1], part[2])
        return len(text)

    def _do(self, text: str, argument: str | None, command: str | None) -> None:
        if text == "\r":
            self.column = 0
        elif text == "\n":
            self.row, self.column = self.row + 1, 0
            if self.row == len(self.lines):
                self.lines.append("")
        elif command == "A":
            assert self.row >= int(argument or 1), "the cursor leaves the screen"
            self.row -= int(argument or 1)
        elif command == "K":
            assert argument == "2"
            self.lines[self.row] = ""
        elif command is None:
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + text + line[self.column + len(text) :]
            self.column += len(text)
        else:
            assert command == "m", f"unknown {text!r}"

    @property
    def seen(self) -> list[str]:
        """The lines that are not empty."""
        return [line.rstrip() for line in self.lines if line.strip()]
