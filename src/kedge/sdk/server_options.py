"""The options that the machine's server was started with last: kept in the state directory, so that whoever starts it
again, be it `kedge deploy` after a crash, starts the same server at the same addresses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence


def path(directory: str) -> str:
    """The file of a state directory. The server writes it once it is up: what does not start is not remembered."""
    return os.path.join(directory, "server", "options.json")


def load(directory: str) -> list[str]:
    """Words for the command line of the server; none where nothing is remembered."""
    try:
        with open(path(directory), encoding="utf-8") as file:
            words = json.load(file)
    except (OSError, ValueError):
        return []
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else []


def merged(before: Sequence[str], given: Sequence[str]) -> list[str]:
    """Options of which each that is given now takes the place of the same one before.

    >>> merged(["--port", "1", "--insecure"], ["--cpus", "2", "--port", "3"])
    ['--port', '3', '--insecure', '--cpus', '2']
    """
    options: dict[str, list[str]] = {}
    for words in (before, given):
        name = ""
        for word in words:
            if word.startswith("--"):
                name, _, value = word.partition("=")
                options[name] = [value] if value else []
            elif name:
                options[name].append(word)
    return [word for name, values in options.items() for word in (name, *values)]
