"""The process that builds, from outside: its events, its end, and indexes that come and go."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from kedge.exception import ImageBuildError
from kedge.images import prune
from kedge.images.builder import Progress, Request
from kedge.images.freshness import Asked, named, way
from kedge.images.store import remove
from tests.images.kit import Site, recipe, step

pytestmark = pytest.mark.slow

BASE = step("debian_slim")


def begin(site: Site, *steps: object) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-m", "kedge.images"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    request = Request(home=str(site.home), image=recipe(*steps))  # type: ignore[arg-type]
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(request) + b"\n")
    process.stdin.flush()
    return process


def events(process: subprocess.Popen[bytes]) -> list[Progress]:
    assert process.stdout is not None
    with process.stdout:
        return [msgspec.json.decode(line, type=Progress) for line in process.stdout]


@pytest.fixture
def deaf() -> Iterator[tuple[str, socket.socket]]:
    """Where a build hangs that looks for packages there."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/", listening


def test_a_build_tells_how_it_goes(site: Site) -> None:
    process = begin(site, BASE, step("env", vars={"A": "1"}))
    told = [(event.state, event.step, event.steps) for event in events(process) if event.state != "output"]
    assert told == [("started", 1, 2), ("finished", 1, 2), ("started", 2, 2), ("finished", 2, 2), ("built", 0, 0)]
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait() == 0


def test_a_failure_is_the_last_event(site: Site) -> None:
    process = begin(site, BASE, step("pip_install", packages=["nosuch"]))
    last = events(process)[-1]
    assert (last.state, last.error) == ("failed", "ImageBuildError")
    assert last.text.startswith("image step 2 of 2 failed (pip_install nosuch)")
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait() == 1


def test_a_place_where_nothing_can_be_kept_is_said(site: Site) -> None:
    (site.store.path / "turns").write_text("in the way")
    process = begin(site, BASE)
    last = events(process)[-1]
    assert (last.state, last.error) == ("failed", "ImageBuildError")
    assert last.text.startswith("images cannot be kept: [Errno ")
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait() == 1


def test_it_ends_with_whoever_has_started_it(site: Site, deaf: tuple[str, socket.socket]) -> None:
    process = begin(site, BASE, step("pip_install", packages=["lib"], find_links=deaf[0]))
    connection, _ = deaf[1].accept()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 1
    events(process)
    connection.close()
    assert [site.store.layer(path.name) is not None for path in site.store.layers.iterdir()] == [True]


def test_what_a_killed_process_has_left_is_swept(site: Site, deaf: tuple[str, socket.socket]) -> None:
    process = begin(site, BASE, step("pip_install", packages=["lib"], find_links=deaf[0]))
    connection, _ = deaf[1].accept()
    prune.sweep(site.store)
    assert len(list(site.store.layers.iterdir())) == 2, "it is being built"
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
    events(process)
    connection.close()
    prune.sweep(site.store)
    assert len(list(site.store.layers.iterdir())) == 1


def test_two_may_remove_the_same_at_the_same_time(tmp_path: Path) -> None:
    for name in map(str, range(20)):
        tree = tmp_path / name
        for number in range(200):
            (tree / str(number % 20)).mkdir(parents=True, exist_ok=True)
            (tree / str(number % 20) / f"{number}.txt").touch()
        with ThreadPoolExecutor(4) as pool:
            for removed in [pool.submit(remove, tree) for _ in range(4)]:
                removed.result()
        assert not tree.exists()


# ---------------------------------------------------------------- indexes


class Quiet(SimpleHTTPRequestHandler):
    """An index. It says how often it was asked, and nothing else."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        super().do_GET()

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def index(site: Site) -> tuple[ThreadingHTTPServer, str]:
    simple = site.wheels.parent / "index" / "lib"
    simple.mkdir(parents=True)
    name = "lib-1.0-py3-none-any.whl"
    os.rename(site.wheels / name, simple / name)
    (simple / "index.html").write_text(f'<html><body><a href="{name}">{name}</a></body></html>')
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(simple.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}/"


def test_an_index_is_not_asked_again_within_minutes_nor_needed_where_all_is_there(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    site.wheel("lib", "1.0")
    server, address = index(site)
    site.build(BASE, step("pip_install", packages=["lib"], index_url=address))
    asked = Quiet.asked
    assert asked > 0
    site.build(BASE, step("pip_install", packages=["lib>=0.5"], index_url=address))
    assert Quiet.asked == asked
    server.shutdown()
    server.server_close()
    for directory in (site.store.path / "asked").iterdir():
        for mark in directory.iterdir():
            os.utime(mark, (0, 0))
    built = site.build(BASE, step("pip_install", packages=["lib>=0.6"], index_url=address))
    assert "lib==1.0" in Path(site.layer(built).lock).read_text()
    said = "\n".join(event.text for event in site.events)
    assert "the index cannot be reached: trying with what was fetched before" in said
    with pytest.raises(ImageBuildError, match=r"(?s)step 2 of 2.*The package index cannot be reached"):
        site.build(BASE, step("pip_install", packages=["other"], index_url=address))


def test_marks_belong_to_one_way_to_ask(tmp_path: Path) -> None:
    here = way(["--index-url", "https://a", "--", "x"], {"UV_INDEX": "i", "HOME": "/h"}, "/python")
    assert here == ["/python", "--index-url", "https://a", "", "UV_INDEX=i"]
    asked = Asked(tmp_path, here, clock=1000.0)
    asked.note(["numpy"])
    assert asked.lately(["numpy"])
    assert not asked.lately(["numpy", "scipy"])
    assert not Asked(tmp_path, here, clock=1601.0).lately(["numpy"])
    assert not Asked(tmp_path, way(["--", "x"], {}, "/python"), clock=1000.0).lately(["numpy"])


def test_only_plain_names_are_known_by_their_marks() -> None:
    assert named(["--", "A_b[x]>=1, <2", "c"]) == ["a-b", "c"]
    assert named(["--", "./local.whl"]) is None
    assert named(["--", "x @ https://example.org/x.whl"]) is None
