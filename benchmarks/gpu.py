"""A language model under continuous batching, and two models that share one GPU: on a machine that has one.

    python -m benchmarks.gpu                   # writes benchmarks/GPU.md
    python -m benchmarks.gpu --size tiny --cpu # tries it without a GPU; writes nothing

The model is `examples/llm_batching.py`: GPT-2's shape, random weights, one step for all requests that are there. How
many tokens a second it makes for one caller after the other is the yardstick of 8, 64 and 256 at once; reading the
prompts is part of the time. Nothing is downloaded; torch and transformers must be installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.report import Report, Row, machine
from kedge.server import gpus

EXAMPLES = Path(__file__).parents[1] / "examples"
RESULTS = Path(__file__).parent / "GPU.md"
AT_ONCE = (1, 8, 64, 256)
PROMPT = 16
TOKENS = 64
ROUNDS = 3
SHARE = {"tiny": "2Gi", "small": "8Gi", "large": "24Gi"}
"""Of a device, for each of two models on it: weights, CUDA context, and a cache for 64 requests."""


def missing(cpu: bool) -> str:
    """Why this cannot run here; empty where it can."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed (pip install torch transformers)"
    found = gpus.discover()
    if not cpu and not found.devices:
        return found.error or "there is no GPU on this machine (--cpu tries it without)"
    return ""


def rate(llm: Any, at_once: int, requests: int) -> float:
    """Tokens a second, with so many requests at once."""
    prompts = [[number % 50_000 + 1] * PROMPT for number in range(requests)]
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as callers:
        answers = list(callers.map(lambda prompt: llm.generate.remote(prompt, TOKENS), prompts))
    assert all(len(answer) == TOKENS for answer in answers)
    return requests * TOKENS / (time.perf_counter() - began)


def best(measure: Callable[[], float]) -> float:
    """Of some rounds the fastest: what else runs on the machine only makes it slower."""
    return max(measure() for _ in range(ROUNDS))


def batching(report: Report, llm: Any) -> None:
    rate(llm, 1, 1)
    name, _, _ = llm.about.remote()
    alone = 0.0
    for at_once in AT_ONCE:
        tokens = best(lambda at_once=at_once: rate(llm, at_once, 2 * at_once if at_once > 1 else 4))
        alone = alone or tokens
        ratio = f"{tokens / alone:.1f} ×"
        report.add(Row(f"{at_once} at once, {name}", f"{tokens:,.0f} tokens/s", f"{alone:,.0f} one by one", ratio))


def sharing(report: Report, first: Any, second: Any) -> None:
    """Two models on one device, each alone and both at the same time."""
    for llm in (first, second):
        rate(llm, 1, 1)
    places = {first.device.remote(), second.device.remote()}
    apart = [best(lambda llm=llm: rate(llm, 64, 128)) for llm in (first, second)]
    with ThreadPoolExecutor(2) as both:
        together = list(both.map(lambda llm: rate(llm, 64, 256), (first, second)))
    where = "one device" if len(places) == 1 else "devices of their own"
    report.add(
        Row(
            f"two models on {where}, 64 at once each",
            f"{together[0]:,.0f} + {together[1]:,.0f} tokens/s",
            f"{apart[0]:,.0f} and {apart[1]:,.0f} with the other idle",
            f"{sum(together) / max(apart):.2f} ×",
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--size", choices=SHARE, default="large")
    parser.add_argument("--cpu", action="store_true", help="without a GPU")
    options = parser.parse_args()
    reason = missing(options.cpu)
    if reason:
        print(f"skipped: {reason}")
        return 0
    sys.path.insert(0, str(EXAMPLES))
    os.environ.pop("LLM_GPU", None)
    import llm_batching

    placed: dict[str, Any] = {} if options.cpu else {"gpu": "any"}
    shared: dict[str, Any] = {} if options.cpu else {"gpu": "any", "vram": SHARE[options.size]}
    report = Report()
    with llm_batching.app.run():
        print("continuous batching:", flush=True)
        whole = llm_batching.Llm.with_options(**placed, scaledown_window=2)(size=options.size)
        batching(report, whole)
        print("two models on one device:", flush=True)
        variants = [llm_batching.Llm.with_options(**shared, timeout=601 + number) for number in range(2)]
        sharing(report, *(variant(size=options.size) for variant in variants))
    found = gpus.facts()
    devices = ", ".join(f"{one['product']} ({one['memory']:,} MiB)" for one in found["devices"]) or "no GPU"
    text = (
        f"# Results on a GPU\n\nRepeat with `python -m benchmarks.gpu --size {options.size}`. {devices}; {machine()}. "
        f"Prompts of {PROMPT} tokens, answers of {TOKENS}.\n\n{report.table()}\n"
    )
    if not options.cpu:
        RESULTS.write_text(text)
    print(f"\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
