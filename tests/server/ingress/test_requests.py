"""Requests and responses over a real socket: what HTTP promises, whatever the code does."""

from __future__ import annotations

import asyncio

import pytest

from kedge.model import protocol as p
from kedge.model.payload import INTERNAL_FAILURE, SUCCESS, TIMEOUT, ErrorInfo, Result
from kedge.model.spec import AutoscalerSettings
from kedge.model.web import BodySent, MessageSent, Request, ResponseStarted
from tests.server.ingress.hall import Turn, echo, forever, hall, hello, web
from tests.wire.loops import on_loop, on_loops, until


@on_loops
async def test_a_request_is_answered() -> None:
    async with hall(hello) as here:
        answer = await here.get()
        assert (answer.status, answer.body) == (200, b"hello")
        assert answer.headers["content-length"] == "5"
        assert answer.headers["server"] == "kedge"
        assert answer.headers["date"].endswith(" GMT")
        await here.idle()


@on_loop
async def test_the_code_sees_the_request_as_it_was_sent() -> None:
    async with hall(hello) as here:
        client = await here.client()
        client.send("POST /web/a%20b//c?x=1&y=%20 HTTP/1.1\r\nHost: LOCALHOST:80\r\nX-One: 1\r\nx-one: 2\r\n")
        client.send("Connection: keep-alive, X-Secret\r\nX-Secret: s\r\nTE: trailers\r\nContent-Length: 2\r\n\r\nab")
        await client.answer()
        assert (await here.turn()).request == Request(
            method="POST",
            path="/web/a b//c",
            raw_path=b"/web/a%20b//c",
            query=b"x=1&y=%20",
            root_path="/web",
            headers=[
                (b"host", b"LOCALHOST:80"),
                (b"x-one", b"1"),
                (b"x-one", b"2"),
                (b"content-length", b"2"),
            ],
            client=client.writer.get_extra_info("sockname"),
            server=here.address,
            body=b"ab",
        )


@on_loop
async def test_a_host_may_name_the_label() -> None:
    async with hall(hello) as here:
        client = await here.client()
        client.ask("/a", host="web.localhost:5334")
        assert (await client.answer()).status == 200
        request = (await here.turn()).request
        assert (request.path, request.root_path) == ("/a", "")


@on_loop
async def test_one_request_is_one_input_of_its_function_and_method() -> None:
    async with hall(hello, web("Server", label="chat", method="talk")) as here:
        await here.get("/chat/")
        turn = await here.turn()
        assert turn.dispatch.method == "talk"
        assert turn.dispatch.stream
        await here.idle()
        pool = here.plane.pools["fu-1-Server"]
        assert (pool.submitted, pool.finished, pool.failed) == (1, 1, 0)


# ---------------------------------------------------------------- connections


@on_loops
async def test_a_connection_is_kept_and_requests_are_answered_in_their_order() -> None:
    async def slow_first(turn: Turn) -> None:
        if turn.request.path.endswith("slow"):
            await asyncio.sleep(0.01)
        turn.answer(turn.request.path.encode())

    async with hall(slow_first) as here:
        client = await here.client()
        paths = ["/web/slow", *[f"/web/{number}" for number in range(40)]]
        for path in paths:
            client.ask(path)
        assert [(await client.answer()).text for _ in paths] == paths
        client.ask("/web/last", "Connection: close")
        last = await client.answer()
        assert last.headers["connection"] == "close"
        assert await client.gone() == b""
        await here.idle()


@on_loop
async def test_http_1_0_is_closed_unless_it_asks_to_be_kept() -> None:
    async with hall(hello) as here:
        client = await here.client()
        client.send("GET /web/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        kept = await client.answer()
        assert (kept.body, kept.headers["connection"]) == (b"hello", "keep-alive")
        client.send("GET /web/ HTTP/1.0\r\n\r\n")
        assert (await client.answer()).headers["connection"] == "close"
        assert await client.gone() == b""


@on_loop
async def test_a_stream_to_http_1_0_ends_with_the_connection() -> None:
    async def stream(turn: Turn) -> None:
        turn.say(ResponseStarted(200))
        turn.say(BodySent(b"a"))
        turn.say(BodySent(b"b", False))

    async with hall(stream) as here:
        client = await here.client()
        client.send("GET /web/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = await client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"ab", "close")


@on_loop
async def test_the_client_is_done_before_the_code_is() -> None:
    """What follows the response is the code's own business, also when the client leaves."""
    go_on, ended = asyncio.Event(), asyncio.Event()

    async def background(turn: Turn) -> None:
        turn.answer(b"done")
        await go_on.wait()
        ended.set()

    async with hall(background) as here:
        client = await here.client()
        client.ask()
        assert (await client.answer()).body == b"done"
        client.ask()
        assert (await client.answer()).body == b"done"
        client.vanish()
        await until(lambda: not here.ingress.connections)
        assert here.exchanges == 2
        go_on.set()
        await ended.wait()
        await here.idle()
        assert not any(turn.cancelled for turn in here.turns)


@on_loop
async def test_too_many_connections_are_refused_and_the_others_served() -> None:
    async with hall(hello, max_connections=2) as here:
        one, two, three = [await here.client() for _ in range(3)]
        assert (await three.answer()).text == "this server has 2 connections open already; try again in a moment\n"
        assert await three.gone() == b""
        for client in (one, two):
            client.ask()
            assert (await client.answer()).status == 200
        one.close()
        three.close()
        await until(lambda: len(here.ingress.connections) == 1)
        assert (await here.get()).status == 200


# ---------------------------------------------------------------- what is answered without the code


@on_loop
async def test_what_leads_nowhere_is_said_and_the_connection_goes_on() -> None:
    async with hall(hello) as here:
        client = await here.client()
        for path, status in (("/", 404), ("/nobody/", 404), ("/web/%00", 400), ("/web/", 200)):
            client.ask(path)
            answer = await client.answer()
            assert answer.status == status
            if status != 200:
                assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            if status == 400:
                assert await client.gone() == b""
                client = await here.client()
        assert len(here.turns) == 1


@on_loop
async def test_a_browser_is_redirected_to_the_slash() -> None:
    async with hall(hello) as here:
        answer = await here.get("/web?a=1", "Accept: text/html,*/*")
        assert (answer.status, answer.headers["location"]) == (307, "/web/?a=1")
        assert (await here.get("/web?a=1", "Accept: */*")).status == 200


@on_loop
async def test_head_has_the_headers_and_no_body_also_of_an_error() -> None:
    async with hall(hello) as here:
        client = await here.client()
        for path, status, length in (("/web/", 200, "5"), ("/x/", 404, None)):
            client.ask(path, method="HEAD")
            answer = await client.answer(of_head=True)
            assert answer.status == status
            assert length in (None, answer.headers["content-length"])
        client.ask()
        assert (await client.answer()).body == b"hello"


@on_loop
async def test_a_key_is_asked_for_where_the_function_wants_one() -> None:
    asked = []

    def allowed(key: str, secret: str) -> bool:
        asked.append((key, secret))
        return (key, secret) == ("wk-1", "ws-1")

    async with hall(hello, web("web", requires_proxy_auth=True), web("open"), allowed=allowed) as here:
        for prefix in ("Kedge", "Modal"):
            answer = await here.get("/web/", f"{prefix}-Key: wk-1", f"{prefix}-Secret: ws-1")
            assert answer.status == 200
        refused = await here.get("/web/", "Kedge-Key: wk-1", "Kedge-Secret: wrong")
        assert refused.status == 401
        assert refused.text == (
            "this address needs a key: send a proxy token (`kedge token create --proxy`) in the headers Kedge-Key and "
            "Kedge-Secret\n"
        )
        assert (await here.get("/web/")).status == 401
        assert (await here.get("/open/")).status == 200
        assert asked == [("wk-1", "ws-1"), ("wk-1", "ws-1"), ("wk-1", "wrong"), ("", "")]
        assert all(
            name not in (b"kedge-key", b"modal-secret") for turn in here.turns for name, _ in turn.request.headers
        )


@on_loop
async def test_without_keys_nobody_is_let_in() -> None:
    async with hall(hello, web("web", requires_proxy_auth=True)) as here:
        assert (await here.get("/web/", "Kedge-Key: ", "Kedge-Secret: ")).status == 401
        assert not here.turns


@on_loop
async def test_a_stopped_app_is_not_there() -> None:
    async with hall(hello) as here:
        client = await here.client()
        client.ask()
        assert (await client.answer()).status == 200
        here.driver.submit(p.AppStopped("ap-1"), "se-1")
        client.ask()
        assert (await client.answer()).status == 404


@on_loop
async def test_an_app_that_stops_meanwhile_ends_its_requests() -> None:
    async with hall(forever) as here:
        client = await here.client()
        client.ask()
        turn = await here.turn()
        here.driver.submit(p.AppStopped("ap-1"), "se-1")
        answer = await client.answer()
        assert (answer.status, answer.text) == (503, "web has been stopped; deploy or run it again\n")
        await here.idle()
        await until(lambda: turn.cancelled)


@on_loop
async def test_proxies_on_this_machine_are_believed_where_that_was_said() -> None:
    told = ["X-Forwarded-For: 9.9.9.9, 10.1.1.1", "X-Forwarded-Proto: https"]
    async with hall(hello, trust_forwarded=True) as here:
        await here.get("/web/", *told)
        request = (await here.turn()).request
        assert (request.client, request.scheme) == (("10.1.1.1", 0), "https")
        client = await here.client()
        client.ask(host="kedge.example.org")
        assert (await client.answer()).status == 200
    async with hall(hello) as here:
        await here.get("/web/", *told)
        request = (await here.turn()).request
        assert (request.client or ("", 0))[0] == "127.0.0.1"
        assert request.scheme == "http"
        client = await here.client()
        client.ask(host="kedge.example.org")
        assert (await client.answer()).status == 421


# ---------------------------------------------------------------- classes


def model() -> object:
    from tests.server.ingress.test_instances import spec

    return spec(name=str, size=7)


@on_loop
async def test_the_query_chooses_the_instance() -> None:
    import msgspec

    function = msgspec.structs.replace(
        web("Model", label="model", method="run"),
        parameters=model().parameters,
        is_class=True,  # type: ignore[attr-defined]
    )
    async with hall(hello, function) as here:
        for query in ("?name=a", "?name=b", "?name=a&size=7&more=1", "?size=8&name=a"):
            assert (await here.get(f"/model/{query}")).status == 200
        pools = [pool for pool in here.plane.pools if pool.startswith("fu-1-Model@")]
        assert len(pools) == 3
        assert [len([t for t in here.turns if t.container.launch.pool == pool]) for pool in pools] == [2, 1, 1]
        parameters = here.plane.pools[pools[0]].parameters
        assert parameters is not None
        assert msgspec.msgpack.decode(parameters.data) == [["name", "a"], ["size", 7]]
        missing = await here.get("/model/")
        assert (missing.status, missing.text) == (400, "Model needs name: add ?name=... to the address\n")
        await here.idle()


@on_loop
async def test_there_is_a_bound_on_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    monkeypatch.setattr("kedge.server.ingress.ingress.MAX_VARIANTS", 2)
    function = msgspec.structs.replace(
        web("Model", label="model", method="run"),
        parameters=model().parameters,
        is_class=True,  # type: ignore[attr-defined]
    )
    async with hall(hello, function) as here:
        answers = [await here.get(f"/model/?name={name}") for name in "abcab"]
        assert [answer.status for answer in answers] == [200, 200, 503, 200, 200]
        assert answers[2].text == "Model has 2 different sets of parameters already\n"


# ---------------------------------------------------------------- when the code does not answer


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (Result(SUCCESS), 500),
        (Result(TIMEOUT, error=ErrorInfo("FunctionTimeoutError", "")), 504),
        (Result(INTERNAL_FAILURE, error=ErrorInfo("InternalFailure", "")), 502),
    ],
)
def test_an_end_without_a_response_has_a_status(result: Result, status: int) -> None:
    async def end(turn: Turn) -> Result:
        return result

    @on_loop
    async def test() -> None:
        async with hall(end) as here:
            client = await here.client()
            client.ask(method="DELETE")
            assert (await client.answer()).status == status
            client.ask("/nobody/")
            assert (await client.answer()).status == 404
            await here.idle()

    test()


@on_loop
async def test_an_exception_is_a_500_without_its_text() -> None:
    async def fail(turn: Turn) -> None:
        raise ValueError("secret")

    async with hall(fail) as here:
        answer = await here.get()
        assert (answer.status, answer.text) == (500, "web failed; its log says why: kedge app logs demo\n")


@on_loop
async def test_who_only_asked_is_given_to_another_container_once() -> None:
    async def die(turn: Turn) -> None:
        turn.container.die()
        await asyncio.Event().wait()

    async with hall(die) as here:
        for method, tries, status in (("GET", 2, 502), ("HEAD", 2, 502), ("POST", 1, 502)):
            here.turns.clear()
            client = await here.client()
            client.ask(method=method)
            assert (await client.answer(of_head=method == "HEAD")).status == status
            assert len(here.turns) == tries
            await here.idle()

    async def die_once(turn: Turn) -> None:
        if len(here.turns) == 1:
            await die(turn)
        turn.answer(b"second")

    async with hall(die_once) as here:
        assert (await here.get()).body == b"second"
        await here.idle()


@on_loop
async def test_a_response_that_breaks_off_is_never_whole(caplog: pytest.LogCaptureFixture) -> None:
    async def break_off(turn: Turn) -> None:
        turn.say(ResponseStarted(200), BodySent(b"part"))
        await asyncio.sleep(0)
        if turn.request.path.endswith("raise"):
            raise ValueError("oh")
        if turn.request.path.endswith("die"):
            turn.container.die()
            await asyncio.Event().wait()

    async with hall(break_off) as here:
        for end in ("raise", "die", "return"):
            client = await here.client()
            client.ask(f"/web/{end}")
            await client.head()
            assert await client.chunk() == b"part"
            assert b"0\r\n\r\n" not in await client.gone()
            await here.idle()
        assert caplog.text.count("ended in the middle of its response") == 3


@on_loop
async def test_what_is_no_response_becomes_500_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def split(turn: Turn) -> None:
        turn.answer(b"", 200, (b"x", b"1\r\nset-cookie: a=b"))
        await asyncio.Event().wait()

    async with hall(split) as here:
        client = await here.client()
        client.ask()
        answer = await client.answer()
        assert (answer.status, answer.text) == (
            500,
            "web sent what is no response; its log and that of the server say more\n",
        )
        assert "set-cookie" not in answer.headers
        await here.idle()
        assert here.turns[0].cancelled, "nobody waits for it any more"
        assert "with web> has a line break or a NUL in a header of its response" in caplog.text


@pytest.mark.parametrize("bad", [MessageSent(b"x"), ResponseStarted(200), BodySent(b"xx", False), BodySent(b"", False)])
@on_loop
async def test_a_response_that_goes_wrong_after_its_start_is_cut_off(bad: object) -> None:
    async def wrong(turn: Turn) -> None:
        turn.say(ResponseStarted(200, [(b"content-length", b"2")]), BodySent(b"a"))
        turn.say(bad)  # type: ignore[arg-type]

    async with hall(wrong) as here:
        client = await here.client()
        client.ask()
        assert (await client.head()).headers["content-length"] == "2"
        assert len(await client.gone()) < 2
        await here.idle()


# ---------------------------------------------------------------- waiting


@on_loop
async def test_a_request_waits_for_a_cold_start() -> None:
    async with hall(hello) as here:
        here.starting = False
        client = await here.client()
        client.ask()
        await until(lambda: here.launches)
        assert not here.turns
        here.come_up(here.launches[0])
        assert (await client.answer()).body == b"hello"


@on_loop
async def test_over_the_bound_of_the_queue_clients_hear_when_to_come_again() -> None:
    one = AutoscalerSettings(max_containers=1)
    async with hall(forever, web(slots=1, max_queued_inputs=1, autoscaler=one)) as here:
        running, waiting, refused = [await here.client() for _ in range(3)]
        running.ask()
        await here.turn()
        waiting.ask()
        await until(lambda: here.exchanges == 2)
        refused.ask()
        answer = await refused.answer()
        assert (answer.status, answer.text) == (503, "too many requests wait for web; try again later\n")
        assert int(answer.headers["retry-after"]) >= 1
        refused.ask("/nobody/")
        assert (await refused.answer()).status == 404


@on_loop
async def test_who_waits_for_too_long_hears_so() -> None:
    one = AutoscalerSettings(max_containers=1)
    async with hall(forever, web(slots=1, queue_timeout=0.02, autoscaler=one)) as here:
        running, waiting = [await here.client() for _ in range(2)]
        running.ask()
        await here.turn()
        waiting.ask()
        answer = await waiting.answer()
        assert (answer.status, answer.text) == (503, "web was busy for too long; try again later\n")


@on_loop
async def test_a_client_that_leaves_the_queue_takes_no_slot() -> None:
    one = AutoscalerSettings(max_containers=1)
    async with hall(forever, web(slots=1, autoscaler=one)) as here:
        running, waiting = [await here.client() for _ in range(2)]
        running.ask()
        first = await here.turn()
        waiting.ask()
        await until(lambda: here.exchanges == 2)
        waiting.vanish()
        await until(lambda: here.exchanges == 1)
        running.close()
        await here.idle()
        assert first.cancelled
        assert len(here.turns) == 1


@on_loops
async def test_a_client_that_leaves_cancels_its_request() -> None:
    async with hall(forever) as here:
        for leave in ("close", "vanish"):
            here.turns.clear()
            client = await here.client()
            client.ask(method="POST")
            turn = await here.turn()
            getattr(client, leave)()
            await here.idle()
            assert turn.cancelled
            assert not turn.events


@on_loop
async def test_echo_of_a_short_body() -> None:
    async with hall(echo) as here:
        client = await here.client()
        client.send("POST /web/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        assert (await client.answer()).body == b"abc"
        assert not (await here.turn()).request.more_body
