"""Requests from outside to web functions of every kind: what arrives, what comes back, and what goes wrong visibly."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from benchmarks.web_clients import wrk

import kedge
from tests.e2e import web_functions as functions
from tests.e2e.web_clients import Gate, Raw, crowd, http, lines_of, url_of, wait_for_line, wait_until

pytestmark = pytest.mark.slow

GATE = "QUAY_GATE"


@pytest.fixture(scope="module", autouse=True)
def running_quay(kedge_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(GATE, str(tmp_path_factory.mktemp("gate") / "open"))
        with functions.app.run():
            yield


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with http() as client:
        yield client


@pytest.fixture
def site() -> str:
    return url_of(functions.site)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


# ---------------------------------------------------------------- kinds


def test_a_function_is_one_route(client: httpx.Client) -> None:
    url = url_of(functions.greet)
    assert client.get(url).json() == {"hello": "world"}
    assert client.get(url, params={"name": "Vasa"}).json() == {"hello": "Vasa"}
    assert client.post(url).status_code == 405
    assert client.get(url + "docs").status_code == 404, "documentation only where it was asked for"


def test_a_function_that_takes_a_body(client: httpx.Client) -> None:
    url = url_of(functions.add)
    assert client.post(url, json={"a": 1, "b": 2}).json() == 3
    assert client.post(url, json={"a": "x"}).status_code == 422
    assert "swagger" in client.get(url + "docs").text
    allowed = client.options(url, headers={"origin": "http://x", "access-control-request-method": "POST"})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] in ("*", "http://x")


@pytest.mark.parametrize("function", [functions.site, functions.returned_app], ids=["asgi_app", "web_server()"])
def test_an_asgi_app(function: kedge.Function[..., Any], client: httpx.Client) -> None:
    url = url_of(function)
    assert client.get(url).text == "<h1>quay</h1>"
    assert client.get(url + "openapi.json").json()["paths"]
    assert client.get(url + "nowhere").status_code == 404
    assert client.get(url + "file/a/b.txt").json() == "a/b.txt"
    assert client.delete(url + "echo").status_code == 405


def test_a_wsgi_app(client: httpx.Client) -> None:
    url = url_of(functions.wsgi_site)
    assert client.get(url).text == f"flask at {urlsplit(url).path.rstrip('/')}"
    data = os.urandom(300_000)
    answer = client.post(url + "echo", content=data).json()
    assert answer == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert client.get(url + "stream").text.split() == ["0", "1", "2", "3", "4"]
    assert client.get(url + "nowhere").status_code == 404
    assert client.get(url + "boom").status_code == 500


def test_a_server_of_the_users_own(client: httpx.Client) -> None:
    url = url_of(functions.own_server)
    assert client.get(url + "x?y=1").text.startswith("GET /x?y=1 from 127.0.0.1")
    data = os.urandom(1_000_000)
    assert client.post(url, content=data).text == hashlib.sha256(data).hexdigest()


def test_a_class_is_chosen_by_its_parameters(client: httpx.Client) -> None:
    url = url_of(functions.Shop().web)  # type: ignore[arg-type]
    corner, market = client.get(url).json(), client.get(url, params={"name": "market", "shelves": 7}).json()
    assert corner["opened"] == "corner with 2"
    assert market["opened"] == "market with 7"
    assert corner["process"] != market["process"]
    assert client.get(url, params={"shelves": "7", "name": "market", "other": "x"}).json() == market, (
        "the same instance"
    )
    assert client.get(url, params={"shelves": "many"}).status_code == 400


def test_a_method_with_a_route_shares_its_containers_with_calls(client: httpx.Client) -> None:
    shop = functions.Shop(name="harbour")
    url = url_of(functions.Shop().price)  # type: ignore[arg-type]
    answer = client.get(url, params={"name": "harbour", "item": "rope"})
    assert answer.json() == "rope at harbour with 2"
    assert shop.stock.remote() == "harbour with 2"


def test_handlers_call_functions(client: httpx.Client) -> None:
    assert client.get(url_of(functions.squares), params={"x": 4}).json() == [0, 1, 4, 9]


# ---------------------------------------------------------------- addresses


def test_both_forms_of_the_address_lead_to_the_same_code(client: httpx.Client, site: str) -> None:
    parts = urlsplit(site)
    label = parts.path.strip("/")
    by_path = client.get(site + "where?a=1&b=%20").json()
    by_host = client.get(
        f"http://127.0.0.1:{parts.port}/where?a=1&b=%20", headers={"host": f"{label}.localhost:{parts.port}"}
    ).json()
    assert by_path["root_path"] == f"/{label}"
    assert by_path["path"] == f"/{label}/where"
    assert (by_host["root_path"], by_host["path"]) == ("", "/where")
    assert by_path["query"] == by_host["query"] == "a=1&b=%20"
    assert by_path["process"] == by_host["process"]
    assert by_path["url"] == site + "where?a=1&b=%20"
    assert by_host["url"] == f"http://{label}.localhost:{parts.port}/where?a=1&b=%20"
    assert by_path["client"][0] == "127.0.0.1"
    assert by_path["input"].startswith("in-") or ":" in by_path["input"]


def test_an_address_without_the_slash_and_one_with_two(client: httpx.Client, site: str) -> None:
    assert client.get(site.rstrip("/")).text == "<h1>quay</h1>"
    assert client.get(f"{site}/where").json()["path"].endswith("/where")
    page = client.get(site.rstrip("/"), headers={"accept": "text/html,*/*"})
    assert page.status_code == 307
    assert page.headers["location"] == urlsplit(site).path


def test_addresses_that_lead_nowhere_say_so(client: httpx.Client, site: str) -> None:
    parts = urlsplit(site)
    root = f"http://127.0.0.1:{parts.port}"
    assert client.get(f"{root}/no-such-label/").status_code == 404
    assert "no-such-label" in client.get(f"{root}/no-such-label/").text
    assert client.get(f"{root}/").status_code == 404
    assert client.get(root, headers={"host": "evil.example"}).status_code in (404, 421)
    assert client.get(root, headers={"host": "no-such-label.localhost"}).status_code == 404


@pytest.mark.parametrize("path", ["%2e%2e/where", "..%2fwhere", "//where", "a/../where", "%00", "."])
def test_path_tricks_stay_with_the_function_they_name(site: str, path: str) -> None:
    label = urlsplit(site).path.strip("/")
    for line in (f"GET /{label}/{path}", f"GET /../{label}/{path}"):
        with Raw(site) as raw:
            raw.send(f"{line} HTTP/1.1\r\nHost: {{host}}\r\n\r\n")
            answer = raw.answer()
            assert answer.status in (200, 400, 404), answer
            if answer.status == 200:
                assert f"/{label}".encode() in answer.body or answer.body == b"<h1>quay</h1>"


# ---------------------------------------------------------------- HTTP


def test_one_connection_carries_many_requests(site: str) -> None:
    with Raw(site) as raw:
        for n in range(20):
            raw.send(f"GET {{path}}file/{n} HTTP/1.1\r\nHost: {{host}}\r\n\r\n")
            assert raw.answer().body == f'"{n}"'.encode()


def test_pipelined_requests_are_answered_in_their_order(site: str) -> None:
    with Raw(site) as raw:
        requests = [f"GET {{path}}file/{n} HTTP/1.1\r\nHost: {{host}}\r\n\r\n" for n in range(50)]
        body = "POST {path}echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\n\r\nabc"
        raw.send("".join([*requests, body, requests[0]]))
        assert [raw.answer().body for _ in range(50)] == [f'"{n}"'.encode() for n in range(50)]
        assert b'"size":3' in raw.answer().body
        assert raw.answer().body == b'"0"'


def test_a_connection_is_closed_when_the_client_says_so(site: str) -> None:
    with Raw(site) as raw:
        raw.send("GET {path}file/1 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        assert raw.answer().body == b'"1"'
        assert raw.closed()
    with Raw(site) as raw:
        raw.send("GET {path}file/1 HTTP/1.0\r\nHost: {host}\r\n\r\n")
        assert raw.answer().body == b'"1"'
        assert raw.closed()


def test_head_has_the_headers_and_no_body(client: httpx.Client, site: str) -> None:
    got, head = client.get(url_of(functions.wsgi_site)), client.head(url_of(functions.wsgi_site))
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == got.headers["content-length"]
    with Raw(site) as raw:
        raw.send("HEAD {path}nowhere HTTP/1.1\r\nHost: {host}\r\n\r\n")
        assert raw.answer("HEAD").status == 404
        raw.send("GET {path}file/1 HTTP/1.1\r\nHost: {host}\r\n\r\n")
        assert raw.answer().body == b'"1"', "nothing was left of the answer to HEAD"


def test_options_reaches_the_code(client: httpx.Client, site: str) -> None:
    answer = client.options(site + "echo")
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"] or "PUT" in answer.headers["allow"]


def test_repeated_headers_keep_their_order(client: httpx.Client, site: str) -> None:
    sent = [("x-one", "1"), ("x-two", "2"), ("x-one", "3")]
    got = [header for header in client.get(site + "where", headers=sent).json()["headers"] if header[0] != "host"]
    assert [header for header in got if header[0].startswith("x-one") or header[0] == "x-two"] == [
        list(header) for header in sent
    ]


def test_a_malformed_request_costs_its_connection_and_nobody_else(client: httpx.Client, site: str) -> None:
    with Raw(site) as good:
        good.send("GET {path}file/1 HTTP/1.1\r\nHost: {host}\r\n\r\n")
        assert good.answer().status == 200
        for nonsense in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 100):
            with Raw(site) as raw:
                raw.send(nonsense + b"\r\n\r\n")
                try:
                    assert raw.answer().status in (400, 404, 505)
                    assert raw.closed()
                except ConnectionError:
                    pass
        good.send("GET {path}file/2 HTTP/1.1\r\nHost: {host}\r\n\r\n")
        assert good.answer().body == b'"2"'


def test_header_bombs_are_refused_and_others_are_served(client: httpx.Client, site: str) -> None:
    many = "".join(f"X-{n}: {'y' * 50}\r\n" for n in range(20_000))
    for bomb in (f"X: {'y' * 2_000_000}\r\n", many):
        with Raw(site) as raw:
            try:
                raw.send(f"GET {{path}}file/1 HTTP/1.1\r\nHost: {{host}}\r\n{bomb}\r\n")
                assert raw.answer().status in (400, 431)
            except ConnectionError:
                pass
    with Raw(site) as raw:
        raw.send(f"GET {{path}}{'y' * 1_000_000} HTTP/1.1\r\nHost: {{host}}\r\n\r\n")
        try:
            assert raw.answer().status in (400, 414, 431)
        except ConnectionError:
            pass
    assert client.get(site + "file/1").json() == "1"


def test_clients_that_send_a_byte_now_and_then_take_no_slot(site: str) -> None:
    """A function with one slot serves others while fifty have begun requests and do not go on."""
    url = url_of(functions.narrow)
    idle = [Raw(url) for _ in range(50)]
    try:
        for n, raw in enumerate(idle):
            raw.send("POST {path}echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n" + "\r\nabc" * (n % 2))
        with http() as client:
            for n in range(5):
                assert client.get(f"{url}file/{n}").json() == str(n)
    finally:
        for raw in idle:
            raw.socket.close()


# ---------------------------------------------------------------- slots and queues


def test_twenty_requests_and_ten_slots_in_each_of_two_containers(gate: Gate) -> None:
    url = url_of(functions.ten_slots)
    with crowd(25) as get:
        asked = [get(url + "gate", params={"path": gate.name}) for _ in range(25)]
        gate.wait(20)
        assert gate.begun == 20, "never more than max_inputs in a container"
        gate.open()
        answers = [future.result().json() for future in asked]
    processes = [answer["process"] for answer in answers]
    assert len(set(processes)) == 2
    assert max(answer["here"] for answer in answers) == 10


@pytest.mark.parametrize(
    ("function", "path", "slots"), [(functions.sixty_threads, "", 60), (functions.wsgi_site, "gate", 8)]
)
def test_sync_handlers_run_as_many_at_once_as_there_are_slots(
    function: kedge.Function[..., Any], path: str, slots: int, gate: Gate
) -> None:
    with crowd(slots + 2) as get:
        asked = [get(url_of(function) + path, params={"path": gate.name}) for _ in range(slots + 2)]
        gate.wait(slots)
        assert gate.begun == slots
        gate.open()
        answers = [future.result().json() for future in asked]
    assert max(answer["here"] for answer in answers) == slots


def test_a_full_queue_answers_503_and_when_to_come_again(gate: Gate) -> None:
    url = url_of(functions.narrow)
    with crowd(4) as get:
        first = get(url + "gate", params={"path": gate.name})
        gate.wait(1)
        others = [get(url + "gate", params={"path": gate.name}) for _ in range(3)]
        wait_until(lambda: sum(future.done() for future in others) == 2)
        refused = [future.result() for future in others if future.done()]
        assert [answer.status_code for answer in refused] == [503, 503]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        gate.open()
        assert first.result().status_code == 200
        assert sorted(future.result().status_code for future in others) == [200, 503, 503]


def test_a_request_waits_for_a_cold_start_and_the_next_one_for_the_next(client: httpx.Client) -> None:
    url = url_of(functions.from_zero)
    first = client.get(url).json()
    assert client.get(url).json() == first
    wait_until(lambda: functions.from_zero.get_current_stats().num_total_runners == 0)
    assert client.get(url).json() != first


def test_a_request_waits_for_enter_hooks(client: httpx.Client) -> None:
    url = url_of(functions.SlowStart().late)
    with crowd(3) as get:
        asked = [get(url) for _ in range(3)]
        Path(os.environ[GATE]).touch()
        assert [future.result().json() for future in asked] == ["here at last"] * 3


# ---------------------------------------------------------------- what goes wrong


def test_a_timeout_is_504(client: httpx.Client, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    answer = client.get(url_of(functions.hasty) + "wait", params={"path": str(marker)})
    assert answer.status_code == 504
    wait_for_line(marker, "CancelledError")


def test_an_exception_is_500_and_its_traceback_in_the_log(client: httpx.Client, site: str) -> None:
    answer = client.get(site + "boom")
    assert answer.status_code == 500
    assert "boiler" not in answer.text
    assert client.get(site + "file/1").json() == "1", "the container goes on"

    def logged() -> str:
        command = [sys.executable, "-m", "kedge.cli.main", "logs", "quay", "--tail", "500"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.stdout

    wait_until(lambda: "the boiler has burst" in logged(), logged())
    assert "Traceback" in logged()


def test_a_body_that_breaks_off_is_no_whole_one(client: httpx.Client, site: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(site + "halfway")
    assert client.get(site + "file/1").json() == "1"


def test_an_app_that_cannot_start_is_500_without_its_secrets(client: httpx.Client) -> None:
    answer = client.get(url_of(functions.Leaking().never))
    assert answer.status_code == 500
    assert "start" in answer.text
    assert "secret" not in answer.text


def test_a_get_whose_container_died_is_asked_once_more(client: httpx.Client, site: str, tmp_path: Path) -> None:
    marker = tmp_path / "died"
    assert client.get(site + "die", params={"path": str(marker)}).json() == "survived"
    assert len(lines_of(marker)) == 1
    always = tmp_path / "always"
    assert client.get(site + "die", params={"path": str(always), "always": True}).status_code == 502
    assert len(lines_of(always)) == 2


def test_a_post_whose_container_died_is_502_and_never_repeated(client: httpx.Client, site: str, tmp_path: Path) -> None:
    marker = tmp_path / "died"
    answer = client.post(site + "die", params={"path": str(marker)}, content=b"x")
    assert answer.status_code == 502
    assert len(lines_of(marker)) == 1
    assert client.get(site + "file/1").json() == "1"


def test_other_functions_do_not_notice_that_a_container_died(site: str, tmp_path: Path, gate: Gate) -> None:
    with crowd(4) as get:
        elsewhere = get(url_of(functions.ten_slots) + "gate", params={"path": gate.name})
        gate.wait(1)
        assert get(site + "die", params={"path": str(tmp_path / "x"), "always": True}).result().status_code == 502
        gate.open()
        assert elsewhere.result().status_code == 200


@pytest.mark.parametrize(
    ("function", "error"),
    [(functions.site, "CancelledError"), (functions.wsgi_site, "InputCancellation")],
    ids=["asgi", "wsgi"],
)
def test_a_client_that_goes_away_cancels_its_handler(
    function: kedge.Function[..., Any], error: str, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    with Raw(url_of(function)) as raw:
        raw.send(f"GET {{path}}wait?path={marker} HTTP/1.1\r\nHost: {{host}}\r\n\r\n")
        wait_for_line(marker, "started")
    wait_for_line(marker, error)


# ---------------------------------------------------------------- curl


def curl(*arguments: str) -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--silent", "--show-error", "--max-time", "60", "--noproxy", "*", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl_waits_for_100_continue_before_a_large_body(site: str, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(os.urandom(2_000_000))
    said = tmp_path / "said"
    out = curl("--data-binary", f"@{file}", "-H", "Expect: 100-continue", "-D", str(said), site + "echo")
    assert '"size":2000000' in out
    assert hashlib.sha256(file.read_bytes()).hexdigest() in out
    assert said.read_text().startswith("HTTP/1.1 100")


def test_curl_resolves_names_under_localhost(site: str) -> None:
    parts = urlsplit(site)
    label = parts.path.strip("/")
    assert curl(f"http://{label}.localhost:{parts.port}/") == "<h1>quay</h1>"
    assert curl("--http1.0", site) == "<h1>quay</h1>"
    assert curl("--http2", site) == "<h1>quay</h1>", "an offer of HTTP/2 is declined"
    assert curl("-I", url_of(functions.wsgi_site)).startswith("HTTP/1.1 200")


def test_many_clients_at_once_each_get_their_own_answer(site: str) -> None:
    def ask(n: int) -> list[str]:
        with http() as client:
            return [client.get(f"{site}file/{n}-{i}").json() for i in range(20)]

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(32)))
    assert answers == [[f"{n}-{i}" for i in range(20)] for n in range(32)]


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
@pytest.mark.parametrize("connections", [1, 100])
def test_every_request_of_a_load_is_answered(site: str, connections: int) -> None:
    load = wrk(site, connections, 2)
    assert load.failed == 0
    assert load.rate > 0
