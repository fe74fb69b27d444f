"""Web requests through the ingress, each beside the same app under plain uvicorn (uvloop, httptools, one process).

Both are asked in turns, by wrk with 1, 32 and 256 connections; then streams, WebSockets, large bodies.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager

import psutil

from benchmarks import web_peers
from benchmarks.report import Report, Row
from benchmarks.web_clients import Memory, download_s, echo, events_per_second, first_byte_ms, served, upload_s, wrk
from benchmarks.web_functions import app, bare_site, fast_site

CONNECTIONS = (1, 32, 256)
TURNS = 4
SECONDS = 2.0
BODY = 100_000_000
GREAT_BODY = 1_000_000_000
MEMORY_MB = 50
"""What a body may cost the server beside what it has anyway, however large the body is."""


def run(report: Report) -> None:
    with uvicorn("fast") as plain_fast, uvicorn("bare") as plain_bare, app.run():
        fast, bare = fast_site.get_web_url(), bare_site.get_web_url()
        assert fast is not None
        assert bare is not None
        if shutil.which("wrk") is None:
            print("  wrk is not installed: requests a second are left out")
        else:
            requests(report, "FastAPI", fast, plain_fast, 0.5)
            requests(report, "bare ASGI", bare, plain_bare, None)
            web_peers.run(report, fast)
        streams(report, bare, plain_bare)
        sockets(report, bare, plain_bare)
        bodies(report, bare, plain_bare)
        great_bodies(report, bare)


def requests(report: Report, what: str, url: str, yardstick: str, budget: float | None) -> None:
    for connections in CONNECTIONS:
        pairs = [(wrk(url, connections, SECONDS), wrk(yardstick, connections, SECONDS)) for _ in range(TURNS)]
        ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
        failed = sum(load.failed for load in ours)
        ratio = statistics.median(a.rate / b.rate for a, b in pairs)
        held = budget if connections == 32 else None
        for loads in (ours, theirs):
            loads.sort()
        mine, other = ours[TURNS // 2], theirs[TURNS // 2]
        report.add(
            Row(
                f"{what} through the ingress, {connections} clients" + (f", {failed} FAILED" if failed else ""),
                f"{mine.rate:,.0f}/s (p50 {mine.p50_ms:.1f}, p99 {mine.p99_ms:.1f} ms)",
                f"{other.rate:,.0f}/s (p50 {other.p50_ms:.1f}, p99 {other.p99_ms:.1f} ms) uvicorn",
                f"{ratio:.2f} ×",
                f"≥ {held} ×" if held else "",
                ratio >= held if held else None,
            )
        )


def streams(report: Report, url: str, yardstick: str) -> None:
    ours, theirs = in_turns(first_byte_ms, url, yardstick)
    report.add(Row("first byte of a stream", f"{ours:.2f} ms", f"{theirs:.2f} ms uvicorn", f"{ours / theirs:.1f} ×"))
    ours, theirs = in_turns(events_per_second, url, yardstick)
    what = "events of one stream, 64 bytes each"
    report.add(Row(what, f"{ours:,.0f}/s", f"{theirs:,.0f}/s uvicorn", f"{ours / theirs:.2f} ×"))


def sockets(report: Report, url: str, yardstick: str) -> None:
    pairs = [(echo(url), echo(yardstick)) for _ in range(3)]
    ours = statistics.median(a.round_trip_us for a, _ in pairs)
    theirs = statistics.median(b.round_trip_us for _, b in pairs)
    ratio = f"{ours / theirs:.1f} ×"
    report.add(Row("WebSocket echo, p50", f"{ours:.0f} µs", f"{theirs:.0f} µs uvicorn", ratio))
    ours = statistics.median(a.rate for a, _ in pairs)
    theirs = statistics.median(b.rate for _, b in pairs)
    what = "WebSocket messages, 100 under way"
    report.add(Row(what, f"{ours:,.0f}/s", f"{theirs:,.0f}/s uvicorn", f"{ours / theirs:.2f} ×"))


def bodies(report: Report, url: str, yardstick: str) -> None:
    def speed_of(measure: Callable[[str, int], float]) -> Callable[[str], float]:
        return lambda address: BODY / 1e6 / measure(address, BODY)

    for what, measure in (("upload", upload_s), ("download", download_s)):
        ours, theirs = in_turns(speed_of(measure), url, yardstick)
        ratio = f"{ours / theirs:.2f} ×"
        report.add(Row(f"100 MB {what}", f"{ours:,.0f} MB/s", f"{theirs:,.0f} MB/s uvicorn", ratio))


def great_bodies(report: Report, url: str) -> None:
    memory = Memory(processes_of(url))
    upload_s(url, GREAT_BODY, chunked=True)
    download_s(url, GREAT_BODY)
    what = "1 GB up and down, memory of server and containers"
    megabytes = memory.grown_mb()
    report.add(Row(what, f"+{megabytes:.0f} MB", "", "", f"< {MEMORY_MB} MB", megabytes < MEMORY_MB))


def in_turns(measure: Callable[[str], float], ours: str, theirs: str) -> tuple[float, float]:
    pairs = [(measure(ours), measure(theirs)) for _ in range(3)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def processes_of(url: str) -> list[int]:
    """The server that listens there, and all that it has started."""
    port = int(url.split(":")[2].split("/")[0])
    for process in psutil.process_iter():
        try:
            found = process.net_connections("tcp")
        except psutil.Error:
            continue
        if any(link.status == psutil.CONN_LISTEN and link.laddr[1] == port for link in found):
            return [process.pid, *(child.pid for child in process.children(recursive=True))]
    raise LookupError(f"nobody listens on port {port}")


def uvicorn(name: str) -> AbstractContextManager[str]:
    """The address of an app of `web_functions` under plain uvicorn."""
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning", "--port"]
    return served(["uvicorn", f"benchmarks.web_functions:{name}", *options])
