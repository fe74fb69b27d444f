"""Cold starts on every rung of the isolation ladder, and fifty containers with torch at once.

A cold start is a call while there is no container, to its result, through a server, the fork server being warm. Rungs,
podman and Ray are left out where this machine does not have them.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

import kedge
from benchmarks.calls import wait_for_zero
from benchmarks.peers import local_ray
from benchmarks.report import Report, Row, stopwatch
from benchmarks.rungs import apps, bare
from benchmarks.torch_app import TORCH, answer, cold_torch
from benchmarks.torch_app import app as torch_app
from kedge.engines import probe
from kedge.model.spec import NAMESPACE, PROCESS

ROUNDS, SLOW_ROUNDS = 9, 3
REST_S = 0.3
"""After the end of a container, which takes time of its own: a cold start does not come at that moment."""
BUDGETS = {NAMESPACE: 25}
TORCH_BUDGET_MS = 50
CONTAINERS = 50
STAY_S = 6.0
"""How long each of them is kept, so that none answers twice."""


def run(report: Report) -> None:
    reasons = probe.survey()
    for rung, reason in reasons.items():
        if reason:
            print(f"  rung {rung}: left out, {reason}")
    yardstick = fresh("pass", ROUNDS)
    for rung in [rung for rung, reason in reasons.items() if not reason]:
        with apps[rung].run():
            took = cold_start_ms(bare[rung], ROUNDS if rung in (PROCESS, NAMESPACE) else SLOW_ROUNDS)
        budget = BUDGETS.get(rung)
        held = None if budget is None else took <= budget
        report.add(
            Row(
                f"cold start, rung {rung}",
                f"{took:.0f} ms",
                f"{yardstick:.0f} ms fresh python",
                f"{took / yardstick:.1f} ×",
                f"≤ {budget} ms" if budget else "",
                held,
            )
        )
    podman(report, yardstick)
    if not TORCH or reasons[NAMESPACE]:
        print("  torch is not installed here, or there are no namespaces: the rest is left out")
        return
    yardstick = fresh("import torch; torch.ones(3)", SLOW_ROUNDS)
    with torch_app.run():
        took = cold_start_ms(cold_torch, ROUNDS)
        report.add(
            Row(
                f"cold start, rung {NAMESPACE}, torch imported",
                f"{took:.0f} ms",
                f"{yardstick:.0f} ms fresh python",
                f"{yardstick / took:.0f} × as fast",
                f"≤ {TORCH_BUDGET_MS} ms",
                took <= TORCH_BUDGET_MS,
            )
        )
        fifty(report, yardstick)
    ray_actor(report)


def cold_start_ms(function: kedge.Function[..., Any], rounds: int) -> float:
    """The first start teaches what is imported, the second one makes a fork server that holds it."""
    for _ in range(2):
        function.remote(0)
        wait_for_zero(function)
    times = []
    for _ in range(rounds):
        time.sleep(REST_S)
        with stopwatch() as seconds:
            assert function.remote(1) == 1
        times.append(seconds[0] * 1000)
        wait_for_zero(function)
    return statistics.median(times)


def fresh(code: str, rounds: int) -> float:
    """Milliseconds of an interpreter that runs `code`."""
    return _median_ms(lambda: subprocess.run([sys.executable, "-c", code], check=True), rounds)


def podman(report: Report, yardstick: float) -> None:
    """The same interpreter in a container of podman's, over the machine's files: nothing is unpacked."""
    program = shutil.which("podman")
    if program is None:
        print("  podman is not installed: left out")
        return
    limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]
    words = [program, "run", "--rm", "--network", "host", *limits, "--rootfs", "/:O"]
    command = [*words, sys.executable, "-c", "pass"]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    if first.returncode:
        print(f"  podman: left out, {first.stderr.strip()[-200:]}")
        return
    took = _median_ms(lambda: subprocess.run(command, check=True, capture_output=True), SLOW_ROUNDS)
    report.add(Row("podman run", f"{took:.0f} ms", f"{yardstick:.0f} ms fresh python", f"{took / yardstick:.1f} ×"))


def fifty(report: Report, yardstick: float) -> None:
    """From zero until all of them have answered; then what each has for itself alone."""
    wait_for_zero(cold_torch)
    answer.remote(0)
    wait_for_zero(answer)
    time.sleep(REST_S)
    cores, began = os.cpu_count() or 1, time.time()
    sizes: dict[str, int] = {}
    watch = threading.Timer(STAY_S - 1, lambda: sizes.update(_unique_bytes()))
    watch.start()
    answers = list(answer.map([began + STAY_S] * CONTAINERS))
    watch.join()
    names = {name for name, _ in answers}
    took = (max(moment for _, moment in answers) - began) * 1000
    unique = statistics.median(sizes.get(name[:15], 0) for name in names) / 2**20
    serial = yardstick * CONTAINERS / cores
    holds = took <= 500 and len(names) == CONTAINERS
    report.add(
        Row(
            f"{len(names)} containers with torch, from none until all answer",
            f"{took:.0f} ms",
            f"{serial:,.0f} ms fresh pythons",
            f"{serial / took:.0f} × as fast",
            "≤ 500 ms",
            holds,
        )
    )
    alone = _unique_of_fresh()
    report.add(
        Row(
            "memory of each of them that is its own",
            f"{unique:.1f} MB",
            f"{alone:.0f} MB fresh python",
            f"1/{alone / unique:.0f}",
            "≤ 5 MB",
            unique <= 5,
        )
    )


def _unique_bytes() -> dict[str, int]:
    """Process name → bytes that no other process shares, of all containers on this machine."""
    found = {}
    for process in psutil.process_iter(["name"]):
        if process.info["name"].startswith("ct-"):
            try:
                found[process.info["name"]] = process.memory_full_info().uss
            except psutil.Error:
                continue
    return found


def _unique_of_fresh() -> float:
    """MB of an interpreter that has torch for itself. What it maps from files it would share with others."""
    code = "import torch; torch.ones(3); print(flush=True); __import__('sys').stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        maps = psutil.Process(process.pid).memory_maps(grouped=False)
        assert process.stdin is not None
        process.stdin.close()
    return float(sum(each.private_dirty for each in maps) / 2**20)


def ray_actor(report: Report) -> None:
    """A Ray actor that imports torch, from its creation to its first answer."""
    ray = local_ray()
    if ray is None:
        return

    @ray.remote(num_cpus=0)
    class Ones:
        def answer(self) -> int:
            import torch

            return int(torch.ones(3)[0])

    def once() -> None:
        actor = Ones.remote()
        assert ray.get(actor.answer.remote()) == 1
        ray.kill(actor)

    once()
    took = _median_ms(once, SLOW_ROUNDS)
    ray.shutdown()
    report.add(Row("Ray actor, torch imported", f"{took:.0f} ms"))


def _median_ms(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        with stopwatch() as seconds:
            call()
        times.append(seconds[0] * 1000)
    return statistics.median(times)


if __name__ == "__main__":
    run(Report())
