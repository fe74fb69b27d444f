"""The command group `kedge server`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from kedge.cli.outcome import finish

FILE = click.Path(resolve_path=True)
"""The server has another working directory."""
OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--host", metavar="HOST", help="Address to listen on for HTTP. Default: 127.0.0.1, this machine only."
    ),
    click.option("--port", metavar="PORT", help="Port for HTTP. Default: 5334, or another where that is taken."),
    click.option("--rpc-port", metavar="PORT", help="Port for clients of other machines. Default with --host: 5335."),
    click.option("--listen", metavar="tcp://HOST:PORT", help="Also listen there for clients with a token."),
    click.option("--tls-cert", metavar="FILE", type=FILE, help="Certificate chain (PEM), for HTTP and for clients."),
    click.option("--tls-key", metavar="FILE", type=FILE, help="Its private key (PEM)."),
    click.option("--insecure", is_flag=True, help="Listen beyond this machine without TLS, in a private network."),
    click.option("--domain", metavar="NAME", help="Hosts LABEL.NAME lead to web functions; several with commas."),
    click.option("--public-url", metavar="URL", help="What clients see of it behind a proxy."),
    click.option("--trust-forwarded", is_flag=True, help="Believe X-Forwarded-* headers: behind a proxy."),
    click.option(
        "--result-ttl", metavar="SECONDS", help="How long results of spawned calls are kept. Default: 7 days."
    ),
    click.option("--cpus", metavar="N", help="Cores that containers may ask for."),
    click.option("--memory", metavar="MIB", help="Memory that they may ask for."),
    click.option("--gpus", metavar="LIST", help='Declared devices, in place of found ones: "H100=8,L4=1", or none.'),
    click.option("--isolation", metavar="RUNG", help="process, namespace, bubblewrap, oci or gvisor (the best)."),
    click.option("--host-apt", is_flag=True, help="Debian packages of images are those of this machine."),
    click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error."),
]

RESET = click.option("--reset", is_flag=True, help="Forget the options of its last start.")


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def words_of(given: dict[str, Any]) -> list[str]:
    """Options as they were given, for the server's own command line."""
    words: list[str] = []
    for name, value in given.items():
        if value:
            option = f"--{name.replace('_', '-')}"
            words += [option] if value is True else [option, value]
    return words


@click.group("server")
def server() -> None:
    """The machine's server, which outlives the programs that use it."""


@server.command("start")
@server_options
@click.option("--foreground", is_flag=True, help="Stay, and write the log to stderr as well: for supervisors.")
@click.option("--systemd", is_flag=True, help="Print a unit for systemd instead.")
@click.option("--install", is_flag=True, help="With --systemd: put it where systemd finds it.")
@RESET
def server_start(foreground: bool, systemd: bool, install: bool, reset: bool, **given: Any) -> None:
    """Start it in the background, unless it runs. Options of its last start hold on: those given now go before them.

    Options may also stand under [server] in ~/.config/kedge.toml, with _ for -, or in variables (KEDGE_PORT).

    \b
        kedge server start
        kedge server start --host 0.0.0.0 --tls-cert box.pem --tls-key box.key
        kedge server start --systemd --install
    """
    if install and not systemd:
        raise click.UsageError("--install goes with --systemd.")
    words = words_of(given)
    if systemd:
        from kedge.cli import systemd as units

        finish(lambda: units.unit(words, install))
    from kedge.cli import server as commands

    finish(lambda: commands.start(words, foreground, reset))


@server.command("stop")
def server_stop() -> None:
    """End it, and everything that runs on it."""
    from kedge.cli import server as commands

    finish(commands.stop)


@server.command("restart")
@server_options
@RESET
def server_restart(reset: bool, **given: Any) -> None:
    """End it and start it again. It keeps the options that it had: those given now go before them."""
    from kedge.cli import server as commands

    words = words_of(given)
    finish(lambda: commands.restart(words, reset))


@server.command("status")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def server_status(as_json: bool) -> None:
    """Say what runs on it."""
    from kedge.cli import server as commands

    finish(lambda: commands.status(as_json))


@server.command("logs")
@click.option("-n", "--tail", metavar="N", type=click.IntRange(min=0), default=100, help="The last N lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now, until Ctrl-C.")
def server_logs(tail: int, follow: bool) -> None:
    """Show its own log. What containers print is in `kedge logs`."""
    from kedge.cli import serverlogs

    finish(lambda: serverlogs.show(tail, follow))
