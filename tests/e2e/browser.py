"""A real browser without a screen, steered over its DevTools protocol.

Example:
    with Browser(directory) as browser:
        tab = browser.open("http://127.0.0.1:5334/shop/")
        assert tab.value("document.title") == "shop"
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

from websockets.sync.client import ClientConnection, connect

from tests.e2e.web_clients import PATIENCE_S, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    def __init__(self, directory: Path) -> None:
        assert CHROMIUM is not None
        self._port = directory / "DevToolsActivePort"
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--no-first-run", "--no-proxy-server", "--remote-debugging-port=0", "--remote-allow-origins=*"]
        command += [f"--user-data-dir={directory}", "about:blank"]
        with (directory / "output").open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self._links = ExitStack()

    def __enter__(self) -> Browser:
        def up() -> bool:
            assert self._process.poll() is None, self._port.with_name("output").read_text()
            return self._port.exists() and len(self._port.read_text().splitlines()) == 2

        wait_until(up, "the browser is there")
        return self

    def __exit__(self, *error: object) -> None:
        self._links.close()
        self._process.terminate()
        self._process.wait(PATIENCE_S)

    def open(self, url: str) -> Tab:
        port = self._port.read_text().splitlines()[0]
        request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?{quote(url, safe='')}", method="PUT")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=PATIENCE_S) as answer:
            address = json.load(answer)["webSocketDebuggerUrl"]
        link = connect(address, max_size=None, open_timeout=PATIENCE_S, proxy=None)
        return Tab(self._links.enter_context(link))


class Tab:
    def __init__(self, link: ClientConnection) -> None:
        self._link = link
        self._numbers = itertools.count(1)

    def value(self, expression: str) -> Any:
        """Of a piece of JavaScript, in the page as it is now."""
        number = next(self._numbers)
        order = {
            "id": number,
            "method": "Runtime.evaluate",
            "params": {"expression": expression, "returnByValue": True},
        }
        self._link.send(json.dumps(order))
        while True:
            answer = json.loads(self._link.recv(timeout=PATIENCE_S))
            if answer.get("id") == number:
                return answer["result"]["result"].get("value")

    def wait(self, expression: str, value: Any) -> None:
        """Until the expression has this value."""
        wait_until(lambda: self.value(expression) == value, f"{expression} is {self.value(expression)!r}")
