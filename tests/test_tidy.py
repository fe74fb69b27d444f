"""Small rules that a formatter does not know."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = [
    path
    for pattern in ("src/**/*.py", "tests/**/*.py", "examples/**/*.py", "benchmarks/**/*.py", "docs/**/*.md", "*.md")
    for path in ROOT.glob(pattern)
]

BANNED = {
    r"\bTODO\b|\bFIXME\b|\bXXX\b": "finish it, or say in the docs what is missing",
    r"\bpods?\b|\breplicas?\b": "the word is container",
    r"(?i)\bfor now\b": "say until when, or finish it",
    r"/work/|/root/\.(?!cache)|/pyenv": "no paths of a machine; /root/.cache is in containers",
}


def test_no_banned_words() -> None:
    found = []
    for path in FILES:
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for pattern, advice in BANNED.items():
                if re.search(pattern, line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]} ({advice})")
    assert not found, "\n".join(found)
