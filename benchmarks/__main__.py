"""Runs every measurement, or those that are named, and writes RESULTS.md when all have run."""

from __future__ import annotations

import sys

from benchmarks import (
    attribution,
    calls,
    cancel,
    core,
    data,
    hello,
    images,
    isolation,
    logs,
    memory,
    peers,
    search,
    web,
)
from benchmarks.report import RESULTS, Report, machine

ALL = {
    "core": core.run,
    "memory": memory.run,
    "hello": hello.run,
    "calls": calls.run,
    "cancel": cancel.run,
    "logs": logs.run,
    "peers": peers.run,
    "attribution": attribution.run,
    "web": web.run,
    "isolation": isolation.run,
    "images": images.run,
    "data": data.run,
    "search": search.run,
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"unknown measurement {unknown[0]!r}: there are {', '.join(ALL)}")
        return 2
    report = Report()
    for name in names or ALL:
        print(f"{name}:", flush=True)
        ALL[name](report)
    text = f"# Results\n\nRepeat with `make bench`. {machine()}.\n\n{report.table()}\n"
    if not names:
        RESULTS.write_text(text)
    print(f"\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
