"""`kedge serve` as people use it: an app that answers while its files are edited, in every way files are edited."""

from __future__ import annotations

import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.commands import LONG, Command, Place, eventually, place

pytestmark = pytest.mark.slow

APP = """
import kedge
from words import greeting

app = kedge.App("page")

@app.function(max_containers=2)
@kedge.concurrent(max_inputs=20)
@kedge.fastapi_endpoint()
async def hello():
    import asyncio
    await asyncio.sleep(0.05)
    print("asked")
    return greeting("one")
"""
WORDS = "def greeting(what): return f'version {what}'\n"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path) as made:
        made.write("app.py", APP)
        made.write("words.py", WORDS)
        yield made


def address(command: Command) -> str:
    command.says("is served after")
    return next(line.split()[-1] for line in command.output.splitlines() if "http://127.0.0.1" in line)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LONG) as answer:
        body: bytes = answer.read()
        return body.decode().strip('"')


class Visitors:
    """Ask all the time, and count what they hear."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self.answers: dict[str, int] = {}
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(LONG)

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                answer = get(self._url)
                self.answers[answer] = self.answers.get(answer, 0) + 1
            except (OSError, urllib.error.HTTPError) as error:
                self.failures.append(repr(error))

    def hear(self, text: str) -> None:
        eventually(lambda: self.answers.get(text))


def test_edits_take_over_without_losing_a_request(here: Place) -> None:
    with here.running("serve", "app.py") as command:
        url = address(command)
        with Visitors(url) as visitors:
            visitors.hear("version one")
            here.write("app.py", APP.replace("one", "two"))
            visitors.hear("version two")
            # As editors save that write a new file first.
            here.write(".words.py.swp", WORDS.replace("version", "edition"))
            os.replace(here.directory / ".words.py.swp", here.directory / "words.py")
            visitors.hear("edition two")
            for number in range(20):
                here.write("app.py", APP.replace("one", f"number {number}"))
            visitors.hear("edition number 19")
            here.write("words.py", "def greeting(what):\n    return 1 /\n")
            command.says("SyntaxError")
            command.says("the version before goes on serving; waiting for a change")
            here.write("words.py", WORDS)
            visitors.hear("version number 19")
        assert visitors.failures == []
        assert "version number 3" not in visitors.answers, "a burst of saves is one change"
        assert command.output.count("http://127.0.0.1") == 1, "the address has stayed"
    assert "kedge: Stopped" in command.output


def test_a_container_that_cannot_start_is_shown_and_the_old_one_goes_on(here: Place) -> None:
    with here.running("serve", "app.py") as command:
        url = address(command)
        here.write("app.py", APP + "\nif not kedge.is_local():\n    {}['weights']\n")
        command.says("Error: hello cannot start: 'weights'")
        assert "KeyError: 'weights'" in command.output
        assert f'File "remote:{here.directory}/app.py"' in command.output
        command.says("the version before goes on serving")
        assert get(url) == "version one"
        here.write("app.py", APP.replace("one", "two"))
        eventually(lambda: get(url) == "version two")


def test_files_that_go_and_come(here: Place) -> None:
    (here.directory / "words.py").unlink()
    with here.running("serve", "app.py") as command:
        command.says("ModuleNotFoundError: No module named 'words'")
        command.says("nothing is served yet; waiting for a change")
        here.write("words.py", WORDS)
        url = address(command)
        assert get(url) == "version one"
        (here.directory / "app.py").unlink()
        command.says("there is no file 'app.py'")
        assert get(url) == "version one"
        here.write("app.py", APP.replace("one", "back"))
        eventually(lambda: get(url) == "version back")


def test_a_package_that_is_replaced_as_a_whole(here: Place) -> None:
    here.write("pkg/__init__.py", "")
    here.write("pkg/app.py", APP.replace("from words", "from .words"))
    here.write("pkg/words.py", WORDS)
    with here.running("serve", "-m", "pkg.app") as command:
        url = address(command)
        shutil.copytree(here.directory / "pkg", here.directory / "new")
        here.write("new/words.py", WORDS.replace("version", "edition"))
        shutil.rmtree(here.directory / "pkg")
        (here.directory / "new").rename(here.directory / "pkg")
        eventually(lambda: get(url) == "edition one")
        here.write("pkg/words.py", WORDS)
        eventually(lambda: get(url) == "version one")


def test_what_containers_print_is_shown(here: Place) -> None:
    with here.running("serve", "app.py") as command:
        get(address(command))
        command.says("asked")


def test_without_reloading_edits_change_nothing(here: Place) -> None:
    with here.running("serve", "app.py", "--no-reload") as command:
        url = address(command)
        here.write("app.py", APP.replace("one", "two"))
        assert get(url) == "version one"
        assert "files have changed" not in command.output


def test_it_ends_by_itself_and_takes_everything_along(here: Place) -> None:
    done = here.kedge("serve", "app.py", "--timeout", "5", "--name", "short")
    assert done.stdout.startswith("short, served until Ctrl-C\n")
    assert "kedge: Stopped" in done.stderr
    assert here.kedge("server", "status", code=None).returncode == 1, "its server was its own"


def test_on_the_servers_machine_it_stands_beside_what_is_deployed(here: Place) -> None:
    """Both have addresses of their own; ending it leaves the deployed one alone. A server that is restarted meanwhile
    serves it again."""
    deployed = here.kedge("deploy", "app.py").stdout
    deployed_url = next(line.split()[-1] for line in deployed.splitlines() if "http://127.0.0.1" in line)
    with here.running("serve", "app.py") as command:
        url = address(command)
        assert url != deployed_url
        here.write("app.py", APP.replace("one", "two"))
        eventually(lambda: get(url) == "version two")
        assert get(deployed_url) == "version one"
        second = here.kedge("serve", "app.py", "--timeout", "5", "--no-reload", code=1)
        assert "page is served already by another program" in second.stderr
        here.kedge("server", "restart")
        command.says("page is replaced", 2)
        assert get(url) == "version two"
    assert get(deployed_url) == "version one"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(url)
