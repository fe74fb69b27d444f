"""`kedge function`: settings, numbers and calls of what is there."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kedge.cli.functionviews import named, only
from kedge.exception import InvalidError, NotFoundError
from kedge.model import protocol as p
from kedge.model.ids import deployment_id, function_id
from kedge.model.payload import Payload
from kedge.model.spec import (
    AutoscalerSettings,
    Concurrency,
    FunctionSpec,
    GpuRequest,
    MethodSpec,
    ParameterSpec,
    Resources,
    ScheduleSpec,
    WebSpec,
)
from tests.cli.live import Live
from tests.server.shell import POOL, app, inputs, spawned

D = deployment_id("main", "demo")


def function(app_name: str, name: str, app: str = "") -> dict[str, Any]:
    app = app or f"ap-{app_name}"
    return {"app_name": app_name, "app": app, "name": name, "function": function_id(app, name)}


# ---------------------------------------------------------------- which function is meant

THERE = [
    function("chat", "Server"),
    function("chat", "summarize"),
    function("my.app", "f"),
    function("my.app", "g"),
    function("my", "app"),
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("chat.Server", ["Server"]),
        ("chat::Server", ["Server"]),
        ("chat.Server.generate", ["Server"]),
        ("chat", ["Server", "summarize"]),
        ("summarize", ["summarize"]),
        ("my.app.f", ["f"]),
        ("my.app", ["f", "g"]),
        ("my::app", ["app"]),
        ("ap-chat.Server", ["Server"]),
        ("fu-chat-Server", ["Server"]),
        ("fu-chat-Ser", ["Server"]),
    ],
)
def test_ways_to_name_a_function(text: str, found: list[str]) -> None:
    assert [one["name"] for one in named(THERE, text)] == found


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "chat.sumarize",
            "the app chat has no function 'sumarize'. Did you mean 'summarize'? It has: Server, summarize",
        ),
        ("chatt", "there is no app or function 'chatt'. Did you mean 'chat'? There are: chat.Server, chat.summarize"),
        ("fu-nobody", "there is no app or function 'fu-nobody'."),
    ],
)
def test_an_unknown_function_gets_the_nearest_name(text: str, error: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        named(THERE, text)
    assert str(caught.value).startswith(error)


def test_a_name_that_stands_for_several() -> None:
    with pytest.raises(InvalidError, match=r"'chat' stands for several functions: chat.Server, chat.summarize; write"):
        only(named(THERE, "chat"), "chat")


# ---------------------------------------------------------------- what is shown


def test_nothing_is_there(live: Live) -> None:
    assert live.run("function", "list").stdout.startswith("No function is there. `kedge deploy app.py` deploys an app")
    assert live.run("function", "stats").stdout == "Nothing was called yet, so there are no numbers.\n"
    assert live.json("function", "list") == live.json("function", "stats") == []
    result = live.run("function", "info", "demo")
    assert (result.exit_code, result.stderr.startswith("Error: there is no app or function 'demo'.")) == (1, True)


def test_functions_stand_in_a_table(live: Live) -> None:
    schedule, web = ScheduleSpec(cron="0 6 * * *"), (MethodSpec(web=WebSpec(kind="asgi_app")),)
    functions = (
        FunctionSpec(name="page", module="m", qualname="page", methods=web),
        FunctionSpec(name="nightly", module="m", qualname="nightly", schedule=schedule),
    )
    live.shell.office.runs = {function_id(D, "nightly"): {"next": 1.8e9}}.__getitem__
    live.deploy(replace(app("ap-v1", ephemeral=False), functions=functions))
    heading, page, nightly = live.run("function", "list").stdout.splitlines()
    assert heading.split()[:6] == ["app", "function", "kind", "containers", "running", "waiting"]
    assert page.split()[:4] == ["demo", "page", "function,", "web"]
    assert page.endswith("http://127.0.0.1:5334/demo-page/")
    assert "at 2027-01-15" in nightly
    assert "scheduled" in nightly
    assert [one["name"] for one in live.json("function", "list", "--app", "demo")] == ["page", "nightly"]
    assert "Did you mean 'demo'?" in live.run("function", "list", "--app", "dmo").stderr


def test_functions_of_several_environments_are_told_apart(live: Live) -> None:
    live.deploy(app("ap-v1", ephemeral=False))
    live.deploy(replace(app("ap-v2", ephemeral=False), environment_name="staging"))
    heading, *rows = live.run("function", "list").stdout.splitlines()
    assert heading.split()[:3] == ["app", "environment", "function"]
    assert sorted(row.split()[1] for row in rows) == ["main", "staging"]
    assert "environment" not in live.run("function", "list", "--env", "staging").stdout


def test_a_function_in_full(live: Live) -> None:
    spec = app(
        concurrency=Concurrency(8, 4, declared=True),
        concurrency_limit=20,
        autoscaler=AutoscalerSettings(1, 5, 2, 30.0),
        resources=Resources(2.0, None, 2048, None, (GpuRequest("H100", 2),)),
        env=(("SECRET", "hidden"),),
        is_class=True,
        methods=(MethodSpec("run", is_async=True), MethodSpec("stream", is_generator=True, concurrency_limit=2)),
        parameters=(ParameterSpec("size", "int", Payload(data=b"1")), ParameterSpec("name", "str")),
        schedule=ScheduleSpec(period=(("hours", 6.0),)),
        queue_timeout=9.0,
    )
    live.say(p.AppCreated(1, spec))
    text = live.run("function", "info", "demo.square").stdout
    for line in (
        "function     demo.square",
        f"id           {POOL}",
        "kind         class, scheduled",
        "inputs       8 at once in a container, 4 aimed at, 20 over all",
        "containers   1 to 5, 2 in reserve, idle ones stay for 30.0 s",
        "resources    2 cpu, 2,048 MiB, H100:2",
        "time limits  5:00 min to run, 9.0 s to wait",
        "variables    SECRET",
        "parameters   size: int = …, name: str",
        "schedule     every 6 hours, next run -",
    ):
        assert f"{line}\n" in text
    assert [line.split()[:3] for line in text.splitlines()[-2:]] == [["run", "yes", "-"], ["stream", "-", "yes"]]
    whole = live.run("function", "info", "demo", "--json").stdout
    assert "hidden" not in text + whole
    assert '"launch"' not in whole


def test_live_numbers(live: Live) -> None:
    live.say(
        p.AppCreated(1, app(concurrency=Concurrency(2, 1, declared=True), autoscaler=AutoscalerSettings(1, 1))),
    )
    live.until(lambda: live.engine.containers)
    live.say(inputs("a", "b", "c"))
    live.until(lambda: len(live.engine.only.held) >= 2)
    heading, row = live.run("function", "stats", "demo.square").stdout.splitlines()
    assert heading.split()[:7] == ["function", "containers", "running", "waiting", "headroom", "done", "failed"]
    assert row.split()[:7] == ["square", "1", "2", "1", "0", "0", "0"]
    (pool,) = live.json("function", "stats")
    assert (pool["app"], pool["function"], pool["backlog"], pool["running"]) == ("demo", POOL, 1, 2)
    assert {"bursts", "wait_p50_s", "wait_p95_s", "run_p50_s", "run_p95_s", "headroom"} <= set(pool)


def test_recent_calls(live: Live) -> None:
    live.say(p.AppCreated(1, app()), spawned("a", call="fc-over"))
    live.until(lambda: live.engine.containers and live.engine.only.held)
    live.do(lambda: _finished(live))
    live.until(lambda: not live.shell.plane.calls.by_id)
    live.say(inputs("a", "b", call="fc-open"))
    result = live.run("function", "calls", "demo.square")
    heading, *rows = result.stdout.splitlines()
    assert heading.split() == ["call", "method", "state", "done", "failed", "kind", "since"]
    assert [row.split()[:4] for row in rows] == [["fc-open", "-", "running", "0/2"], ["fc-over", "-", "done", "1/1"]]
    assert "waited for" in rows[0]
    assert "spawned" in rows[1]
    assert [one["call"] for one in live.json("function", "calls", "square", "-n", "1")] == ["fc-open"]


def test_a_call_that_was_cancelled_has_not_failed(live: Live) -> None:
    live.say(p.AppCreated(1, app()), spawned("a", call="fc-over"))
    live.until(lambda: live.engine.containers and live.engine.only.held)
    live.say(p.CallCancelled("fc-over"))
    live.until(lambda: not live.shell.plane.calls.by_id)
    (call,) = live.json("function", "calls", "square")
    assert (call["state"], call["done"], call["failed"]) == ("cancelled", 1, 0)


def test_no_calls(live: Live) -> None:
    live.say(p.AppCreated(1, app()))
    assert live.run("function", "calls", "square").stdout == (
        "square has no call that is open, and no spawned one whose results are kept.\n"
    )


async def _finished(live: Live) -> None:
    live.engine.only.finish()
