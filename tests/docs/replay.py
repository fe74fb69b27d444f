"""Runs a guide: its programs are saved, its commands are typed, and what they print is what the guide shows.

* A Python block whose first line is `# name.py` is that file from then on. Other Python blocks only have to be Python.
* In a block without a language, lines that begin with `$ ` are commands; what follows is their output. `…` in it stands
  for any text of a line, a line of its own for any lines.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.docs.site import LONG, Site

USUAL_PORT = "5334"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"# (\w+\.py)\n")


class Step(NamedTuple):
    line: int
    """Where the block begins in the document."""
    file: str
    """To be written; empty where commands are to be typed."""
    text: str
    commands: list[tuple[str, str]]


def steps(document: Path) -> list[Step]:
    text, found = document.read_text(), []
    for match in _BLOCK.finditer(text):
        language, block = match.groups()
        line = text.count("\n", 0, match.start()) + 1
        if language == "python":
            name = _NAME.match(block)
            ast.parse(block)
            if name is not None:
                found.append(Step(line, name[1], block, []))
        elif not language and block.startswith("$ "):
            typed = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
            commands = [(command.partition("\n")[0], command.partition("\n")[2]) for command in typed]
            found.append(Step(line, "", "", commands))
    return found


def replay(document: Path, site: Site) -> None:
    port = _prepare(site)
    for step in steps(document):
        if step.file:
            (site.directory / step.file).write_text(step.text.replace(f":{USUAL_PORT}", f":{port}"))
        for command, shown in step.commands:
            printed = _type(site, command.replace(f":{USUAL_PORT}", f":{port}")).replace(f":{port}", f":{USUAL_PORT}")
            assert re.fullmatch(_pattern(shown), printed), (
                f"{document.name}, line {step.line}: `{command}` printed\n{printed}\nand not\n{shown}"
            )


def _prepare(site: Site) -> str:
    """`kedge` and `python` are those of this test. Gives the port of the server."""
    directory = site.directory / "bin"
    directory.mkdir()
    for name, words in {"kedge": f"{sys.executable} -m kedge.cli.main", "python": sys.executable}.items():
        (directory / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (directory / name).chmod(0o755)
    site.environment["PATH"] = f"{directory}{os.pathsep}{os.environ['PATH']}"
    found = re.search(r"http://127\.0\.0\.1:(\d+)", site.kedge("server", "status"))
    assert found
    return found[1]


def _type(site: Site, command: str) -> str:
    """What a command prints on stdout. It must succeed."""
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=site.directory,
        env=site.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * LONG,
    )
    assert done.returncode == 0, f"`{command}` ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    lines = done.stdout.splitlines()
    return "".join(f"{line}\n" for line in lines)


def _pattern(shown: str) -> str:
    pattern = ""
    for line in shown.splitlines():
        if line == "…":
            pattern += r"(?:.*\n)*"
        else:
            pattern += r"[^\n]*".join(map(re.escape, line.split("…"))) + r"[ ]*\n"
    return pattern
