"""Connections: one reader for all threads, one connection per loop, and what happens when the server goes."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest

from kedge import exception
from kedge.model import protocol as p
from kedge.sdk import client as client_module
from kedge.sdk import context, invocation, link, output
from kedge.sdk.client import Client, new_call_id
from kedge.sdk.target import Target
from tests.sdk.conftest import target
from tests.sdk.fake_plane import FakePlane


def fork() -> int:
    with warnings.catch_warnings():
        # Newer Pythons warn where threads run; the child here only calls and leaves.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def test_call_ids_are_unique_and_differ_after_a_fork() -> None:
    ids = {new_call_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    assert all(len(id) >= 19 and id.startswith("fc-") for id in ids)
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        os.write(writer, new_call_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    assert theirs[:15] != new_call_id()[:15]


def test_code_in_a_container_says_which_to_the_server_of_that_one_and_to_nobody_else() -> None:
    try:
        context.set_container(app_id="ap-1", address="/plane.sock", container="ct-1", token="mine")
        inside = link.hello(Client("/plane.sock"))
        assert (inside.role, inside.identity, inside.token) == (p.CLIENT, "ct-1", "mine")
        elsewhere = link.hello(Client("tcp://other:1", "theirs"))
        assert (elsewhere.identity, elsewhere.token) == ("", "theirs")
    finally:
        context.clear_container()
    outside = link.hello(Client("/plane.sock"))
    assert (outside.identity, outside.token) == ("", "")


def test_a_forked_child_has_no_client_of_its_parent(plane: FakePlane, client: Client) -> None:
    plane.functions["double"] = lambda x: 2 * x
    assert invocation.call(target("double"), (2,), {}) == 4
    child = fork()
    if child == 0:
        inherited = client_module.running()
        client_module.use(Client(plane.address))
        answer = invocation.call(target("double"), (4,), {})
        os._exit(0 if inherited is None and answer == 8 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert invocation.call(target("double"), (3,), {}) == 6
    assert plane.welcomed == 2


def test_nobody_listening_is_said_with_the_address(tmp_path: Any) -> None:
    with pytest.raises(exception.ConnectionError, match=f"no kedge server answers at {tmp_path}/no.sock"):
        Client.connect(f"{tmp_path}/no.sock")


def test_a_refusal_is_passed_on(plane: FakePlane) -> None:
    plane.refuse_hello = "wrong token: set KEDGE_TOKEN"
    with pytest.raises(exception.AuthError, match="wrong token: set KEDGE_TOKEN"):
        Client.connect(plane.address)

    async def refused() -> None:
        await Client(plane.address).async_link()

    with pytest.raises(exception.AuthError, match="wrong token"):
        asyncio.run(refused())


def test_a_server_that_never_answers_is_given_up(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedge.sdk.async_link.HANDSHAKE_S", 0.05)
    address = f"{tmp_path}/mute.sock"

    async def unanswered() -> None:
        gone = asyncio.Event()

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            gone.set()

        server = await asyncio.start_unix_server(listen, address)
        with pytest.raises(exception.ConnectionError, match=r"no answer within 0\.05 s"):
            await Client(address).async_link()
        await asyncio.wait_for(gone.wait(), 10)
        server.close()

    asyncio.run(unanswered())


def test_without_an_app_or_a_server_the_error_says_what_to_do(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path))
    monkeypatch.delenv("KEDGE_SERVER", raising=False)
    with pytest.raises(exception.ConnectionError, match=r"wrap the calls in `with app\.run\(\):`"):
        Client.current()


def test_the_server_named_by_the_environment_is_used(plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDGE_SERVER", plane.address)
    made = Client.current()
    try:
        assert made.address == plane.address
        assert Client.current() is made
    finally:
        made.close()


def test_threads_share_one_connection_and_each_gets_its_own_answer(
    plane: FakePlane, client: Client, held: Target
) -> None:
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(invocation.call, held, (i,), {}) for i in range(8)]
        submitted = plane.wait_heard(p.InputsSubmitted, 8)
        # Answered in reverse, so that whoever reads the socket reads for the others.
        for message in reversed(submitted):
            plane.finish(message.call, 0, message.call)
        answers = [future.result(30) for future in futures]
    assert sorted(answers) == sorted(message.call for message in submitted)
    assert plane.welcomed == 1


def test_the_lead_is_handed_on_when_the_leader_has_its_answer(plane: FakePlane, client: Client, held: Target) -> None:
    with ThreadPoolExecutor(3) as pool:
        futures = {}
        for i in range(3):
            future = pool.submit(invocation.call, held, (i,), {})
            message = plane.wait_heard(p.InputsSubmitted, i + 1)[-1]
            futures[message.call] = future
        for call, future in futures.items():
            plane.finish(call, 0, call)
            assert future.result(30) == call


def test_a_signal_handler_may_call_while_its_thread_waits(plane: FakePlane, client: Client, held: Target) -> None:
    plane.functions["f"] = lambda: "from the handler"
    said: list[str] = []
    entered = threading.Event()

    def handler(*_: object) -> None:
        entered.set()
        if not said:
            said.append(invocation.call(target("f"), (), {}))

    def interrupt() -> None:
        (submitted,) = plane.wait_heard(p.InputsSubmitted)
        plane.wait_for(lambda: client.link()._leader is not None)
        while not entered.wait(0.05):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        plane.wait_for(lambda: said)
        plane.finish(submitted.call, 0, "from the function")

    old = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert invocation.call(held, (1,), {}) == "from the function"
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, old)
    assert said == ["from the handler"]


def test_an_exception_set_for_a_waiting_thread_is_raised_after_a_nudge(
    plane: FakePlane, client: Client, held: Target
) -> None:
    class Stop(BaseException):
        pass

    raised = []

    def wait() -> None:
        try:
            invocation.call(held, (1,), {})
        except Stop:
            raised.append(threading.get_ident())

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    plane.wait_heard(p.InputsSubmitted, 2)
    for thread in threads:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stop))
        client_module.nudge()
        thread.join(30)
    assert raised == [thread.ident for thread in threads]
    plane.wait_heard(p.CallCancelled, 2)


def test_nudge_wakes_leader_and_followers_and_changes_nothing(plane: FakePlane, client: Client, held: Target) -> None:
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(invocation.call, held, (i,), {}) for i in range(2)]
        submitted = plane.wait_heard(p.InputsSubmitted, 2)
        client.link().nudge()
        plane.wait_heard(p.CallRequested)
        assert not any(future.done() for future in futures)
        for message in submitted:
            plane.finish(message.call, 0, 1)
        assert [future.result(30) for future in futures] == [1, 1]


def test_after_a_restart_the_unfinished_is_sent_again_under_the_same_ids(
    plane: FakePlane, client: Client, held: Target
) -> None:
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(invocation.call, held, (i,), {}) for i in range(2)]
        before = plane.wait_heard(p.InputsSubmitted, 2)
        plane.stop_listening()
        plane.listen()
        after = plane.wait_heard(p.InputsSubmitted, 4)[2:]
        assert sorted(m.call for m in after) == sorted(m.call for m in before)
        for message in after:
            plane.finish(message.call, 0, "done")
        assert [future.result(30) for future in futures] == ["done", "done"]


def test_after_a_restart_apps_and_pools_are_announced_before_their_inputs(
    plane: FakePlane, client: Client, held: Target
) -> None:
    from kedge.model.spec import AppSpec, CodeSpec, EnvironmentSpec, FunctionSpec, Variant

    app = AppSpec(
        app="ap-1", name="a", functions=(), code=CodeSpec(), environment=EnvironmentSpec(python="", python_version="")
    )
    client.apps["ap-1"] = p.AppCreated(1, app)
    variant = Variant(function="fu-1-f", variant="9", spec=FunctionSpec(name="f", module="m", qualname="f"))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(invocation.call, Target("ap-1", held.pool, variant=variant, name="f"), (1,), {})
        plane.wait_heard(p.InputsSubmitted)
        plane.disconnect()
        message = plane.wait_heard(p.InputsSubmitted, 2)[-1]
        plane.finish(message.call, 0, None)
        future.result(30)
    assert [type(m).__name__ for m in plane.said if not isinstance(m, p.Hello)] == [
        "VariantBound",
        "InputsSubmitted",
        "AppCreated",
        "VariantBound",
        "InputsSubmitted",
    ]


def test_a_server_that_stays_away_fails_what_waits(
    plane: FakePlane, client: Client, held: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "RECONNECT_S", 0.05)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(invocation.call, held, (i,), {}) for i in range(2)]
        plane.wait_heard(p.InputsSubmitted, 2)
        plane.stop_listening()
        errors = [future.exception(30) for future in futures]
    assert [type(error) for error in errors] == [exception.ConnectionError] * 2
    assert "was lost (the peer closed the connection" in str(errors[0])
    assert errors[0] is not errors[1], "each raises an exception of its own"
    tried = Mock(wraps=client.link()._open)
    monkeypatch.setattr(client.link(), "_open", tried)
    with pytest.raises(exception.ConnectionError, match="was lost"):
        invocation.call(held, (3,), {})
    assert tried.call_count == 1, "who comes later does not wait as long again"


def test_no_reconnect_is_tried_where_it_is_known_to_be_hopeless(plane: FakePlane, client: Client, held: Target) -> None:
    client.lost = lambda: "it has ended with exit code 1"
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(invocation.call, held, (1,), {})
        plane.wait_heard(p.InputsSubmitted)
        plane.disconnect()
        error = future.exception(30)
    assert "it has ended with exit code 1" in str(error)
    assert plane.welcomed == 1


def test_what_the_server_refuses_is_not_sent_again(plane: FakePlane, client: Client, held: Target) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(invocation.call, held, (1,), {})
        plane.wait_heard(p.InputsSubmitted)
        plane.tell_all(p.Refused("InputsSubmitted.first must be 0 or more, got -1"))
        with pytest.raises(exception.ServiceError, match=r"refused what this program sent.*first must be 0 or more"):
            future.result(30)
    assert len(plane.heard(p.InputsSubmitted)) == 1


def test_closing_says_goodbye_and_wakes_who_waits(plane: FakePlane, client: Client, held: Target) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(invocation.call, held, (1,), {})
        plane.wait_heard(p.InputsSubmitted)
        client.close()
        assert isinstance(future.exception(30), exception.ClientClosed | exception.ConnectionError)
    plane.wait_heard(p.SessionClosed)
    assert client_module.running() is None


def test_a_request_that_is_not_answered_in_time(plane: FakePlane, client: Client) -> None:
    plane.silent_about.add(p.StatisticsRequested)
    with pytest.raises(exception.TimeoutError, match=r"did not answer StatisticsRequested in 0\.05 s"):
        client.request(p.StatisticsRequested, timeout=0.05)


def test_notices_go_to_the_display(plane: FakePlane, client: Client, held: Target) -> None:
    shown: list[str] = []

    class Sink(output.PlainOutput):
        def notice(self, text: str, level: str = "info") -> None:
            shown.append(f"{level}: {text}")

    plane.functions["f"] = lambda: plane.tell_all(p.Notice("ap-1", "waits for room", "room"))
    with output.show_on(Sink()):
        invocation.call(target("f"), (), {})
    assert shown == ["room: waits for room"]


# ---------------------------------------------------------------- event loops


def test_each_loop_has_its_own_connection_that_ends_with_it(plane: FakePlane, client: Client) -> None:
    plane.functions["double"] = lambda x: 2 * x

    async def calls() -> list[int]:
        return await asyncio.gather(*(invocation.call_async(target("double"), (i,), {}) for i in range(20)))

    for round_ in (1, 2):
        assert asyncio.run(calls()) == [2 * i for i in range(20)]
        assert plane.welcomed == round_
        plane.wait_heard(p.SessionClosed, round_)
    gc.collect()


def test_blocking_and_async_calls_live_side_by_side(plane: FakePlane, client: Client) -> None:
    plane.functions["double"] = lambda x: 2 * x

    async def both() -> tuple[int, int]:
        ours = await invocation.call_async(target("double"), (1,), {})
        return ours, await asyncio.to_thread(invocation.call, target("double"), (2,), {})

    assert asyncio.run(both()) == (2, 4)


def test_an_async_connection_comes_back_after_a_restart(plane: FakePlane, client: Client, held: Target) -> None:
    async def call() -> Any:
        task = asyncio.create_task(invocation.call_async(held, (1,), {}))
        await asyncio.to_thread(plane.wait_heard, p.InputsSubmitted)
        await asyncio.to_thread(plane.stop_listening)
        plane.listen()
        message = (await asyncio.to_thread(plane.wait_heard, p.InputsSubmitted, 2))[-1]
        plane.finish(message.call, 0, "back")
        return await task

    assert asyncio.run(call()) == "back"


def test_an_idle_async_connection_that_was_lost_is_made_anew(plane: FakePlane, client: Client) -> None:
    plane.functions["double"] = lambda x: 2 * x

    async def calls() -> list[int]:
        first = await invocation.call_async(target("double"), (1,), {})
        connection = await client.async_link()
        plane.disconnect()
        while not connection.closed:
            await asyncio.sleep(0)
        return [first, await invocation.call_async(target("double"), (2,), {})]

    assert asyncio.run(calls()) == [2, 4]
    assert plane.welcomed == 2


def test_an_async_call_fails_where_the_server_stays_away(plane: FakePlane, client: Client, held: Target) -> None:
    client.lost = lambda: "it has ended"

    async def call() -> None:
        task = asyncio.create_task(invocation.call_async(held, (1,), {}))
        await asyncio.to_thread(plane.wait_heard, p.InputsSubmitted)
        await asyncio.to_thread(plane.disconnect)
        await task

    with pytest.raises(exception.ConnectionError, match="it has ended"):
        asyncio.run(call())


def test_closing_from_another_thread_wakes_tasks(plane: FakePlane, client: Client, held: Target) -> None:
    async def call() -> None:
        task = asyncio.create_task(invocation.call_async(held, (1,), {}))
        await asyncio.to_thread(plane.wait_heard, p.InputsSubmitted)
        threading.Thread(target=client.close).start()
        await task

    with pytest.raises(exception.ClientClosed):
        asyncio.run(call())
