"""The commands `kedge profile` and `kedge config`: which servers there are, and which one is meant."""

from __future__ import annotations

import os

import click

from kedge.cli.outcome import finish

VARIABLES = (
    "KEDGE_CONFIG",
    "KEDGE_PROFILE",
    "KEDGE_SERVER",
    "KEDGE_TOKEN",
    "KEDGE_TLS_CA",
    "KEDGE_ENVIRONMENT",
    "KEDGE_HOME",
)


@click.group("profile")
def profile() -> None:
    """Servers by name, in ~/.config/kedge.toml."""


@profile.command("list")
def profile_list() -> None:
    """Show the profiles; the one in use has a star."""

    def show() -> None:
        from kedge.sdk import config

        found, chosen = config.load(), config.profile()
        if not found.profiles:
            click.echo(
                f'There is no profile. One looks like this, in {found.path}:\n\n    [profile.box]\n    server = "tcp://'
                'HOST:5335"\n    token = "…"'
            )
        for name, entry in found.profiles.items():
            star = "*" if chosen is not None and chosen.name == name else " "
            click.echo(f"{star} {name}  {entry.server or 'the server of this machine'}")

    finish(show)


@profile.command("current")
def profile_current() -> None:
    """Say which profile is in use."""

    def show() -> int:
        from kedge.sdk import config

        chosen = config.profile()
        if chosen is None:
            click.echo("No profile is in use; programs use the server of this machine.", err=True)
            return 1
        click.echo(chosen.name)
        return 0

    finish(show)


@profile.command("activate")
@click.option("--none", "nothing", is_flag=True, help="Use no profile from now on.")
@click.argument("name", required=False, default="")
def profile_activate(name: str, nothing: bool) -> None:
    """Use a profile from now on."""
    if bool(name) == nothing:
        raise click.UsageError("name a profile, or write --none.")

    def activate() -> None:
        from kedge.sdk import config

        path = config.activate(name)
        click.echo(f"{f'The profile {name} is' if name else 'No profile is'} in use from now on ({path}).")
        if os.environ.get("KEDGE_PROFILE") or os.environ.get("KEDGE_SERVER"):
            click.echo("Not in this shell: KEDGE_PROFILE or KEDGE_SERVER is set and goes before it.", err=True)

    finish(activate)


@click.group("config")
def configuration() -> None:
    """What programs and commands go by."""


@configuration.command("show")
def config_show() -> None:
    """Show the configuration in use, and where it comes from. Tokens are masked."""

    def show() -> None:
        from kedge.sdk import config, server_process

        found, chosen = config.load(), config.profile()
        there = "" if os.path.exists(found.path) else " (there is none)"
        click.echo(f"file         {found.path}{there}")
        click.echo(f"profile      {chosen.name if chosen is not None else '(none)'}")
        server = server_process.find()
        if server is None:
            click.echo("server       (none runs on this machine)")
        else:
            click.echo(f"server       {server.address}, by {server.named or 'this machine'}")
            if server.named:
                click.echo(f"token        {config.masked(server.token) or '(none)'}")
                click.echo(f"TLS          {f'checked against {server.tls_ca}' if server.tls_ca else '(none)'}")
        click.echo(f"environment  {config.environment()}")
        click.echo(f"state        {server_process.home()}")
        for name in VARIABLES:
            value = os.environ.get(name)
            if value:
                click.echo(f"variable     {name}={config.masked(value) if name == 'KEDGE_TOKEN' else value}")

    finish(show)
