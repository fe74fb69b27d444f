"""Examples that answer HTTP: deployed, and asked with the curl lines of their own texts."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import kedge
from tests.docs.site import LONG, Site, eventually, site_in

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
USUAL = "http://localhost:5334"
COMMAND = re.compile(r"^    ((?:kedge deploy|curl) .+)$", re.MULTILINE)

EXPECTED = {
    "batching_server": [r'\{"score":2,"batch":1\}'],
    "chat_websocket": [r"(?s)<!doctype html>.*new WebSocket.*"],
    "gateway": [r"(?s)HTTP/1.1 200 OK.*why\? Because.\s*"],
    "llm_server": [r'\{"text":"[a-z ]+"\}', r'(?s)(data: \{"token": "\w+"\}\s+){8}data: \[DONE\]\s*'],
}
"""What each of their curl lines prints."""

ELSEWHERE = ["search_docs"]
"""Their images take packages that not every machine can have: `test_search_docs`."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as site:
        yield site


def test_every_example_with_a_deploy_is_here() -> None:
    deployed = [path.stem for path in ROOT.glob("examples/*.py") if COMMAND.search(path.read_text())]
    assert sorted(deployed) == sorted([*EXPECTED, *ELSEWHERE])


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_its_own_commands(site: Site, name: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    first, *requests = COMMAND.findall((ROOT / "examples" / f"{name}.py").read_text().split('"""')[1])
    assert first == f"kedge deploy examples/{name}.py"
    deployed = site.kedge("deploy", str(ROOT / "examples" / f"{name}.py"))
    address = re.search(r"http://127\.0\.0\.1:\d+", deployed)
    assert address, deployed
    assert len(requests) == len(EXPECTED[name])
    for request, expected in zip(requests, EXPECTED[name], strict=True):
        words = shlex.split(request.replace(USUAL, address[0]))
        done = subprocess.run([*words, "-sS"], capture_output=True, text=True, timeout=LONG)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(expected, done.stdout), done.stdout


def test_a_reader_who_leaves_stops_the_model(site: Site) -> None:
    url = site.url(site.kedge("deploy", str(ROOT / "examples" / "llm_server.py")), "llm-server-web")
    model = kedge.Cls.from_name("llm-server", "Llm")().stream
    with httpx.stream("GET", f"{url}/stream?prompt=the&tokens=1000", timeout=LONG) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        assert model.get_current_stats().num_running_inputs == 1
        before = model.get_current_stats().num_cancelled_inputs
    assert eventually(lambda: model.get_current_stats().num_running_inputs == 0)
    assert model.get_current_stats().num_cancelled_inputs == before + 1
