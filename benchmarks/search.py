"""A real model: texts a second of `examples/search_docs.py`, in batches and two at once, beside one by one.

Builds its image the first time, with torch: without another choice, the one for processors."""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

from benchmarks.report import Report, Row, stopwatch

ALONE, TOGETHER, ROUNDS = 100, 1_000, 3


def run(report: Report) -> None:
    if "UV_CONSTRAINT" not in os.environ:  # which may name a torch without CUDA by itself
        os.environ.setdefault("UV_TORCH_BACKEND", "cpu")
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from search_docs import Encoder, OneByOne, app, library  # as a module of its own, which containers can be sent

    texts = list(library().values())[:TOGETHER]
    with app.run():
        one, many = OneByOne().encode, Encoder().encode
        one.remote("the model is loaded")
        many.remote("the model is loaded")
        pairs = []
        for _ in range(ROUNDS):
            with stopwatch() as alone:
                for text in texts[:ALONE]:
                    one.remote(text)
            with stopwatch() as together:
                assert sum(1 for _ in many.map(texts)) == len(texts)
            pairs.append((len(texts) / together[0], ALONE / alone[0]))
    ours, theirs = (statistics.median(speeds) for speeds in zip(*pairs, strict=True))
    ratio = statistics.median(mine / other for mine, other in pairs)
    report.add(
        Row(
            "texts encoded by a model, batched and concurrent",
            f"{ours:,.0f} texts/s",
            f"{theirs:,.0f}/s one by one",
            f"{ratio:.1f} ×",
        )
    )


if __name__ == "__main__":
    run(Report())
