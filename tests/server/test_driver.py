"""One whole server with fake containers: calls go round, durable ones survive, and no failure takes others along."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedge.model import protocol as p
from kedge.model.ids import pool_id
from kedge.model.payload import SUCCESS, TERMINATED, Payload, Result
from kedge.model.spec import Concurrency, Variant
from kedge.server import driver as driver_module
from kedge.server import journal as journal_module
from kedge.server.driver import MAX_PORTION, portions
from tests.server.fake_engine import FakeEngine, hold
from tests.server.shell import POOL, app, inputs, running, spawned
from tests.wire.loops import on_loop, on_loops, until

MANY = Concurrency(1000, 1000, declared=True)


def data(result: Result) -> str:
    assert result.status == SUCCESS, result
    assert result.payload is not None
    return result.payload.data.decode()


# ---------------------------------------------------------------- calls


@on_loops
async def test_a_call_goes_to_a_container_and_its_result_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        client = await shell.client(p.AppCreated(1, app()), inputs("a", "b"))
        assert {i: data(r) for i, r in (await client.results("fc-1", 2)).items()} == {0: "did a", 1: "did b"}
        launch = shell.engine.started[0]
        assert (launch.pool, launch.app_name, launch.address, launch.home) == (POOL, "demo", shell.path, str(tmp_path))
        assert not shell.plane.calls.by_id


@on_loop
async def test_results_of_one_frame_leave_in_one_frame(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.AppCreated(1, app(concurrency=MANY)), inputs(*"abcdefgh"))
        await until(lambda: shell.engine.containers and len(shell.engine.only.held) == 8)
        shell.engine.only.finish()
        await client.results("fc-1", 8)
        assert sum(isinstance(m, p.OutputsDelivered) for m in client.messages) == 1


@on_loop
async def test_a_client_that_leaves_takes_its_work_and_its_app_along(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.AppCreated(1, app()), inputs("a"))
        await until(lambda: shell.engine.containers and shell.engine.only.held)
        client.connection.close()
        await until(lambda: not shell.engine.containers and not shell.plane.apps and not shell.driver.links)
        assert shell.driver.idle.is_set()


@on_loop
async def test_an_engine_that_fails_is_a_container_that_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FakeEngine()
    engine.start_fails = OSError("no process can be made")
    async with running(tmp_path, engine) as shell:
        await shell.client(p.AppCreated(1, app()), inputs("a"))
        await until(lambda: engine.started and not shell.plane.containers)
        assert "could not be started" in caplog.text
        engine.start_fails = None


@on_loop
async def test_output_goes_to_those_who_watch(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.AppCreated(1, app()), p.OutputSubscribed("ap-1"), inputs("a"))
        await until(lambda: shell.engine.containers and shell.engine.only.held)
        container = shell.engine.only.launch.container
        shell.driver.report(p.OutputCaptured(container, 1, b"hello\n", 1.0))
        heard = await client.hear(p.OutputCaptured)
        assert (heard.app, heard.pool, heard.data, heard.raw) == ("ap-1", POOL, b"hello\n", True)


@on_loop
async def test_output_is_not_kept_for_a_session_that_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "OUTPUT_BACKLOG", 100_000)
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.AppCreated(1, app()), p.OutputSubscribed("ap-1"), inputs("a"))
        await until(lambda: shell.engine.containers and shell.engine.only.held)
        container = shell.engine.only.launch.container
        (link,) = [link for address, link in shell.driver.links.items() if address.startswith("se-")]
        client.connection.pause_reading(True)
        for _ in range(100):
            shell.driver.report(p.OutputCaptured(container, 1, bytes(50_000), 1.0))
            shell.driver.flush_all()
        assert link.unread < 500_000
        client.connection.pause_reading(False)
        await until(lambda: not link.unread)
        shell.driver.report(p.OutputCaptured(container, 1, b"last", 1.0))
        notice = await client.hear(p.Notice, lambda notice: "were not sent" in notice.text)
        assert notice.text.endswith("see `kedge logs ap-1`")
        assert (await client.hear(p.OutputCaptured, lambda m: m.data == b"last")).data == b"last"


@on_loop
async def test_values_of_a_generator_pass_by_the_plane(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.AppCreated(1, app()), inputs("a", stream=True))
        await until(lambda: shell.engine.containers and shell.engine.only.held)
        container = shell.engine.only
        container.say(p.StreamValues("fc-1", 0, 0, [Payload(data=b"v")]))
        assert (await client.hear(p.StreamValues)).values[0].data == b"v"
        client.say(p.StreamCredited("fc-1", 0, 5))
        await until(lambda: p.StreamCredited("fc-1", 0, 5) in container.messages)
        other = await shell.client(p.StreamCredited("fc-1", 0, 9))
        assert (await other.ask(lambda n: p.StatisticsRequested(n))).error is None
        container.say(p.StreamValues("fc-2", 0, 0, []))
        await until(lambda: "values of a stream that is over" in shell.plane.dropped)
        assert not any(isinstance(m, p.StreamCredited) and m.values == 9 for m in container.messages)


def test_a_message_with_very_many_values_leaves_in_portions() -> None:
    outputs = [p.Output(i, Result()) for i in range(300)]
    parts = portions(p.OutputsDelivered("fc-1", outputs, 7))
    assert [len(part.outputs) for part in parts] == [MAX_PORTION, MAX_PORTION, 300 - 2 * MAX_PORTION]
    assert [output for part in parts for output in part.outputs] == outputs
    assert {(part.call, part.request) for part in parts} == {("fc-1", 7)}
    dispatches = [p.Dispatch(i, "fc-1", i, "", Payload()) for i in range(130)]
    assert [len(part.inputs) for part in portions(p.InputsDispatched(dispatches))] == [128, 2]
    assert list(portions(p.InputsAccepted("fc-1", 0, 1))) == [p.InputsAccepted("fc-1", 0, 1)]


# ---------------------------------------------------------------- durable calls


@on_loop
async def test_a_spawned_call_outlives_its_caller_and_anyone_may_ask_for_its_result(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.AppCreated(1, app(ephemeral=False)), spawned("a", "b"))
        assert (await client.hear(p.InputsAccepted)).count == 2
        client.connection.close()
        other = await shell.client()
        other.say(p.OutputsRequested("fc-1", request=7))
        await until(lambda: len(shell.engine.containers) == 2 and all(c.held for c in shell.engine.containers.values()))
        for container in shell.engine.containers.values():
            container.finish()
        assert {data(result) for result in (await other.results("fc-1", 2)).values()} == {"did a", "did b"}
        assert not shell.plane.calls.by_id
        late = await shell.client(p.OutputsRequested("fc-1", 1, 2, request=8))
        assert data((await late.results("fc-1", 1))[1]) == "did b"


@on_loop
async def test_a_call_that_is_over_is_described_by_the_store(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        client = await shell.client(p.AppCreated(1, app()), spawned("a", "b", parent="in-x-0"))
        await client.hear(p.InputsAccepted)
        await until(lambda: not shell.plane.calls.by_id)
        reply = await client.ask(lambda n: p.CallRequested(n, "fc-1"))
        assert reply.value == {
            "inputs": 2,
            "done": 2,
            "function": "square",
            "method": "",
            "parent": "in-x-0",
            "status": [[0, "success"], [1, "success"]],
        }


@on_loop
async def test_who_asks_for_what_will_never_be_there_hears_why(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        client = await shell.client(p.AppCreated(1, app()), spawned("a"), p.OutputsRequested("fc-9", request=1))
        refused = await client.hear(p.CallRefused, lambda m: m.request == 1)
        assert refused.error.type == "OutputExpiredError"
        assert "there is no call fc-9: it never was, or its results have expired 7 days after" in refused.error.message
        reply = await client.ask(lambda n: p.CallRequested(n, "fc-9"))
        assert reply.error is not None
        assert (reply.error.type, reply.error.message) == ("NotFoundError", refused.error.message)
        await until(lambda: not shell.plane.calls.by_id)
        client.say(p.OutputsRequested("fc-1", 0, 3, request=2))
        refused = await client.hear(p.CallRefused, lambda m: m.request == 2)
        assert refused.error.type == "NotFoundError"
        assert refused.error.message == "the call fc-1 has 1 inputs, numbered from 0: there is no input 1"
        assert data((await client.results("fc-1", 1))[0]) == "did a"


@on_loop
async def test_who_waits_for_an_input_that_a_running_call_will_not_have_hears_so_at_its_end(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.AppCreated(1, app()), spawned("a"), p.OutputsRequested("fc-1", 4, 5, request=3))
        await until(lambda: shell.engine.containers and shell.engine.only.held)
        shell.engine.only.finish()
        refused = await client.hear(p.CallRefused)
        assert (refused.request, refused.error.type) == (3, "NotFoundError")
        assert "the call fc-1 has 1 inputs, numbered from 0" in refused.error.message


@on_loop
async def test_inputs_that_are_sent_again_run_once_even_when_the_call_is_over(tmp_path: Path) -> None:
    ran: list[bytes] = []
    engine = FakeEngine(lambda d: ran.append(d.payload.data) or Result(SUCCESS, d.payload))  # type: ignore[func-returns-value]
    async with running(tmp_path, engine) as shell:
        client = await shell.client(p.AppCreated(1, app(ephemeral=False)), spawned("a", "b"))
        await client.hear(p.InputsAccepted)
        await until(lambda: not shell.plane.calls.by_id)
        again = await shell.client(spawned("a", "b"), spawned("c", first=2))
        await again.hear(p.InputsAccepted, lambda m: m.first == 2)
        await until(lambda: len(ran) == 3 and not shell.plane.calls.by_id)
        assert sorted(ran) == [b"a", b"b", b"c"]
        assert sum(isinstance(m, p.InputsAccepted) for m in again.messages) == 2


@on_loop
async def test_what_a_session_says_after_a_spawn_waits_for_the_disk(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        client = await shell.client(
            p.AppCreated(1, app()), spawned("a"), p.CallCancelled("fc-1"), p.OutputsRequested("fc-1", request=1)
        )
        assert (await client.results("fc-1", 1))[0].status == TERMINATED
        accepted = next(i for i, m in enumerate(client.messages) if isinstance(m, p.InputsAccepted))
        delivered = next(i for i, m in enumerate(client.messages) if isinstance(m, p.OutputsDelivered))
        assert accepted < delivered


@on_loop
async def test_a_result_is_on_disk_before_anybody_sees_it(tmp_path: Path) -> None:
    """What a caller has seen, a crash of the server must not undo: the input would run again."""
    async with running(tmp_path) as shell:
        client = await shell.client(p.AppCreated(1, app()), spawned("a"), p.OutputsRequested("fc-1", request=1))
        seen = []
        record = shell.store.record

        def recorded(message: p.OutputsRecorded, then: Callable[[], None] | None = None) -> None:
            assert then is not None

            def on_disk() -> None:
                seen.append([m for m in client.messages if isinstance(m, p.OutputsDelivered)])
                then()

            record(message, on_disk)

        shell.store.record = recorded  # type: ignore[method-assign]
        assert (await client.results("fc-1", 1))[0].status == SUCCESS
        assert seen == [[]], "delivered once it was on disk, not before"


@on_loop
async def test_a_session_that_says_too_much_while_it_waits_is_not_read_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAX_BEHIND", 4)
    async with running(tmp_path) as shell:
        client = await shell.client(p.AppCreated(1, app(concurrency=MANY)))
        for i in range(60):
            client.say(spawned(str(i), call=f"fc-{i}"))
        await until(lambda: sum(isinstance(m, p.InputsAccepted) for m in client.messages) == 60)
        assert [m.call for m in client.messages if isinstance(m, p.InputsAccepted)] == [f"fc-{i}" for i in range(60)]
        assert (await client.ask(lambda n: p.StatisticsRequested(n))).error is None


@on_loop
async def test_a_call_whose_submitter_dies_is_closed_with_what_it_has(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        client = await shell.client(p.AppCreated(1, app(ephemeral=False)), spawned("a", "b", total=-1))
        await client.hear(p.InputsAccepted)
        await until(lambda: shell.plane.calls.by_id and not shell.plane.calls.by_id["fc-1"].open)
        client.connection.close()
        await until(lambda: not shell.plane.calls.by_id)
        other = await shell.client()
        assert (await other.ask(lambda n: p.CallRequested(n, "fc-1"))).value["inputs"] == 2
        # It was only the connection: the same program goes on where it was.
        other.say(spawned("c", first=2, total=-1), p.CallClosed("fc-1", 3))
        await other.hear(p.InputsAccepted)
        await until(lambda: not shell.plane.calls.by_id)
        assert (await other.ask(lambda n: p.CallRequested(n, "fc-1"))).value["done"] == 3


@on_loop
async def test_spawned_inputs_of_an_app_that_is_gone_are_refused_and_say_so_later(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        client = await shell.client(spawned("a"))
        refused = await client.hear(p.CallRefused)
        assert "there is no running function" in refused.error.message
        later = await shell.client(p.OutputsRequested("fc-1", request=1))
        result = (await later.results("fc-1", 1))[0]
        assert result.status == TERMINATED
        assert result.error == refused.error


@on_loop
async def test_many_recorded_results_come_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedge.server.store.PAGE_ROWS", 10)
    async with running(tmp_path) as shell:
        client = await shell.client(p.AppCreated(1, app(concurrency=MANY)), spawned(*map(str, range(95))))
        await client.hear(p.InputsAccepted)
        await until(lambda: not shell.plane.calls.by_id)
        late = await shell.client(p.OutputsRequested("fc-1", request=1))
        assert [data(r) for _, r in sorted((await late.results("fc-1", 95)).items())] == [f"did {i}" for i in range(95)]
        assert sum(isinstance(m, p.OutputsDelivered) for m in late.messages) == 10


# ---------------------------------------------------------------- restart


@on_loop
async def test_a_killed_server_comes_back_with_apps_open_inputs_and_results(tmp_path: Path) -> None:
    variant = Variant(function=POOL, variant="9f", spec=app().functions[0])
    other_pool = pool_id(POOL, "9f")
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.AppCreated(1, app(ephemeral=False)), p.VariantBound(variant))
        client.say(spawned("a", "b"), p.InputsSubmitted("fc-2", other_pool, 0, [Payload(data=b"v")], durable=True))
        await client.hear(p.InputsAccepted, lambda m: m.call == "fc-2")
        await until(lambda: sum(len(c.held) for c in shell.engine.containers.values()) == 3)
        first = next(c for c in shell.engine.containers.values() if any(d.index == 0 for d in c.held.values()))
        if next(iter(first.held.values())).call == "fc-1":
            first.finish()
            await until(lambda: len(shell.plane.calls.by_id["fc-1"].open) == 1)
        await shell.on_disk()
        done = dict(shell.plane.calls.by_id["fc-1"].done)

    async with running(tmp_path, FakeEngine(hold)) as shell:
        assert list(shell.plane.apps) == ["ap-1"]
        assert shell.plane.calls.by_id["fc-1"].done == done
        await until(lambda: sum(len(c.held) for c in shell.engine.containers.values()) == 3 - len(done))
        pools = {c.launch.pool for c in shell.engine.containers.values()}
        assert other_pool in pools
        late = await shell.client(p.OutputsRequested("fc-1", request=1), p.OutputsRequested("fc-2", request=2))
        for container in list(shell.engine.containers.values()):
            container.finish()
        assert {data(result) for result in (await late.results("fc-1", 2)).values()} == {"did a", "did b"}
        # Nobody had said how many inputs fc-2 has: after a while they are those that are there.
        shell.recovery.end_unclaimed([], ["fc-2"])
        assert data((await late.results("fc-2", 1))[0]) == "did v"
        await until(lambda: not shell.plane.calls.by_id)

    async with running(tmp_path) as shell:
        assert not shell.plane.calls.by_id
        late = await shell.client(p.OutputsRequested("fc-1", request=1))
        assert len(await late.results("fc-1", 2)) == 2


@on_loop
async def test_an_ephemeral_app_lives_on_if_its_program_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.AppCreated(1, app()), spawned("a"))
        await client.hear(p.InputsAccepted)
    async with running(tmp_path, FakeEngine(hold)) as shell:
        await until(lambda: shell.engine.containers and shell.engine.only.held)
        client = await shell.client(p.AppCreated(1, app()))
        await client.hear(p.Reply)
        shell.recovery.end_unclaimed(["ap-1"], [])
        assert not shell.plane.apps["ap-1"].stopped
        client.connection.close()
        await until(lambda: not shell.plane.apps)


@on_loop
async def test_an_ephemeral_app_that_nobody_claims_is_stopped_and_its_calls_say_so(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.AppCreated(1, app()), spawned("a"))
        await client.hear(p.InputsAccepted)
    async with running(tmp_path, FakeEngine(hold)) as shell:
        shell.recovery.end_unclaimed(["ap-1"], [])
        late = await shell.client(p.OutputsRequested("fc-1", request=1))
        result = (await late.results("fc-1", 1))[0]
        assert result.status == TERMINATED
        assert result.error is not None
        assert "its program did not come back after the server had been restarted" in result.error.message
        await until(lambda: not shell.plane.apps)
    async with running(tmp_path) as shell:
        assert not shell.plane.apps


@on_loop
async def test_ending_lets_containers_leave_and_keeps_apps_and_open_inputs(tmp_path: Path) -> None:
    async with running(tmp_path, FakeEngine(hold)) as shell:
        client = await shell.client(p.AppCreated(1, app(ephemeral=False)), spawned("a"), inputs("b", call="fc-2"))
        await until(lambda: sum(len(c.held) for c in shell.engine.containers.values()) == 2)
        containers = list(shell.engine.containers.values())
        shell.driver.ending = True
        shell.rpc.close()
        await shell.driver.end("its server has ended", 30.0)
        assert shell.driver.idle.is_set()
        assert all(p.ContainerDrained("its server has ended", cancel=True) in c.messages for c in containers)
        await until(lambda: client.reason is not None)
        assert not any(isinstance(m, p.OutputsDelivered) for m in client.messages)
    async with running(tmp_path) as shell:
        await until(lambda: shell.engine.started and not shell.plane.calls.by_id)
        late = await shell.client(p.OutputsRequested("fc-1", request=1))
        assert data((await late.results("fc-1", 1))[0]) == "did a"


# ---------------------------------------------------------------- failures inside


class Bug(Exception):
    pass


def breaks(plane: Any, kind: type, times: int = 1) -> None:
    """The plane fails on the next messages of this kind."""
    original = plane._handlers[kind]
    left = [times]

    def handler(message: Any, now: float, sender: str) -> None:
        if left[0]:
            left[0] -= 1
            raise Bug("an impossible thing")
        original(message, now, sender)

    plane._handlers[kind] = handler


@on_loop
async def test_a_failure_of_the_plane_is_answered_and_everybody_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as shell:
        client = await shell.client(p.AppCreated(1, app()))
        await client.hear(p.Reply)
        breaks(shell.plane, p.InputsSubmitted)
        client.say(inputs("secret"))
        refused = await client.hear(p.CallRefused)
        assert refused.error.type == "InternalError"
        assert "failed on InputsSubmitted (Bug: an impossible thing); its log says where" in refused.error.message
        breaks(shell.plane, p.StatisticsRequested)
        reply = await client.ask(lambda n: p.StatisticsRequested(n))
        assert reply.error is not None
        assert "failed on StatisticsRequested" in reply.error.message
        client.say(inputs("b", call="fc-2"))
        assert data((await client.results("fc-2", 1))[0]) == "did b"
        assert shell.driver.failures == 2
        assert "Traceback" in caplog.text
        assert "the plane failed on InputsSubmitted of se-1" in caplog.text
        assert "secret" not in caplog.text


@on_loop
async def test_what_has_no_answer_costs_the_connection(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        client, other = await shell.client(), await shell.client()
        breaks(shell.plane, p.CallCancelled)
        client.say(p.CallCancelled("fc-1"))
        assert "failed on CallCancelled" in await client.refused()
        assert (await other.ask(lambda n: p.StatisticsRequested(n))).error is None


@on_loop
async def test_a_container_on_whose_message_the_plane_fails_is_replaced(tmp_path: Path) -> None:
    async with running(tmp_path) as shell:
        client = await shell.client(p.AppCreated(1, app()))
        breaks(shell.plane, p.InputsFinished)
        client.say(inputs("a"))
        assert data((await client.results("fc-1", 1))[0]) == "did a"
        assert len(shell.engine.started) == 2
        assert shell.engine.killed[0][0] == shell.engine.started[0].container


@on_loop
async def test_a_failure_in_passing_time_is_logged_and_time_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as shell:
        client = await shell.client(p.AppCreated(1, app()))
        await client.hear(p.Reply)

        def duty(now: float) -> None:
            raise Bug("a duty")

        done = asyncio.Event()
        now = asyncio.get_running_loop().time()
        shell.plane.agenda.at(now + 0.01, duty)
        shell.plane.agenda.at(now + 0.02, lambda now: done.set())
        assert (await client.ask(lambda n: p.StatisticsRequested(n))).error is None
        await done.wait()
        assert "the plane failed on TimePassed of the server itself" in caplog.text


@on_loop
async def test_a_full_disk_refuses_the_spawn_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    async with running(tmp_path) as shell:
        client = await shell.client(p.AppCreated(1, app(ephemeral=False)))
        await client.hear(p.Reply)
        pages = await shell.store.writer.ask(lambda tx: tx.execute("PRAGMA page_count").fetchone()[0])
        await shell.store.writer.ask(lambda tx: tx.execute(f"PRAGMA max_page_count = {pages}").fetchall())
        client.say(spawned("x" * 100_000))
        refused = await client.hear(p.CallRefused)
        assert refused.error.type == "ServiceError"
        assert f"the server cannot write {tmp_path / 'state.db'}: database or disk is full" in refused.error.message
        client.say(inputs("b", call="fc-2"))
        assert data((await client.results("fc-2", 1))[0]) == "did b"
        await shell.store.writer.ask(lambda tx: tx.execute("PRAGMA max_page_count = 100000").fetchall())
        client.say(spawned("y" * 100_000, call="fc-3"))
        assert (await client.hear(p.InputsAccepted)).call == "fc-3"
