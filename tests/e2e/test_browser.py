"""A browser loads the pages of an app under both forms of its address, and people chat in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e import web_functions as functions
from tests.e2e.browser import CHROMIUM, Browser
from tests.e2e.web_clients import url_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")]

SAID = "Array.from(document.querySelectorAll('#said li'), line => line.textContent)"


@pytest.fixture(scope="module")
def site(kedge_home: Path) -> Iterator[str]:
    with functions.app.run():
        yield url_of(functions.site)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def by_name(site: str) -> str:
    parts = urlsplit(site)
    return f"http://{parts.path.strip('/')}.localhost:{parts.port}/"


def test_a_page_under_both_addresses(browser: Browser, site: str, by_name: str) -> None:
    for url in (site, by_name):
        tab = browser.open(url)
        tab.wait("document.querySelector('h1')?.textContent", "quay")
        assert tab.value("location.href") == url


def test_an_address_without_its_slash_leads_to_the_page(browser: Browser, site: str) -> None:
    tab = browser.open(site.rstrip("/"))
    tab.wait("document.querySelector('h1')?.textContent", "quay")
    assert tab.value("location.href") == site


def test_the_documentation_of_an_api_works_under_a_path(browser: Browser, site: str) -> None:
    """The page asks for the description of the API at an address of its own making."""
    tab = browser.open(site + "where")
    tab.wait("JSON.parse(document.body.innerText).root_path", urlsplit(site).path.rstrip("/"))
    asked = f"fetch('{site}openapi.json').then(a => a.json()).then(a => window.found = a.servers[0].url)"
    tab.value(asked)
    tab.wait("window.found", urlsplit(site).path.rstrip("/"))


def test_two_tabs_chat(browser: Browser, site: str, by_name: str) -> None:
    one = browser.open(f"{site}page#one")
    one.wait(SAID, ["ahoy from one"])
    two = browser.open(f"{by_name}page#two")
    for tab in (one, two):
        tab.wait(SAID, ["ahoy from one", "ahoy from two"])
    one.value("link.send('fair winds')")
    for tab in (one, two):
        tab.wait(f"{SAID}.at(-1)", "fair winds")
