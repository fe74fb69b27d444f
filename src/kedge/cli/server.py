"""`kedge server` and `kedge app`: the machine's server, which outlives programs, and the apps that were left on it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import click
import psutil

from kedge.cli.progress import Statistics, busy_pools, containers, label, number, plural, seconds
from kedge.exception import AuthError, ConnectionError
from kedge.model.ids import app_of
from kedge.model.protocol import AppStopped, StatisticsRequested
from kedge.sdk import server_process
from kedge.sdk.client import Client

STOP_S = 20.0
"""Seconds until a server must have ended: it gives containers 10 for their exit hooks."""
ANSWER_S = 10.0
_LOOK_S = 0.05


def start() -> int:
    """Starts the machine's server, unless it runs."""
    client = _connect()
    if client is not None:
        client.close()
        click.echo(f"A server is running already at {client.address}.")
        return 0
    started = server_process.ServerProcess(private=False)
    click.echo(f"The server listens at {started.address.address}. `kedge run` uses it; `kedge server stop` ends it.")
    return 0


def status() -> int:
    """Says what runs. The exit code is 1 where no server does."""
    client = _connect()
    if client is None:
        click.echo(
            "No server is running. `kedge run` starts one for its own time; `kedge server start` one that stays."
        )
        return 1
    try:
        facts: Statistics = client.request(lambda request: StatisticsRequested(request), ANSWER_S)
    finally:
        client.close()
    click.echo(f"The server listens at {client.address}.")
    process = _process()
    if process is not None:
        memory, up = process.memory_info().rss / 2**20, time.time() - process.create_time()
        click.echo(f"Process {process.pid}, {number(memory)} MiB, up for {seconds(up)}.")
    click.echo(f"{plural(facts['apps'], 'app')}, {plural(facts['containers'], 'container')}.")
    for pool in busy_pools(facts["pools"]):
        done = f"{number(pool['finished'])} of {plural(pool['submitted'], 'input')}"
        click.echo(f"  {app_of(pool['pool'])} {label(pool)}: {containers(pool)}, {done}")
    return 0


def stop() -> int:
    """Ends the machine's server and all that runs on it."""
    process = _process()
    if process is None:
        click.echo("No server is running.")
        return 0
    process.send_signal(signal.SIGTERM)
    give_up = time.monotonic() + STOP_S
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > give_up:
            click.echo(f"Error: process {process.pid} has not ended within {STOP_S:g} s.", err=True)
            return 1
        time.sleep(_LOOK_S)
    click.echo("The server has ended.")
    return 0


def stop_app(app: str) -> int:
    """Ends an app that was left running."""
    client = _connect()
    if client is None:
        click.echo("Error: no server is running, so no app is either.", err=True)
        return 1
    try:
        answer = client.request(lambda request: AppStopped(app, request, "stopped by `kedge app stop`"), 3 * STOP_S)
    finally:
        client.close()
    if not answer.get("known", True):
        click.echo(
            f"Error: no app {app} is running on this server; `kedge server status` shows those that are (ap-…).",
            err=True,
        )
        return 1
    click.echo(f"{app} has stopped.")
    return 0


def _connect() -> Client | None:
    found = server_process.find()
    if found is None:
        return None
    try:
        return Client.connect(found.address, found.token)
    except (ConnectionError, AuthError):
        if os.environ.get("KEDGE_SERVER"):
            raise
        return None


def _process() -> psutil.Process | None:
    """The machine's server; None where there is none, or where its number belongs to another program by now."""
    path = Path(server_process.home()) / "server" / "server.json"
    try:
        process = psutil.Process(json.loads(path.read_text())["process"])
        return process if any("kedge.server" in part for part in process.cmdline()) else None
    except (OSError, ValueError, KeyError, psutil.Error):
        return None
