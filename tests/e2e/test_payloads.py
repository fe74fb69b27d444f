"""Large values of containers with files of their own: they arrive, and no container sees another one's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.engines import probe
from kedge.model.spec import NAMESPACE
from tests.e2e.commands import Place, eventually, place

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(probe.survey()[NAMESPACE]), reason="containers cannot have file systems of their own here"),
]

SIZE = 1_000_000

OTHER = """
import kedge

app = kedge.App("other", image=kedge.Image.debian_slim(), isolation="namespace")

@app.function(scaledown_window=60)
def turned(data: bytes) -> bytes:
    return data[::-1]
"""

APP = """
import os, signal, time
from pathlib import Path
import kedge
from kedge.sdk.context import container

app = kedge.App("own", image=kedge.Image.debian_slim(), isolation="namespace")
facts = kedge.Dict.from_name("facts", create_if_missing=True)

def tray() -> Path:
    return Path(container().home, "blobs")

def data(letter: str) -> bytes:
    return letter.encode() * @SIZE@

@app.function()
def echo(data: bytes) -> tuple[bytes, list[str]]:
    return data, os.listdir(tray())

@app.function()
def count():
    for letter in "abc":
        yield data(letter)

@app.function()
def call_another(value: bytes) -> bool:
    turned = kedge.Function.from_name("other", "turned")
    several = list(turned.map([value, value[::-1]]))
    values = list(count.remote_gen())
    assert values == [data(letter) for letter in "abc"], "a generator"
    facts["large"] = value
    assert facts["large"] == value, "a dict"
    assert facts.pop("large") == value
    call = turned.spawn(value)
    assert call.get() == call.get() == value[::-1], "a call that is kept"
    left = os.listdir(tray())
    assert len(left) == 2, left  # its own input, and what others may ask for as well
    return turned.remote(value) == value[::-1] and several == [value[::-1], value]

@app.function(single_use_containers=True)
def alone(letter: str) -> bytes:
    return data(letter)

@app.function(retries=0)
def lost_once(data: bytes) -> tuple[int, str]:
    if facts.get("lost") is None:
        facts["lost"] = container().container
        os.kill(os.getpid(), signal.SIGKILL)
    return len(data), facts["lost"]

@app.function()
@kedge.concurrent(max_inputs=2)
def hold(data: bytes) -> int:
    facts["holds"] = os.listdir(tray())
    while "release" not in facts:
        time.sleep(0.01)
    return sum(data[:3])

@app.function()
def intrude() -> list[str]:
    there, said = tray(), [f"sees {os.listdir(tray())}"]
    for name in facts["holds"]:
        try:
            (there / name).read_bytes()
        except OSError as error:
            said.append(type(error).__name__)
        (there / name).write_bytes(b"something else")
    payloads = there.parent / "payloads"
    said.append(str(payloads.exists()))
    return said
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("desk")) as made:
        made.write("other.py", OTHER)
        made.write("own.py", APP.replace("@SIZE@", str(SIZE)))
        made.kedge("server", "start")
        made.kedge("deploy", "other.py")
        made.kedge("deploy", "own.py")
        yield made


def program(desk: Place, text: str) -> object:
    """What a program prints that calls the deployed functions."""
    start = 'import json, time, kedge\nf = lambda name: kedge.Function.from_name("own", name)\n'
    return json.loads(desk.program(start + text))


def left(desk: Place, name: str) -> list[str]:
    """What is in a directory of the server's."""
    path = Path(desk.variables["KEDGE_HOME"], "server", name)
    return sorted(os.listdir(path)) if path.is_dir() else []


def test_arguments_results_values_and_calls_of_calls_arrive(desk: Place) -> None:
    text = f"""
x = b"x" * {SIZE}
value, seen = f("echo").remote(x)
print(json.dumps([value == x, len(seen), len(list(f("count").remote_gen())), f("call_another").remote(x)]))
"""
    assert program(desk, text) == [True, 1, 3, True]


def test_results_of_calls_are_there_when_their_container_is_gone(desk: Place) -> None:
    text = f"""
call = f("alone").spawn("z")
call.get()
print(json.dumps([call.object_id, call.get() == b"z" * {SIZE}]))
"""
    found = program(desk, text)
    assert isinstance(found, list)
    assert found[1]
    eventually(
        lambda: not [one for one in json.loads(desk.kedge("container", "list", "--json").stdout) if "alone" in str(one)]
    )
    text = f'call = kedge.FunctionCall.from_id("{found[0]}")\nprint(json.dumps(call.get() == b"z" * {SIZE}))'
    assert program(desk, text) is True


def test_an_input_whose_container_was_lost_is_read_again_by_the_next(desk: Place) -> None:
    text = f'print(json.dumps(f("lost_once").remote(b"x" * {SIZE})))'
    found = program(desk, text)
    assert isinstance(found, list)
    assert found[0] == SIZE
    eventually(lambda: found[1] not in left(desk, "payloads"))


def test_no_container_lists_reads_or_replaces_what_another_one_has(desk: Place) -> None:
    text = f"""
facts = kedge.Dict.from_name("facts")
call = f("hold").spawn(bytes([1, 2, 3]) * {SIZE})
while not facts.get("holds"):
    time.sleep(0.01)
names = facts["holds"]
said = f("intrude").remote()
second = f("hold").spawn(bytes([4, 5, 6]) * {SIZE})
facts["release"] = True
print(json.dumps([said, call.get(), second.get(), names]))
"""
    found = program(desk, text)
    assert isinstance(found, list)
    said, first, second, names = found
    assert said == ["sees []", *["FileNotFoundError"] * len(names), "False"]
    assert (first, second) == (6, 15)


def test_nothing_is_left(desk: Place) -> None:
    for row in json.loads(desk.kedge("container", "list", "--json").stdout):
        desk.kedge("container", "stop", row["container"])
    eventually(lambda: left(desk, "payloads") == [])
    assert len(left(desk, "blobs")) <= 3, "results of calls that are kept"
