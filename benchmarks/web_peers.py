"""Other servers of the same FastAPI app beside kedge, where they are installed: granian, hypercorn, Ray Serve.

`python -m benchmarks.web_peers PORT` is the last of them, on its own.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import threading
from importlib.util import find_spec

from benchmarks.report import Report, Row
from benchmarks.web_clients import served, wrk

APP = "benchmarks.web_functions:fast"
CLIENTS = 32
TURNS = 3
SECONDS = 2.0
PEERS = {
    "granian": ["granian", "--interface", "asgi", "--loop", "uvloop", "--log-level", "warning", APP, "--port"],
    "hypercorn": ["hypercorn", "--worker-class", "uvloop", "--log-level", "warning", APP, "--bind"],
    "Ray Serve": ["benchmarks.web_peers"],
}


def run(report: Report, url: str) -> None:
    for name, arguments in PEERS.items():
        if find_spec("grpc" if name == "Ray Serve" else name) is None or (name == "Ray Serve" and not find_spec("ray")):
            print(f"  {name} is not installed: left out")
            continue
        with served(arguments) as yardstick:
            wrk(yardstick, CLIENTS, SECONDS)
            pairs = [(wrk(url, CLIENTS, SECONDS), wrk(yardstick, CLIENTS, SECONDS)) for _ in range(TURNS)]
        ours, theirs = (statistics.median(load.rate for load in loads) for loads in zip(*pairs, strict=True))
        what = f"FastAPI, {CLIENTS} clients, beside {name}"
        report.add(Row(what, f"{ours:,.0f}/s", f"{theirs:,.0f}/s {name}", f"{ours / theirs:.2f} ×"))


def serve_with_ray(port: int) -> None:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    from benchmarks.web_functions import fast

    @serve.deployment(max_ongoing_requests=100)  # type: ignore[untyped-decorator, unused-ignore]
    @serve.ingress(fast)
    class Site:
        """The app as it is."""

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": port, "access_log": False})
    serve.run(Site.bind(), logging_config={"enable_access_log": False})
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    ray.shutdown()


if __name__ == "__main__":
    serve_with_ray(int(sys.argv[1]))
