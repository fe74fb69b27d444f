"""Import time, and the server at rest."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import psutil

from benchmarks.report import Report, Row


def run(report: Report) -> None:
    import_time(report)
    server_at_rest(report)


def import_time(report: Report) -> None:
    def seconds(code: str) -> float:
        times = []
        for _ in range(9):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    bare = seconds("pass")
    took = (seconds("import kedge") - bare) * 1000
    report.add(Row("import kedge", f"{took:.0f} ms", f"{bare * 1000:.0f} ms bare python", "", "≤ 100 ms", took <= 100))


def server_at_rest(report: Report) -> None:
    """Memory of the server with its supervisor, and the CPU they use in five quiet seconds."""
    with tempfile.TemporaryDirectory() as home:
        ready, owner = os.pipe(), os.pipe()
        command = [sys.executable, "-m", "kedge.server.main", "--private", "--home", home]
        command += ["--ready-fd", str(ready[1]), "--owner-fd", str(owner[0])]
        server = subprocess.Popen(command, pass_fds=(ready[1], owner[0]))
        os.close(ready[1])
        os.close(owner[0])
        with os.fdopen(ready[0]) as line:
            json.loads(line.readline())
        processes = [psutil.Process(server.pid)]
        processes += processes[0].children(recursive=True)
        time.sleep(1)
        before = sum(sum(process.cpu_times()[:2]) for process in processes)
        time.sleep(5)
        spent = sum(sum(process.cpu_times()[:2]) for process in processes) - before
        size = sum(process.memory_full_info().uss for process in processes) / 2**20
        os.close(owner[1])
        server.wait()
    count = f"{len(processes)} processes"
    report.add(Row("server at rest, memory", f"{size:.0f} MiB", count, "", "≤ 100 MB", size <= 100))
    report.add(Row("server at rest, CPU", f"{spent / 5:.1%}", "", "", "0 %", spent < 0.02))
