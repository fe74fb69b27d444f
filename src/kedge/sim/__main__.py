"""`python -m kedge.sim`: fresh worlds until one breaks a rule.

    python -m kedge.sim                    # 100 fresh seeds
    python -m kedge.sim --runs 1000
    python -m kedge.sim --seed 7           # one seed, once more, event by event the same
    python -m kedge.sim --scenario NAME    # one named story; `--scenario list` names them

Prints one line per batch. On failure: the seed, the rule, the last events and the command that replays it; exit code 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from random import SystemRandom
from typing import NoReturn

from kedge.sim import workload
from kedge.sim.checks import Violation
from kedge.sim.scenarios import SCENARIOS
from kedge.sim.workload import Summary

BATCH = 100
"""Worlds per line."""
HANG_S = 120
"""Real seconds after which a world is taken to go round in circles inside one step."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kedge.sim", description="Simulates the control plane and checks it."
    )
    parser.add_argument("--seed", type=int, help="replay this seed")
    parser.add_argument("--runs", type=int, help="how many seeds: fresh ones, or those from --seed on (default 100)")
    parser.add_argument("--scenario", help="play a named story instead; 'list' names them")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGALRM, _hangs)
    if chosen.scenario == "list":
        print("\n".join(SCENARIOS))
        return 0
    if chosen.scenario is not None:
        if chosen.scenario not in SCENARIOS:
            parser.error(f"there is no scenario {chosen.scenario}; --scenario list names them")
        return play(chosen.scenario, chosen.seed or 0)
    if chosen.seed is not None:
        return batch(range(chosen.seed, chosen.seed + (chosen.runs or 1)))
    fresh = SystemRandom()
    left = 100 if chosen.runs is None else chosen.runs
    while left > 0:
        first = fresh.randrange(2**31)
        if batch(range(first, first + min(left, BATCH))):
            return 1
        left -= BATCH
    return 0


def batch(seeds: range) -> int:
    """Runs these seeds and prints one line about them."""
    began = time.perf_counter()
    done: list[Summary] = []
    for seed in seeds:
        failed = guarded(lambda: done.append(workload.run_seed(seed)), f"--seed {seed}")  # noqa: B023
        if failed:
            return 1
    took = time.perf_counter() - began
    which = f"seed {seeds[0]}, digest {done[0].digest}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    print(
        f"{which}: {sum(s.events for s in done)} events, {sum(s.attempts for s in done)} attempts in "
        f"{sum(s.containers for s in done)} containers, {sum(s.virtual_s for s in done) / 3600:.1f} virtual hours "
        f"in {took:.1f} s",
        flush=True,
    )
    return 0


def play(name: str, seed: int) -> int:
    failed = guarded(lambda: SCENARIOS[name](seed), f"--scenario {name} --seed {seed}")
    if not failed:
        print(f"{name}, seed {seed}: all as told")
    return failed


def guarded(run: Callable[[], object], again: str) -> int:
    """1, and all that helps to find out why, where `run` breaks a rule."""
    signal.alarm(HANG_S)
    try:
        run()
    except Exception as error:  # whatever the core raises is a finding
        for note in getattr(error, "__notes__", ()):
            print(note)
        what = str(error) if isinstance(error, Violation) else f"{type(error).__name__} in {place(error)}: {error}"
        print(f"FAILED {again}\n{what}\nreplay: python -m kedge.sim {again}", flush=True)
        return 1
    finally:
        signal.alarm(0)
    return 0


def place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_qualname}, line {trace.tb_lineno}"


def _hangs(number: int, frame: object) -> NoReturn:
    raise Violation("no spinning", f"one step has not ended after {HANG_S} s")


if __name__ == "__main__":
    sys.exit(main())
