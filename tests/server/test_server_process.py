"""`kedge server` with the real process: where it listens, who supervises it, what it needs at rest and says in its
log."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import ssl
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from kedge.sdk import server_process
from tests.e2e.commands import LONG, Place, eventually, place
from tests.wire.test_tls import CA, CERTIFICATES

pytestmark = pytest.mark.slow

TLS = ("--tls-cert", str(CERTIFICATES / "server.pem"), "--tls-key", str(CERTIFICATES / "server.key"))


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path) as made:
        yield made


def home(here: Place) -> Path:
    return Path(here.variables["KEDGE_HOME"])


def facts(here: Place) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home(here) / "server" / "server.json").read_text())
    return found


def published(here: Place) -> dict[str, Any]:
    """Its facts; nothing where no server is up."""
    try:
        return facts(here)
    except FileNotFoundError:
        return {}


def log_of(here: Place) -> str:
    return (home(here) / "logs" / "server.log").read_text()


# ---------------------------------------------------------------- start, status, logs, restart, stop


def test_one_server_in_the_background_from_start_to_stop(here: Place) -> None:
    started = here.kedge("server", "start", "--port", "0", "--gpus", "H100=2")
    where = facts(here)
    assert f"The server listens at {where['address']}, and for HTTP at {where['web']}." in started.stdout
    again = here.kedge("server", "start", "--port", "1")
    assert again.stdout == f"A server is running already at {where['address']}.\n"
    assert "It goes on with its own options" in again.stderr

    status = here.kedge("server", "status").stdout
    assert f"Web functions answer at {where['web']}." in status
    assert f"Process {where['process']}, " in status
    told = json.loads(here.kedge("server", "status", "--json").stdout)
    assert (told["running"], told["process"], told["web"]) == (True, where["process"], where["web"])
    assert told["log_file"] == str(home(here) / "logs" / "server.log")
    assert told["machines"][0]["gpus"]["H100"]["count"] == 2

    assert f"listens at {where['address']}" in here.kedge("server", "logs").stdout
    assert here.kedge("server", "logs", "-n", "0").stdout == ""
    with here.running("server", "logs", "-f", "-n", "1") as following:
        following.says("listens at")
        here.kedge("server", "restart")
        following.says("the server ends")
        following.says("listens at", times=2)
    assert facts(here)["process"] != where["process"]
    assert facts(here)["options"] == ["--port", "0", "--gpus", "H100=2"], "as it was started"
    here.kedge("server", "restart", "--cpus", "1", "--port", "0")
    assert facts(here)["options"] == ["--port", "0", "--cpus", "1", "--gpus", "H100=2"], "one by one"
    told = here.kedge("server", "status")
    assert (
        "Its options: --port 0 --cpus 1 --gpus H100=2. They hold until `kedge server restart --reset`." in told.stdout
    )
    here.kedge("server", "restart", "--reset", "--port", "0")
    assert facts(here)["options"] == ["--port", "0"]

    assert here.kedge("server", "stop").stdout == "The server has ended.\n"
    assert json.loads(here.kedge("server", "status", "--json", code=1).stdout) == {"running": False}
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home(here) / "logs").iterdir()}
    assert set(modes.values()) == {0o600}


def test_a_server_that_cannot_start_says_why(here: Place) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        refused = here.kedge("server", "start", "--port", port, code=1)
        assert (
            f"could not start: [Errno 98] cannot listen on 127.0.0.1, port {port}: Address already in use"
            in refused.stderr
        )
        refused = here.kedge("server", "start", "--port", "0", "--rpc-port", port, code=1)
        assert "could not start: " in refused.stderr
        assert "address already in use" in refused.stderr.lower()
    refused = here.kedge("server", "start", "--host", "0.0.0.0", code=1)
    assert "give --tls-cert and --tls-key, or --insecure" in refused.stderr
    assert "No server is running" in here.kedge("server", "status", code=1).stdout
    assert not (home(here) / "server" / "server.json").exists()


def test_a_restart_with_wrong_options_leaves_the_server_as_it_was(here: Place) -> None:
    here.kedge("server", "start", "--port", "0")
    before = facts(here)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        for options, words in (
            (("--port", "99999"), "--port is '99999'; it must be a port"),
            (("--host", "0.0.0.0"), "give --tls-cert and --tls-key, or --insecure"),
            (("--tls-cert", "nope.pem"), "there is no such file"),
            (("--tls-cert", CA, "--tls-key", CA), "are no certificate with its key"),
            (("--port", port), f"cannot listen on 127.0.0.1, port {port}: Address already in use"),
            (("--rpc-port", port), f"cannot listen on 127.0.0.1, port {port}: Address already in use"),
        ):
            refused = here.kedge("server", "restart", *options, code=1)
            assert "Error: the server was not restarted, and goes on as it was: " in refused.stderr
            assert words in refused.stderr
    refused = here.kedge("server", "restart", code=1, KEDGE_RPC_PORT="many")
    assert "KEDGE_RPC_PORT (or --rpc-port) is 'many'" in refused.stderr
    assert facts(here) == before
    own = before["web"].rpartition(":")[2]
    here.kedge("server", "restart", "--port", own)
    assert facts(here)["web"] == before["web"], "the port that it has itself is not taken"


def test_a_server_runs_until_the_next_one_is_loaded(here: Place) -> None:
    here.kedge("server", "start", "--port", "0")
    before, beside = psutil.Process(facts(here)["process"]), []

    def look() -> None:
        assert before.is_running()
        beside[:] = [one for one in psutil.Process().children() if "--successor" in one.cmdline()]

    def refuse() -> None:
        look()
        raise ValueError("it does not end")

    def end() -> None:
        look()
        before.terminate()
        eventually(lambda: not published(here))

    def start(ending: Callable[[], None]) -> server_process.ServerProcess:
        return server_process.ServerProcess(
            private=False, directory=str(home(here)), options=["--port", "0"], ending=ending
        )

    with pytest.raises(ValueError, match="it does not end"):
        start(refuse)
    assert len(beside) == 1
    eventually(lambda: not beside[0].is_running() or beside[0].status() == psutil.STATUS_ZOMBIE)
    assert facts(here)["process"] == before.pid, "it goes on"
    after = start(end)
    assert after.facts["address"] == facts(here)["address"]
    assert [one.pid for one in beside] == [facts(here)["process"]]


def test_a_server_that_does_not_come_up_after_all_is_started_as_it_was(here: Place) -> None:
    here.kedge("server", "start", "--port", "0")
    own = facts(here)["web"].rpartition(":")[2]
    # Both ports are its own, so each of them is free; together they are one too many.
    failed = here.kedge("server", "restart", "--port", own, "--rpc-port", own, code=1)
    assert "Error: the kedge server could not start: " in failed.stderr
    assert "So it was started again as it was before." in failed.stderr
    assert facts(here)["options"] == ["--port", "0"]
    here.kedge("server", "status")


def test_options_outlive_a_server_that_was_killed(here: Place) -> None:
    here.write("app.py", WEB_APP)
    here.kedge("server", "start", "--port", "0", "--gpus", "H100=2")
    os.kill(facts(here)["process"], signal.SIGKILL)
    eventually(lambda: server_gone(here))
    told = here.kedge("server", "status", code=1).stdout
    assert "The next one has the options of the last one: --port 0 --gpus H100=2." in told
    here.kedge("deploy", "app.py")
    assert facts(here)["options"] == ["--port", "0", "--gpus", "H100=2"]
    kept = home(here) / "server" / "options.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    here.kedge("server", "stop")
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        refused = here.kedge("server", "start", "--port", port, code=1)
    assert f"Its options: --port {port} --gpus H100=2; `kedge server start --reset` begins anew" in refused.stderr
    assert json.loads(kept.read_text()) == ["--port", "0", "--gpus", "H100=2"], "what does not start is not kept"
    here.kedge("server", "start", "--reset", "--port", "0")
    assert facts(here)["options"] == ["--port", "0"]


def server_gone(here: Place) -> bool:
    process = facts(here)["process"]
    return not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE


def test_what_is_far_away_is_looked_after_there(here: Place) -> None:
    here.kedge("server", "start", "--port", "0", "--rpc-port", "0")
    here.write("app.py", SPEAKING_APP)
    where = facts(here)
    near = {"KEDGE_SERVER": where["tcp"], "KEDGE_TOKEN": where["token"]}
    assert "`kedge app logs speaking` shows what it prints." in here.kedge("deploy", "app.py", **near).stdout
    far = {**near, "KEDGE_HOME": str(here.directory / "laptop")}
    deployed = here.kedge("deploy", "app.py", **far).stdout
    assert "`kedge app logs speaking`, where the server runs, shows what it prints." in " ".join(deployed.split())
    refused = here.kedge("app", "logs", "speaking", code=1, **far)
    assert f"logs are read where the server runs, and KEDGE_SERVER names one at {where['tcp']}" in refused.stderr
    stopped = here.kedge("server", "stop", **far)
    assert stopped.stdout == "No server is running.\n"
    assert f"Note: this is about the server of this machine; that at {where['tcp']}" in stopped.stderr
    config = here.directory / "box.toml"
    for token, words in (("wrong", "that of the profile 'box'"), ("", "missing: the profile 'box' has none")):
        config.write_text(f'active = "box"\n[profile.box]\nserver = "{where["tcp"]}"\ntoken = "{token}"\n')
        for command in (("app", "list"), ("deploy", "app.py")):
            refused = here.kedge(*command, code=1, KEDGE_CONFIG=str(config))
            assert f"; the token is {words}" in refused.stderr
    laptop = Place(here.directory, {**here.variables, **far})
    with laptop.running("deploy", "app.py", "--stream-logs") as deploying:
        deploying.says("Deployed")
        eventually(lambda: laptop.program(SPEAK) and "spoken spoken" in deploying.output)


def test_settings_of_a_server_may_stand_beside_the_profiles(here: Place, tmp_path: Path) -> None:
    config = tmp_path / "kedge.toml"
    config.write_text(
        '[server]\nport = 0\nresult_ttl = 60\ndomain = "apps.example"\n[profile.x]\nserver = "tcp://x:1"\n'
    )
    started = here.kedge("server", "start", KEDGE_CONFIG=str(config))
    assert "The server listens at" in started.stdout
    assert facts(here)["web_domain"].startswith("apps.example:")
    config.write_text("[server]\nprot = 1\n")
    refused = here.kedge("server", "restart", KEDGE_CONFIG=str(config), code=1)
    assert "[server] has no key 'prot'" in refused.stderr


# ---------------------------------------------------------------- beyond this machine


def test_other_machines_come_in_over_tls_with_a_token(here: Place) -> None:
    here.write("app.py", WEB_APP)
    here.kedge("server", "start", "--port", "0", "--rpc-port", "0", *TLS)
    where = facts(here)
    assert where["web"].startswith("https://127.0.0.1:")
    assert where["tcp"].startswith("tcps://127.0.0.1:")
    here.kedge("deploy", "app.py")
    context = ssl.create_default_context(cafile=CA)
    with urllib.request.urlopen(f"{where['web']}/guarded-web/", context=context, timeout=LONG) as answer:
        assert answer.read() == b"hello"
    with pytest.raises(OSError, match="certificate verify failed"):
        urllib.request.urlopen(f"{where['web']}/guarded-web/", timeout=LONG)

    call = "import kedge; print(kedge.Function.from_name('guarded', 'double').remote('x'))"
    remote = {"KEDGE_SERVER": where["tcp"], "KEDGE_TOKEN": where["token"], "KEDGE_TLS_CA": CA}
    assert here.program(call, **remote) == "xx\n"
    wrong = here.python("-c", call, code=1, **{**remote, "KEDGE_TOKEN": "wrong"})
    assert "wrong token" in wrong.stderr
    plain = {**remote, "KEDGE_SERVER": where["tcp"].replace("tcps", "tcp"), "KEDGE_TLS_CA": ""}
    assert "where it has TLS, write tcps://" in here.python("-c", call, code=1, **plain).stderr


def test_an_insecure_server_says_so(here: Place) -> None:
    started = here.kedge("server", "start", "--host", "0.0.0.0", "--insecure", "--port", "0", "--rpc-port", "0")
    assert "Note: 0.0.0.0 can be reached from other machines, and tokens and payloads travel" in started.stderr
    assert "with a token (`kedge token create`)" in started.stdout
    assert "tokens and payloads travel in clear text" in log_of(here)


# ---------------------------------------------------------------- supervisors


def test_in_the_foreground_it_tells_systemd_and_ends_with_a_signal(here: Place, tmp_path: Path) -> None:
    notices = tmp_path / "notify"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
        sock.bind(str(notices))
        sock.settimeout(LONG)
        command = [sys.executable, "-P", "-m", "kedge.cli.main", "server", "start", "--foreground", "--port", "0"]
        variables = {**here.variables, "NOTIFY_SOCKET": str(notices)}
        with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert sock.recv(100) == b"READY=1"
                assert facts(here)["process"] == process.pid, "whoever started it watches the server itself"
                refused = here.kedge("server", "restart", code=1)
                assert "runs in the foreground, so whoever started it must start it again" in refused.stderr
                process.send_signal(signal.SIGTERM)
                assert sock.recv(100) == b"STOPPING=1"
                _, words = process.communicate(timeout=LONG)
            finally:
                process.kill()
    assert process.returncode == 0
    assert "listens at" in words
    assert "listens at" in log_of(here)


def test_a_unit_for_systemd_is_printed_or_installed(here: Place, tmp_path: Path) -> None:
    unit = here.kedge("server", "start", "--systemd", "--port", "8080", "--public-url", "https://a.example/%7e").stdout
    assert "Type=notify\n" in unit
    assert "Restart=on-failure\nRestartSec=500ms\n" in unit
    assert "StartLimitIntervalSec=0\n" in unit, "it is never given up"
    (command,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert command.endswith("--port 8080 --public-url https://a.example/%%7e --foreground")
    assert f"--home {home(here)} " in command
    config = tmp_path / "config"
    told = here.kedge("server", "start", "--systemd", "--install", XDG_CONFIG_HOME=str(config)).stdout
    installed = config / "systemd" / "user" / "kedge.service"
    assert f"Wrote {installed}." in told
    assert "systemctl --user enable --now kedge" in told
    assert "ExecStart=" in installed.read_text()
    assert not (home(here) / "server" / "server.json").exists(), "nothing was started"
    words = here.kedge("server", "start", "--install", code=2).stderr
    assert "--install goes with --systemd." in words


# ---------------------------------------------------------------- what it takes


SPEAKING_APP = """
import kedge

app = kedge.App("speaking")

@app.function()
def say(text):
    print(text * 2)
    return text
"""
SPEAK = "import kedge; print(kedge.Function.from_name('speaking', 'say').remote('spoken '))"

WEB_APP = """
import os, resource
import kedge

app = kedge.App("guarded")

@app.function(env={"PASSWORD": "marked-variable"}, scaledown_window=2)
@kedge.asgi_app(requires_proxy_auth=False)
def web():
    async def answer(scope, receive, send):
        body = (await receive()).get("body", b"")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-echo", b"marked-answer-header")]})
        await send({"type": "http.response.body", "body": b"hello" + body})
    return answer

@app.function(env={"PASSWORD": "marked-variable"}, scaledown_window=2)
def double(text):
    return text * 2

@app.function(scaledown_window=2)
def fail(text):
    raise ValueError(text)

@app.function(scaledown_window=2)
def files():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""


def test_at_rest_it_takes_little_memory_and_no_time(here: Place) -> None:
    here.write("app.py", WEB_APP)
    here.kedge("server", "start", "--port", "0")
    here.kedge("deploy", "app.py")
    process = psutil.Process(facts(here)["process"])
    eventually(lambda: len(process.children(recursive=True)) <= 3)
    assert process.memory_info().rss < 60 * 2**20
    before, used = process.num_ctx_switches().voluntary, sum(process.cpu_times()[:2])
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(["sleep", "60"], timeout=3, check=False)
    assert process.num_ctx_switches().voluntary - before < 30
    assert sum(process.cpu_times()[:2]) - used <= 0.05


def test_what_few_servers_need_is_not_loaded_at_start() -> None:
    heavy = ["aiohttp", "cronsim", "websockets", "fastapi", "kedge.server.ingress", "rich", "zoneinfo"]
    code = f"import sys, kedge.server.main; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_it_may_open_many_files_and_containers_as_many_as_anybody(here: Place) -> None:
    here.write("app.py", WEB_APP)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        soft = hard - 1
    code = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
    code += "os.execv(sys.executable, [sys.executable, '-P', '-m', 'kedge.cli.main', 'deploy', 'app.py'])"
    here.python("-c", code)
    process = psutil.Process(facts(here)["process"])
    assert process.rlimit(psutil.RLIMIT_NOFILE) == (hard, hard)
    call = "import kedge; print(kedge.Function.from_name('guarded', 'files').remote())"
    assert int(here.program(call)) == soft


# ---------------------------------------------------------------- what it says


def test_no_secret_and_no_payload_is_in_the_log_of_a_server_that_says_all_it_can(here: Place) -> None:
    here.write("app.py", WEB_APP.replace("requires_proxy_auth=False", "requires_proxy_auth=True"))
    here.kedge("server", "start", "--port", "0", "--rpc-port", "0", "--log-level", "debug")
    where = facts(here)
    here.kedge("deploy", "app.py")
    made = [
        json.loads(here.kedge("token", "create", "--json", *words).stdout)
        for words in (["laptop"], ["--proxy", "page"])
    ]
    api, proxy = made
    call = (
        "import kedge, sys\n"
        "double = kedge.Function.from_name('guarded', 'double')\n"
        "assert double.remote('marked-argument') == 'marked-argument' * 2\n"
        "assert double.spawn('marked-spawned').get() == 'marked-spawned' * 2\n"
        "try:\n    kedge.Function.from_name('guarded', 'fail').remote('marked-exception')\n"
        "except ValueError as error:\n    assert 'marked-exception' in str(error)\n"
    )
    here.program(call)
    here.program(call, KEDGE_SERVER=where["tcp"], KEDGE_TOKEN=f"{api['id']}.{api['secret']}")
    here.python("-c", call, code=1, KEDGE_SERVER=where["tcp"], KEDGE_TOKEN="marked-wrong-token")
    keys = {"Kedge-Key": proxy["id"], "Kedge-Secret": proxy["secret"]}
    url = f"{where['web']}/guarded-web/?token=marked-query"
    others = {"Authorization": "Bearer marked-header", "Cookie": "session=marked-cookie"}
    request = urllib.request.Request(url, b"marked-body", {**keys, **others})
    with urllib.request.urlopen(request, timeout=LONG) as answer:
        assert answer.read() == b"hellomarked-body"
    request = urllib.request.Request(url, b"marked-body", {**keys, **others, "Kedge-Secret": "marked-wrong-secret"})
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(request, timeout=LONG)
    refused.value.close()
    os.kill(where["process"], signal.SIGKILL)
    here.kedge("server", "start", "--port", "0", "--log-level", "debug")
    here.kedge("server", "stop")
    log = log_of(here)
    assert "DEBUG" in log or "INFO" in log
    assert "marked-" not in log
    assert where["token"] not in log
    assert all(one["secret"] not in log for one in made)
