"""`kedge server start|stop|restart|status`: the machine's server, which outlives programs."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import psutil

from kedge.cli import asking, serverfacts
from kedge.cli.progress import Statistics, busy_pools, containers, label, number, plural, seconds
from kedge.exception import AuthError, ConnectionError, Error
from kedge.model.ids import app_of
from kedge.model.protocol import ServerRequested, StatisticsRequested
from kedge.sdk import server_options, server_process
from kedge.sdk.client import Client

STOP_S = 40.0
"""Seconds until a server must have ended: it gives web requests 5 for their answers, and containers 10 for their exit
hooks."""
ANSWER_S = 10.0
_LOOK_S = 0.05


def start(options: Sequence[str], foreground: bool = False, reset: bool = False) -> int:
    """Starts the machine's server, unless it runs. Without `reset`, options of the last start that are not given now
    hold on."""
    note_elsewhere()
    client = _own()
    if client is not None:
        client.close()
        click.echo(f"A server is running already at {client.address}.")
        if options or reset:
            click.echo(
                "It goes on with its own options; `kedge server restart` with these ones changes them.", err=True
            )
        return 0
    before = [] if reset else server_options.load(server_process.home())
    words = server_options.merged(before, options)
    if foreground:
        _become(words)
    try:
        _introduce(server_process.ServerProcess(private=False, options=words).facts)
    except ConnectionError as error:
        if words == list(options):
            raise
        raise ConnectionError(f"{error}\n{_options(words)}; `kedge server start --reset` begins anew") from error
    return 0


def stop() -> int:
    """Ends the machine's server and all that runs on it."""
    note_elsewhere()
    process = _process()
    if process is None:
        click.echo("No server is running.")
        return 0
    try:
        _end(process)
    except _Stuck as stuck:
        click.echo(stuck, err=True)
        return 1
    click.echo("The server has ended.")
    return 0


def restart(options: Sequence[str], reset: bool = False) -> int:
    """Ends it and starts it again, with the options that it had unless others are given. What is seen to be wrong with
    them is said before anything ends."""
    process, facts = _process(), _published()
    if process is None:
        return start(options, reset=reset)
    note_elsewhere()
    if facts.get("foreground"):
        click.echo(
            f"Error: process {process.pid} runs in the foreground, so whoever started it must start it again "
            "(`systemctl --user restart kedge`, where it was systemd).",
            err=True,
        )
        return 1
    before: list[str] = facts.get("options", [])
    words = server_options.merged([] if reset else before, options)
    wrong = _wrong(words, process.pid)
    if wrong:
        click.echo(f"Error: the server was not restarted, and goes on as it was: {wrong}", err=True)
        return 1
    try:
        _introduce(server_process.ServerProcess(private=False, options=words, ending=lambda: _end(process)).facts)
    except _Stuck as stuck:
        click.echo(stuck, err=True)
        return 1
    except Error as error:
        if _runs(process):
            click.echo(f"Error: the server was not restarted, and goes on as it was: {error}", err=True)
            return 1
        return _go_back(before, error)
    return 0


def _wrong(options: Sequence[str], process: int) -> str:
    """What keeps a server with these options from taking the place of `process`; empty for nothing that can be seen
    before. It is asked where it would run: paths and variables mean the same then."""
    home = server_process.home()
    try:
        checked = subprocess.run(
            [*command(options, foreground=False), "--check", str(process)],
            cwd=home,
            env=server_process.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=server_process.START_S,
        )
    except subprocess.TimeoutExpired:
        return f"whether it could start was not known after {server_process.START_S:g} s"
    return (checked.stderr.strip().removeprefix("kedge-server: ") or "it does not start") if checked.returncode else ""


def _go_back(options: Sequence[str], error: Error) -> int:
    """The new server did not come up: the machine gets the one that it had."""
    click.echo(f"Error: {error}", err=True)
    try:
        facts = server_process.ServerProcess(private=False, options=options).facts
    except Error as again:
        click.echo(f"Error: it does not come up as it was before either: {again}", err=True)
        return 1
    click.echo("So it was started again as it was before.", err=True)
    _introduce(facts)
    return 1


def status(as_json: bool = False) -> int:
    """Says what runs. The exit code is 1 where no server does."""
    client = asking.find()
    if client is None:
        if as_json:
            click.echo(json.dumps({"running": False}))
        else:
            click.echo(
                "No server is running. `kedge run` starts one for its own time; `kedge server start` one that stays."
            )
            remembered = server_options.load(server_process.home())
            if remembered:
                click.echo(f"The next one has the options of the last one: {shlex.join(remembered)}.")
        return 1
    try:
        facts: dict[str, Any] = client.request(ServerRequested, ANSWER_S)
        statistics: Statistics = client.request(StatisticsRequested, ANSWER_S)
    finally:
        client.close()
    published = _published()
    if facts["process"] != published.get("process"):
        published = {}
    if as_json:
        more = {"log_file": published.get("log_file", ""), "options": published.get("options", [])}
        click.echo(json.dumps({"running": True, **facts, **more, "pools": statistics["pools"]}))
        return 0
    click.echo(f"The server listens at {client.address}.")
    if facts["web"]:
        click.echo(f"Web functions answer at {facts['web']}.")
    if facts["tcp"]:
        click.echo(f"Other machines connect to {facts['tcp']}.")
    memory = number(facts["memory_bytes"] / 2**20)
    click.echo(f"Process {facts['process']}, {memory} MiB, up for {seconds(facts['up_s'])}, kedge {facts['version']}.")
    if published.get("options"):
        click.echo(f"{_options(published['options'])}. They hold until `kedge server restart --reset`.")
    click.echo(f"{plural(sum(facts['apps'].values()), 'app')}, {plural(statistics['containers'], 'container')}.")
    for pool in busy_pools(statistics["pools"]):
        done = f"{number(pool['finished'])} of {plural(pool['submitted'], 'input')}"
        app = app_of(pool["pool"])
        click.echo(f"  {facts['deployments'].get(app, app)} {label(pool)}: {containers(pool)}, {done}")
    for line in serverfacts.lines(facts):
        click.echo(line)
    return 0


def command(options: Sequence[str], foreground: bool) -> list[str]:
    """The command line of the machine's server."""
    home = server_process.home()
    words = [sys.executable, "-P", "-m", "kedge.server.main", "--home", home]
    words += ["--log-file", server_process.machine_log(home), *options]
    return [*words, "--foreground"] if foreground else words


def note_elsewhere() -> None:
    """Commands about the server of this machine, typed by somebody whose other commands mean another one."""
    try:
        other = server_process.elsewhere()
    except Error:
        return
    if other is not None:
        click.echo(
            f"Note: this is about the server of this machine; that at {other.address} ({other.named} names it) is "
            "looked after where it runs.",
            err=True,
        )


def _options(words: Sequence[str]) -> str:
    return f"Its options: {shlex.join(words)}"


def _become(options: Sequence[str]) -> NoReturn:
    """This process is the server from now on: whoever watches it watches the server."""
    words = command(options, foreground=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(words[0], words, server_process.environment())


def _introduce(facts: dict[str, Any]) -> None:
    click.echo(f"The server listens at {facts['address']}, and for HTTP at {facts['web']}.")
    if facts["tcp"]:
        click.echo(f"Other machines connect to {facts['tcp']}, with a token (`kedge token create`).")
    for note in facts["notes"]:
        click.echo(f"Note: {note}.", err=True)
    click.echo("`kedge deploy` and `kedge run` use it; `kedge server stop` ends it.")


def _own() -> Client | None:
    """A connection to the server of this machine, whatever other one variables and profiles name."""
    found = server_process.find(server_process.home())
    if found is None:
        return None
    try:
        return Client.connect(found.address, found.token)
    except (ConnectionError, AuthError):
        return None


def _published() -> dict[str, Any]:
    """What the server of this machine wrote down when it started; nothing where there is none."""
    path = Path(server_process.home()) / "server" / "server.json"
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _process() -> psutil.Process | None:
    """The machine's server; None where there is none, or where its number belongs to another program by now."""
    try:
        process = psutil.Process(_published()["process"])
        return process if any("kedge.server" in part for part in process.cmdline()) else None
    except (ValueError, KeyError, TypeError, psutil.Error):
        return None


class _Stuck(Exception):
    """What to say where a server does not end."""


def _end(process: psutil.Process) -> None:
    """Ends it in order; _Stuck where that takes too long."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGTERM)
    give_up = time.monotonic() + STOP_S
    while _runs(process):
        if time.monotonic() > give_up:
            raise _Stuck(
                f"Error: process {process.pid} has not ended within {STOP_S:g} s; `kill -9 {process.pid}` ends it and "
                "all that runs on it, and loses nothing that is on disk."
            )
        time.sleep(_LOOK_S)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
