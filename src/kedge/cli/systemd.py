"""`kedge server start --systemd`: a unit that starts the server with its user's session, or with the machine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from kedge.cli.server import command
from kedge.sdk import server_process

NAME = "kedge.service"
UNIT = """\
[Unit]
Description=kedge server
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
WorkingDirectory={home}
{environment}Restart=on-failure
RestartSec=500ms
KillMode=mixed
Delegate=yes
TimeoutStopSec=40

[Install]
WantedBy=default.target
"""


def unit(options: Sequence[str], install: bool) -> int:
    """Prints the unit, or puts it where systemd finds those of this user."""
    text = UNIT.format(
        command=" ".join(_quoted(word) for word in command(options, foreground=True)),
        home=server_process.home().replace("%", "%%"),
        environment="".join(f"Environment={_quoted(f'{name}={value}')}\n" for name, value in _environment()),
    )
    if not install:
        click.echo(text, nl=False)
        return 0
    directory = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"
    path = directory / NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        click.echo(f"Error: {path} cannot be written: {error}", err=True)
        return 1
    click.echo(f"Wrote {path}. Then:")
    click.echo("    systemctl --user daemon-reload && systemctl --user enable --now kedge")
    click.echo("    loginctl enable-linger    # also while nobody is logged in, and after a reboot")
    return 0


def _environment() -> list[tuple[str, str]]:
    """What the server needs of the variables of today: those that say where kedge itself is, and nothing secret."""
    environment = server_process.environment()
    return [(name, environment[name]) for name in ("PYTHONPATH", "KEDGE_CONFIG") if environment.get(name)]


def _quoted(word: str) -> str:
    """For systemd, which has quotes like a shell and specifiers of its own."""
    return shlex.quote(word).replace("%", "%%").replace("$", "$$")
