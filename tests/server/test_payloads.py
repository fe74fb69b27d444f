"""Large values of containers with files of their own: what comes into a tray, and out of it, and for how long."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kedge.model import protocol as p
from kedge.model.payload import FAILURE, SUCCESS, ErrorInfo, Payload, Result
from kedge.model.spec import FunctionSpec, Launch, Variant
from kedge.sdk.blobs import BlobStore
from kedge.server import payloads, peers
from kedge.server.payloads import Payloads, Tray
from tests.server.fake_engine import FakeEngine, hold
from tests.server.shell import POOL, Peer, Shell, app, inputs, running
from tests.wire.loops import on_loop, until


class Desk:
    """Two containers, and what lies where."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.payloads = Payloads(directory)
        self.one, self.other = (self._container(id) for id in ("ct-1", "ct-2"))

    def _container(self, id: str) -> Tray:
        self.payloads.open(id)
        assert self.payloads.admit(id, id, apart=True)
        return self.payloads.trays[id]

    def put(self, *path: str, text: str = "a value") -> Path:
        (self.directory / Path(*path)).write_text(text)
        return self.directory / Path(*path)

    def names(self, *path: str) -> list[str]:
        return sorted(os.listdir(self.directory / Path(*path)))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def finished(*names: str, lease: int = 0) -> p.InputsFinished:
    return p.InputsFinished([p.Finished(lease, Result(SUCCESS, Payload(blob=name, size=9)), 0.0) for name in names])


def dispatched(name: str, lease: int = 1) -> p.InputsDispatched:
    return p.InputsDispatched([p.Dispatch(lease, "fc-1", 0, "", Payload(blob=name, size=9))])


def delivered(name: str) -> p.OutputsDelivered:
    return p.OutputsDelivered("fc-1", [p.Output(0, Result(SUCCESS, Payload(blob=name, size=9)))])


# ---------------------------------------------------------------- out of a tray


def test_what_a_container_has_written_is_taken_and_not_copied(desk: Desk) -> None:
    written = desk.put("payloads", "ct-1", "a1").stat()
    assert desk.one.take(finished("a1")) == ""
    assert (desk.names("blobs"), desk.names("payloads", "ct-1")) == (["a1"], [])
    assert os.path.samestat(written, (desk.directory / "blobs" / "a1").stat())
    assert desk.one.take(finished("a1")) == "", "a client that was cut off says it again"
    assert desk.other.take(finished("a1")) != "", "and nobody else can"


def _nothing(desk: Desk) -> str:
    return "a1"


def _anothers(desk: Desk) -> str:
    desk.put("payloads", "ct-2", "a1")
    return "a1"


def _everybodys(desk: Desk) -> str:
    desk.put("blobs", "a1")
    return "a1"


def _outside(desk: Desk) -> str:
    desk.put("secret")
    return "../../secret"


def _link(desk: Desk) -> str:
    (desk.directory / "payloads" / "ct-1" / "a1").symlink_to(desk.put("secret"))
    return "a1"


def _second_name(desk: Desk) -> str:
    desk.put("payloads", "ct-1", "a2")
    os.link(desk.directory / "payloads" / "ct-1" / "a2", desk.directory / "payloads" / "ct-1" / "a1")
    return "a1"


def _its_input(desk: Desk) -> str:
    desk.put("blobs", "a1")
    desk.one.give(dispatched("a1"))
    return "a1"


def _its_input_renamed(desk: Desk) -> str:
    os.rename(desk.directory / "payloads" / "ct-1" / _its_input(desk), desk.directory / "payloads" / "ct-1" / "a2")
    return "a2"


def _directory(desk: Desk) -> str:
    (desk.directory / "payloads" / "ct-1" / "a1").mkdir()
    return "a1"


def _pipe(desk: Desk) -> str:
    os.mkfifo(desk.directory / "payloads" / "ct-1" / "a1")
    return "a1"


def _a_name_that_is_taken(desk: Desk) -> str:
    desk.put("blobs", "a1")
    desk.put("payloads", "ct-1", "a1", text="something else")
    return "a1"


TRICKS = [
    _nothing, _anothers, _everybodys, _outside, _link, _second_name, _its_input, _its_input_renamed, _directory, _pipe,
    _a_name_that_is_taken,
]  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
def test_anything_else_is_refused_and_changes_nothing_of_others(desk: Desk, trick: Callable[[Desk], str]) -> None:
    name = trick(desk)
    before = {path: path.read_text() for path in desk.directory.glob("*/*") if path.is_file()}
    reason = desk.one.take(finished(name))
    assert reason == f"InputsFinished names the payload file {name!r}, which is none that its container has written"
    after = {path: path.read_text() for path in desk.directory.glob("*/*") if path.is_file()}
    assert after == before


def _payload_types(kind: Any) -> Iterator[Any]:
    """All types within a type."""
    yield kind
    for part in typing.get_args(kind):
        yield from _payload_types(part)
    for field in typing.get_type_hints(kind).values() if hasattr(kind, "__struct_fields__") else ():
        yield from _payload_types(field)


def _carries(kind: type) -> bool:
    return any(one is Payload for one in _payload_types(kind))


def test_no_message_with_payloads_is_forgotten() -> None:
    """What containers, and code in them, may say: it is looked at, or refused anyway."""
    said = {*typing.get_args(p.FromClient), *typing.get_args(p.FromContainer)}
    carrying = {kind for kind in said if _carries(kind)} - peers._REFUSED.keys()
    assert carrying == payloads._NAMED.keys() - {p.InputsReturned}


BLOB = Payload(blob="a1", size=9)
VARIANT = Variant(function=POOL, variant="v", spec=FunctionSpec(name="square", module="m", qualname="square"))


@pytest.mark.parametrize(
    "message",
    [
        p.InputsFinished([p.Finished(1, Result(FAILURE, error=ErrorInfo("E", "m", payload=BLOB)), 0.0)]),
        p.ContainerFailed(ErrorInfo("E", "m", payload=BLOB)),
        p.StreamValues("fc-1", 0, 0, [Payload(), BLOB]),
        p.InputsSubmitted("fc-1", POOL, 0, [Payload(), BLOB]),
        p.VariantBound(replace(VARIANT, parameters=BLOB)),
        p.VariantBound(replace(VARIANT, spec=replace(VARIANT.spec, serialized=BLOB))),
        p.EntriesChanged(1, "di-1", "t", [(b"k", BLOB)]),
        p.ItemsPut(1, "qu-1", "t", "", [BLOB], 1.0),
    ],
    ids=lambda message: type(message).__name__,
)
def test_every_payload_of_a_message_is_looked_at(desk: Desk, message: Any) -> None:
    assert "names the payload file 'a1', which is none that its container has written" in desk.one.take(message)
    desk.put("payloads", "ct-1", "a1")
    assert desk.one.take(message) == ""
    assert desk.names("blobs") == ["a1"]


# ---------------------------------------------------------------- into a tray


def test_an_input_is_linked_for_each_container_that_gets_it(desk: Desk) -> None:
    file = desk.put("blobs", "a1")
    desk.one.give(dispatched("a1", lease=1))
    desk.other.give(dispatched("a1", lease=2))
    assert file.stat().st_nlink == 3
    (desk.directory / "payloads" / "ct-1" / "a1").unlink()  # which is all that the first one can do to it
    assert (desk.directory / "payloads" / "ct-2" / "a1").read_text() == "a value"


@pytest.mark.parametrize("end", [finished("", lease=1), p.InputsReturned([1])], ids=["finished", "returned"])
def test_an_input_that_a_container_no_longer_has_leaves_its_tray(desk: Desk, end: Any) -> None:
    desk.put("blobs", "a1")
    desk.one.give(dispatched("a1", lease=1))
    assert desk.one.take(end) == ""
    assert (desk.names("payloads", "ct-1"), desk.names("blobs")) == ([], ["a1"])


def test_an_input_that_comes_back_before_it_was_returned_stays(desk: Desk) -> None:
    desk.put("blobs", "a1")
    for lease in (1, 2):
        desk.one.give(dispatched("a1", lease))
    desk.one.take(p.InputsReturned([1]))
    assert desk.names("payloads", "ct-1") == ["a1"]
    desk.one.take(p.InputsReturned([2]))
    assert desk.names("payloads", "ct-1") == []


def test_a_result_belongs_to_who_waits_for_it_unless_others_may_ask_for_it(desk: Desk) -> None:
    for name in ("a1", "a2", "a3"):
        desk.put("blobs", name)
    desk.one.give(delivered("a1"))
    desk.one.give(p.StreamValues("fc-1", 0, 0, [Payload(blob="a2", size=9)]))
    desk.one.give(delivered("a3"), kept=True)
    desk.one.give(delivered("a3"), kept=True)
    assert desk.names("payloads", "ct-1") == ["a1", "a2", "a3"]
    assert desk.names("blobs") == ["a3"]


def test_what_is_gone_is_said_by_its_reader_and_by_nobody_before(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.one.give(dispatched("a1"))
    desk.one.give(delivered("a2"))
    (desk.directory / "payloads" / "ct-1" / "a3").mkdir()
    desk.put("blobs", "a3")
    desk.one.give(delivered("a3"))
    assert caplog.text.count("a payload file did not reach ct-1") == 1
    assert desk.names("blobs") == ["a3"], "a place that is taken by hostile code gets nothing"


# ---------------------------------------------------------------- how long


@on_loop
async def test_a_tray_is_there_until_its_container_and_its_connections_are_gone(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert desk.payloads.admit("se-1", "ct-1", apart=True)
    assert desk.payloads.trays["se-1"] is desk.one
    assert desk.payloads.place("se-1") == tmp_path / "payloads" / "ct-1"
    desk.put("payloads", "ct-1", "a1")
    desk.payloads.depart("ct-1")
    desk.payloads.ended("ct-1")
    assert desk.payloads.trays["se-1"].take(finished("a1")) == "", "what it has said last counts"
    (tmp_path / "payloads" / "ct-1" / "left").mkdir()
    desk.payloads.depart("se-1")
    await until(lambda: desk.names("payloads") == ["ct-2"])
    assert desk.payloads.place("se-1") == desk.payloads.blobs


@on_loop
async def test_trays_of_a_server_that_was_killed_are_removed_by_the_next(tmp_path: Path) -> None:
    Desk(tmp_path).put("payloads", "ct-1", "a1")
    after = Payloads(tmp_path)
    after.open("ct-3")
    after.sweep()
    await until(lambda: os.listdir(tmp_path / "payloads") == ["ct-3"])


# ---------------------------------------------------------------- the whole server


class Apart(FakeEngine):
    """Its containers have files of their own."""

    payloads: Payloads

    def start(self, launch: Launch) -> None:
        self.payloads.open(launch.container)
        super().start(launch)


async def started(shell: Shell, *more: Any) -> Peer:
    """A program that waits for an input which a container holds."""
    assert isinstance(shell.engine, Apart)
    shell.engine.payloads = shell.launches.payloads
    client = await shell.client(p.AppCreated(1, app()), *more)
    await until(lambda: shell.engine.containers and shell.engine.only.held)
    return client


async def inside(shell: Shell, identity: bool = True) -> tuple[Peer, p.Welcome]:
    """Code in the first container."""
    launch = next(iter(shell.engine.containers.values())).launch
    peer = await shell.stranger()
    peer.say(p.Hello(p.CLIENT, launch.container, launch.token) if identity else p.Hello(p.CLIENT))
    return peer, await peer.hear(p.Welcome)


def large(path: Path, text: bytes) -> Payload:
    """A value that is written where `path` is seen as the state directory's `blobs`."""
    store = BlobStore(str(path))
    store.directory = str(path)
    name, size = store.write([text])
    return Payload(blob=name, size=size)


@on_loop
async def test_arguments_and_results_pass_through_the_tray(tmp_path: Path) -> None:
    async with running(tmp_path, Apart(hold)) as shell:
        argument = large(tmp_path / "blobs", b"in") if (tmp_path / "blobs").mkdir() is None else Payload()
        client = await started(shell, replace(inputs("x"), payloads=[argument]))
        container = shell.engine.only
        tray = tmp_path / "payloads" / container.launch.container
        assert os.listdir(tray) == [argument.blob]
        result = large(tray, b"out")
        container.finish(Result(SUCCESS, result))
        assert (await client.results("fc-1", 1))[0].payload == result
        assert bytes(BlobStore(str(tmp_path)).read(result.blob, consume=True)[0]) == b"out"
        assert os.listdir(tray) == []
        await shell.on_disk()
        assert os.listdir(tmp_path / "blobs") == []


@on_loop
async def test_a_container_that_names_what_it_has_not_written_is_cut_off(tmp_path: Path) -> None:
    async with running(tmp_path, Apart(hold)) as shell:
        await started(shell, inputs("x"))
        (tmp_path / "blobs").mkdir(exist_ok=True)
        foreign = large(tmp_path / "blobs", b"of somebody")
        container = shell.engine.only
        container.finish(Result(SUCCESS, foreign))
        reason = f"InputsFinished names the payload file {foreign.blob!r}, which is none that its container has written"
        await until(lambda: p.Refused(reason) in container.messages)
        assert os.listdir(tmp_path / "blobs") == [foreign.blob]


@on_loop
async def test_code_inside_has_values_of_dicts_in_its_tray(tmp_path: Path) -> None:
    async with running(tmp_path, Apart(hold)) as shell:
        await started(shell, inputs("x"))
        peer, welcome = await inside(shell)
        assert welcome.home == str(tmp_path)
        tray = tmp_path / "payloads" / shell.engine.only.launch.container
        made = (await peer.ask(lambda n: p.ObjectsRequested(n, "dict", "find", "d", create=True))).value["id"]
        put = large(tray, b"a value")
        await peer.ask(lambda n: p.EntriesChanged(n, made, "t-1", [(b"k", put)]))
        found = (await peer.ask(lambda n: p.EntriesRequested(n, made, "values", [b"k"]))).value[0]
        assert os.listdir(tray) == [found[2]]
        page = (await peer.ask(lambda n: p.EntriesRequested(n, made, "page"))).value["entries"][0][1]
        taken = (await peer.ask(lambda n: p.EntriesChanged(n, made, "t-2", keys=[b"k"]))).value[0]
        assert sorted(os.listdir(tray)) == sorted(one[2] for one in (found, page, taken))
        assert os.listdir(tmp_path / "blobs") == []


@on_loop
async def test_results_of_calls_from_inside_come_into_its_tray(tmp_path: Path) -> None:
    engine = Apart(hold)
    async with running(tmp_path, engine) as shell:
        await started(shell, inputs("x"))
        peer, _ = await inside(shell)
        caller = engine.only
        (tmp_path / "blobs").mkdir(exist_ok=True)
        for call, durable in (("fc-2", False), ("fc-3", True)):
            peer.say(inputs("y", call=call, durable=durable))
            await until(lambda: sum(len(one.held) for one in engine.containers.values()) == 2)
            other = next(one for one in engine.containers.values() if one is not caller)
            value = large(tmp_path / "payloads" / other.launch.container, b"out")
            if durable:
                peer.say(p.OutputsRequested(call, request=7))
            other.finish(Result(SUCCESS, value))
            await peer.results(call, 1)
            assert value.blob in os.listdir(tmp_path / "payloads" / caller.launch.container)
            assert (value.blob in os.listdir(tmp_path / "blobs")) == durable
        again, _ = await inside(shell)
        (tmp_path / "payloads" / caller.launch.container / value.blob).unlink()
        again.say(p.OutputsRequested("fc-3", request=8))
        await again.results("fc-3", 1)
        assert value.blob in os.listdir(tmp_path / "payloads" / caller.launch.container), "also out of the archive"


@on_loop
async def test_code_inside_that_does_not_say_where_gets_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, Apart(hold)) as shell:
        await started(shell, inputs("x"))
        monkeypatch.setattr(peers, "is_inside", lambda process: process == os.getpid())
        peer, welcome = await inside(shell, identity=False)
        assert welcome.home == "", "its client sends everything in frames"
        (tmp_path / "blobs").mkdir(exist_ok=True)
        foreign = large(tmp_path / "blobs", b"of somebody")
        peer.say(replace(inputs("y", call="fc-2"), payloads=[foreign]))
        assert "which is none that its container has written" in await peer.refused()
