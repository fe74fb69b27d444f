"""Deployed apps as their users see them: `kedge deploy`, and programs that have none of the code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.commands import LONG, Place, eventually, place

pytestmark = pytest.mark.slow

APP = """
import os
import kedge
from dataclasses import dataclass

app = kedge.App("shop")
VERSION = 1

@app.function(scaledown_window=2)
def square(x: int) -> int:
    return x * x

@app.function(scaledown_window=2)
def version() -> int:
    return VERSION

@app.function(scaledown_window=2)
def count(n: int):
    yield from range(n)

@app.function(scaledown_window=2)
def surroundings() -> dict:
    return {"environment": os.environ.get("KEDGE_ENVIRONMENT"), "mine": os.environ.get("MINE"), "file": __file__}

@app.function(scaledown_window=2)
def through(x: int) -> int:
    return kedge.Function.from_name("other", "add_one").remote(square.remote(x))

@app.cls(scaledown_window=2)
class Model:
    size: str = kedge.parameter(default="small")

    @kedge.method()
    def generate(self, text: str) -> str:
        return f"{self.size}: {text}"

    @kedge.fastapi_endpoint()
    def info(self):
        return {"size": self.size, "version": VERSION}

@app.function(scaledown_window=2)
@kedge.fastapi_endpoint()
def hello(name: str = "you"):
    return f"hello {name}, from version {VERSION}"
"""

USER = """
import asyncio, json, kedge
square = kedge.Function.from_name("shop", "square")
Model = kedge.Cls.from_name("shop", "Model")
found = {
    "remote": square.remote(5),
    "map": list(square.map(range(4))),
    "spawn": square.spawn(6).get(),
    "options": square.with_options(memory=256).remote(7),
    "values": list(kedge.Function.from_name("shop", "count").remote_gen(3)),
    "method": Model(size="large").generate.remote("hi"),
    "named method": kedge.Function.from_name("shop", "Model.generate").remote("hi"),
}

async def main():
    square = kedge.Function.from_name("shop", "square")
    found["aio"] = await square.remote.aio(8)
    found["map aio"] = [x async for x in square.map.aio(range(3))]
    Model = kedge.Cls.from_name("shop", "Model")
    found["method aio"] = await Model().generate.remote.aio("ho")

asyncio.run(main())
print(json.dumps(found))
"""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path) as made:
        made.write("app.py", APP)
        yield made


def elsewhere(here: Place, tmp_path: Path) -> Place:
    """Another directory, from which nothing of the code can be seen."""
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    return Place(tmp_path / "elsewhere", here.variables)


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=LONG) as answer:
        body: bytes = answer.read()
        return body


def addresses(output: str) -> list[str]:
    """In the form that works everywhere."""
    return [line.split()[-1] for line in output.splitlines() if "http://127.0.0.1" in line]


def test_a_file_becomes_functions_and_addresses_that_live_on(here: Place, tmp_path: Path) -> None:
    done = here.kedge("deploy", "app.py", "--tag", "v1")
    assert "started the server of this machine" in done.stderr
    assert done.stdout.startswith("shop, version 1 (v1)\n")
    urls = addresses(done.stdout)
    assert [url.rpartition("/shop-")[2] for url in urls] == ["model-info/", "hello/"]
    assert json.loads(get(f"{urls[1]}?name=Ada")) == "hello Ada, from version 1"
    assert json.loads(get(f"{urls[0]}?size=huge")) == {"size": "huge", "version": 1}
    assert json.loads(elsewhere(here, tmp_path).program(USER)) == {
        "remote": 25,
        "map": [0, 1, 4, 9],
        "spawn": 36,
        "options": 49,
        "values": [0, 1, 2],
        "method": "large: hi",
        "named method": "small: hi",
        "aio": 64,
        "map aio": [0, 1, 4],
        "method aio": "small: ho",
    }


def test_a_new_version_takes_over_and_old_ones_can_be_called_by_number(here: Place, tmp_path: Path) -> None:
    url = addresses(here.kedge("deploy", "app.py").stdout)[1]
    user = elsewhere(here, tmp_path)
    find = "import kedge; f = kedge.Function.from_name('shop', 'version'{}); print(f.remote())"
    here.write("app.py", APP.replace("VERSION = 1", "VERSION = 2"))
    assert "shop, version 2" in here.kedge("deploy", "app.py", "--strategy", "recreate").stdout
    assert json.loads(get(url)) == "hello you, from version 2"
    assert user.program(find.format("")) == "2\n"
    assert user.program(find.format(", version=1")) == "1\n"
    here.kedge("deploy", "app.py", "--env", "staging", "--name", "shop")
    assert user.program(find.format(", environment_name='staging'")) == "2\n"
    assert "staging" in user.program(
        "import kedge; print(kedge.Function.from_name('shop', 'surroundings', environment_name='staging').remote())"
    )


def test_a_version_that_does_not_start_leaves_the_one_before(here: Place) -> None:
    url = addresses(here.kedge("deploy", "app.py").stdout)[1]
    here.write("app.py", APP + "\nif not kedge.is_local():\n    raise RuntimeError('no weights')\n")
    failed = here.kedge("deploy", "app.py", code=1)
    assert "RuntimeError: no weights" in failed.stderr
    assert f'File "remote:{here.directory}/app.py"' in failed.stderr
    assert failed.stderr.rstrip().endswith("Version 1 of shop goes on serving")
    assert failed.stdout == ""
    assert json.loads(get(url)) == "hello you, from version 1"


def test_it_is_there_again_when_its_server_was_killed(here: Place, tmp_path: Path) -> None:
    """The handle of a program that lives through that goes on to work."""
    url = addresses(here.kedge("deploy", "app.py").stdout)[1]
    program = (
        "import kedge, subprocess, sys\n"
        "f = kedge.Function.from_name('shop', 'square')\n"
        "print(f.remote(3), flush=True)\n"
        "sys.stdin.readline()\n"
        "print(f.remote(4), flush=True)\n"
    )
    user = elsewhere(here, tmp_path)
    caller = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=user.directory,
        env=user.variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert caller.stdin is not None
    assert caller.stdout is not None
    with caller, caller.stdin, caller.stdout:
        assert caller.stdout.readline() == "9\n"
        facts = json.loads((Path(here.variables["KEDGE_HOME"]) / "server" / "server.json").read_text())
        os.kill(facts["process"], signal.SIGKILL)
        here.kedge("server", "start")
        caller.stdin.write("\n")
        caller.stdin.flush()
        assert caller.stdout.readline() == "16\n"
    assert json.loads(get(url)) == "hello you, from version 1", "the address has stayed, too"


def test_a_program_deploys_itself_and_goes_on_calling(here: Place) -> None:
    here.write("script.py", APP + '\nif __name__ == "__main__":\n    app.deploy()\n    print(square.remote(9))\n')
    assert here.python("script.py").stdout == "81\n"
    program = (
        "import kedge\n"
        "app = kedge.App.lookup('shop')\n"
        "print(kedge.Function.from_name('shop', 'square').remote(3))\n"
        "app.stop()\n"
        "try:\n"
        "    kedge.Function.from_name('shop', 'square').remote(3)\n"
        "except kedge.exception.NotFoundError as error:\n"
        "    print(error)\n"
    )
    assert here.program(program).startswith("9\nno app 'shop' is deployed in the environment 'main'")


def test_containers_of_one_app_call_another_by_name(here: Place) -> None:
    here.write(
        "other.py",
        "import kedge\napp = kedge.App('other')\n@app.function()\ndef add_one(x): return x + 1\n",
    )
    here.kedge("deploy", "other.py")
    here.kedge("deploy", "app.py")
    assert here.program("import kedge; print(kedge.Function.from_name('shop', 'through').remote(5))") == "26\n"


# ---------------------------------------------------------------- a server that is another machine


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Place]:
    """A server with a home of its own that is reached over TCP; its place has the profile for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = tmp_path / "server"
    directory.mkdir()
    with place(directory) as server:
        server.kedge("server", "start", "--listen", f"tcp://127.0.0.1:{port}")
        token = server.program(
            "from kedge.sdk import server_process; print(server_process.find().token)", KEDGE_SERVER=""
        ).strip()
        client = tmp_path / "client"
        client.mkdir()
        with place(client) as made:
            config = client / "kedge.toml"
            config.write_text(
                f'active = "far"\n[profile.far]\nserver = "tcp://127.0.0.1:{port}"\ntoken = "{token}"\n'
                'environment = "lab"\n'
            )
            made.variables |= {"KEDGE_CONFIG": str(config), "MINE": "a secret of mine"}
            yield made


def test_deploying_to_another_machine_ships_the_code(far: Place, tmp_path: Path) -> None:
    far.write("shopping/__init__.py", "")
    far.write("shopping/prices.py", "def price(x): return x * 10\n")
    far.write("shopping/app.py", APP.replace("return x * x", "return price(x)").replace(
        "import kedge", "import kedge\nfrom .prices import price", 1))  # fmt: skip
    done = far.kedge("deploy", "-m", "shopping.app")
    assert "started the server" not in done.stderr
    assert "shop in the environment lab, version 1" in done.stdout
    user = elsewhere(far, tmp_path)
    program = (
        "import kedge, json\n"
        "print(kedge.Function.from_name('shop', 'square').remote(5))\n"
        "print(json.dumps(kedge.Function.from_name('shop', 'surroundings').remote()))\n"
        "print(kedge.Function.from_name('shop', 'hello').get_web_url())\n"
    )
    price, found, url = user.program(program).splitlines()
    assert price == "50"
    assert json.loads(found)["environment"] == "lab"
    assert json.loads(found)["mine"] is None, "variables of this machine stay here"
    assert json.loads(get(url)) == "hello you, from version 1"
    assert far.kedge("server", "status", code=None, KEDGE_CONFIG="/none").returncode == 1, "none was started here"


def test_a_script_takes_along_what_stands_beside_it(far: Place, tmp_path: Path) -> None:
    far.write("prices.py", "def price(x): return x * 10\n")
    far.write("app.py", APP.replace("import kedge", "import kedge\nfrom prices import price", 1).replace(
        "return x * x", "return price(x)"))  # fmt: skip
    far.kedge("deploy", "app.py")
    far.write("prices.py", "def price(x): return x * 1000\n")
    find = "import kedge; f = kedge.Function.from_name('shop', 'square'{}); print(f.remote(5))"
    assert elsewhere(far, tmp_path).program(find.format("")) == "50\n"
    far.kedge("deploy", "app.py")
    assert elsewhere(far, tmp_path).program(find.format("")) == "5000\n"
    assert elsewhere(far, tmp_path).program(find.format(", version=1")) == "50\n"


def test_a_run_on_another_machine(far: Place) -> None:
    far.write("app.py", APP + '\n@app.local_entrypoint()\ndef main():\n    print("sum", sum(square.map(range(4))))\n')
    assert "sum 14" in far.kedge("run", "app.py").stdout


def test_a_wrong_token_is_said(far: Place) -> None:
    far.write("app.py", APP)
    failed = far.kedge("deploy", "app.py", code=1, KEDGE_TOKEN="wrong")
    assert "refuses this connection: wrong token" in failed.stderr


def test_a_server_that_is_not_there_is_said(far: Place) -> None:
    far.write("app.py", APP)
    failed = far.kedge("deploy", "app.py", code=1, KEDGE_SERVER="tcp://127.0.0.1:1")
    assert "no kedge server answers at tcp://127.0.0.1:1" in failed.stderr
    assert "KEDGE_SERVER names it" in failed.stderr


def test_stopping_makes_addresses_answer_no_more(here: Place) -> None:
    url = addresses(here.kedge("deploy", "app.py").stdout)[1]
    get(url)
    here.kedge("app", "stop", "shop", "--yes")

    def gone() -> bool:
        try:
            get(url)
        except urllib.error.HTTPError as error:
            return error.code == 404
        return False

    eventually(gone)
