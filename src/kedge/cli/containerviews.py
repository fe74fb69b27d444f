"""What `kedge container` does: asks the server, and shows what it says."""

from __future__ import annotations

from collections.abc import Sequence

import click

from kedge.cli import surroundings, tables
from kedge.cli.asking import Facts, ask, connected
from kedge.cli.choice import matching, one_of, some
from kedge.cli.tables import Column
from kedge.exception import NotFoundError, UnavailableError
from kedge.model.protocol import ContainersRequested, ContainerStopRequested
from kedge.sdk.client import Client
from kedge.sdk.usage import nearest
from kedge.wire.transport import is_tcp

NOTHING = "No container is running. Calls start them, and so do functions with min_containers."

LIST = (
    Column("container", lambda container: container["container"]),
    Column("app", lambda container: container["app_name"]),
    Column("function", lambda container: container["function"]),
    Column(
        "version", lambda container: f"v{container['version']}" if container["version"] else tables.NONE, right=True
    ),
    Column("state", lambda container: container["state"]),
    Column("running", lambda container: f"{container['inputs']}/{container['max_inputs']}", right=True),
    Column("up for", lambda container: tables.span(container["age_s"]), right=True),
    Column("process", lambda container: str(container["process"] or tables.NONE), right=True),
    Column("gpu", lambda container: _gpu(container)),
)


def show_list(app: str | None, as_json: bool) -> None:
    with connected("so no container is either") as client:
        found = _all(client)
    if app is not None:
        chosen = [container for container in found if app in (container["app_name"], container["app"])]
        ids = matching(app, [container["app"] for container in found])
        chosen = chosen or [container for container in found if container["app"] in ids]
        if found and not chosen and not as_json:
            names = list(dict.fromkeys(container["app_name"] for container in found))
            raise NotFoundError(
                f"no app {app!r} has containers.{nearest(app, names)} There are those of: {some(names)}"
            )
        found = chosen
    tables.show(found, tables.with_environment(LIST, found, None, at=2), as_json=as_json, empty=NOTHING)


def stop(text: str, force: bool) -> None:
    with connected("so no container is either") as client:
        container = find(client, text)["container"]
        ask(client, lambda request: ContainerStopRequested(request, container, not force))
    how = "has been ended" if force else "takes nothing new, and leaves when it has finished what it runs"
    print(f"{container} {how}.")


def execute(text: str, command: Sequence[str]) -> None:
    """Becomes the command. Does not return."""
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise click.UsageError("there is no command after `--`; write for example: kedge container exec ID -- bash")
    with connected("so no container is either") as client:
        refuse_elsewhere(client, "container exec")
        launch, container = entered(client, text)
    surroundings.become(command, launch, container)


def find(client: Client, text: str) -> Facts:
    """The container of this id, or a part of it."""
    return one_of(
        text, _all(client), id="container", what="container", advice="`kedge container list` shows those that run."
    )


def entered(client: Client, text: str) -> tuple[Facts, Facts]:
    """What a container was started with, and the container."""
    id = find(client, text)["container"]
    found: list[Facts] = ask(client, lambda request: ContainersRequested(request, container=id, secrets=True))
    if not found:
        raise NotFoundError(f"the container {id} has just ended")
    return found[0]["launch"], found[0]


def refuse_elsewhere(client: Client, command: str) -> None:
    if is_tcp(client.address):
        raise UnavailableError(
            f"`kedge {command}` runs on the machine of the containers only, and this server is at {client.address}; "
            "log in there and write the same"
        )


def _all(client: Client) -> list[Facts]:
    found: list[Facts] = ask(client, lambda request: ContainersRequested(request))
    return found


def _gpu(container: Facts) -> str:
    devices = ",".join(map(str, container["devices"]))
    if not container["gpu"]:
        return tables.NONE
    vram = container.get("vram")
    return f"{container['gpu']} [{devices}]" + (f" {tables.size(vram[0] << 20)}" if vram else "")
