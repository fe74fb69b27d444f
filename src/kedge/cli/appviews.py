"""What `kedge app` does: asks the server, and shows what it says."""

from __future__ import annotations

import click

from kedge.cli import failures, tables
from kedge.cli.apps import DEPLOY_S, STOP_S
from kedge.cli.asking import Facts, ask, connected
from kedge.cli.choice import one_of
from kedge.cli.confirm import confirmed
from kedge.cli.functionviews import LIST as FUNCTIONS
from kedge.cli.tables import Column
from kedge.exception import InvalidError, NotFoundError, RemoteError
from kedge.model.ids import deployment_id
from kedge.model.protocol import AppRolledBack, AppsRequested, AppStopped, FunctionsRequested
from kedge.sdk import config, output, runner
from kedge.sdk.client import Client

NOTHING = "Nothing is deployed. `kedge deploy app.py` deploys an app, `kedge run app.py` runs one."
DEPLOYED = ("deployed", "deploying")
"""States of what others may count on."""
_STATES = ("deployed", "served", "deploying", "detached", "ephemeral", "stopping", "stopped")

LIST = (
    Column("name", lambda app: app["name"]),
    Column("id", lambda app: app["app"]),
    Column("state", lambda app: app["state"]),
    Column("version", lambda app: _version(app), right=True),
    Column("containers", lambda app: tables.count(app["containers"]), right=True),
    Column("running", lambda app: tables.count(app["running"]), right=True),
    Column("created", lambda app: tables.when(app["created_at"])),
    Column("address", lambda app: ", ".join(app["urls"].values()) or tables.NONE, folds=True),
)
HISTORY = (
    Column("version", lambda version: f"v{version['version']}", right=True),
    Column("deployed", lambda version: tables.when(version["deployed_at"])),
    Column("tag", lambda version: version["tag"] or tables.NONE),
    Column("containers", lambda version: tables.count(version["containers"]), right=True),
    Column("", lambda version: _remarks(version)),
)


def show_list(environment: str | None, as_json: bool, everything: bool) -> None:
    with connected() as client:
        apps: list[Facts] = ask(client, lambda request: AppsRequested(request, environment or ""))
    shown = [app for app in apps if everything or app["state"] != "stopped"]
    tables.show(shown, tables.with_environment(LIST, shown, environment), as_json=as_json, empty=NOTHING)
    hidden = len(apps) - len(shown)
    if hidden and not as_json:
        click.echo(f"{hidden} stopped; `kedge app list --all` shows them too.", err=True)


def show_info(name: str, environment: str | None, as_json: bool) -> None:
    with connected() as client:
        app = find(client, name, environment)
        functions: list[Facts] = ask(client, lambda request: FunctionsRequested(request, app=app["app"]))
    if as_json:
        tables.print_json({**app, "functions": functions})
        return
    facts = {
        "name": app["name"],
        "id": app["app"],
        "environment": app["environment"],
        "state": app["state"],
        "version": _version(app) + (f" ({app['tag']})" if app["tag"] else ""),
        "created": tables.when(app["created_at"]),
        "containers": tables.count(app["containers"]),
        "inputs": f"{tables.count(app['running'])} running, {tables.count(app['queued'])} queued",
    }
    for line in tables.describe(facts):
        print(line)
    for function, url in app["urls"].items():
        print(f"\n{tables.clean(function)} answers at {url}")
    if functions:
        print()
        tables.show(functions, FUNCTIONS[1:], as_json=False, empty="")


def show_history(name: str, environment: str | None, as_json: bool) -> None:
    with connected() as client:
        app = find(client, name, environment)
        if app["state"] in ("ephemeral", "detached"):
            raise InvalidError(f"{app['name']} ({app['app']}) is not deployed, so it has no versions")
        versions: list[Facts] = ask(
            client, lambda request: AppsRequested(request, app["environment"], app["app"], history=True)
        )
    tables.show(versions, HISTORY, as_json=as_json, empty=f"{app['name']} has no version any more.")


def roll_back(name: str, version: str | None, strategy: str, environment: str | None) -> None:
    number = _number(version)
    with connected("so there is nothing to roll back") as client:
        app = find(client, name, environment)
        try:
            with output.enable_output():
                answer: Facts = client.link().request(
                    lambda request: AppRolledBack(request, app["name"], app["environment"], number, strategy),
                    DEPLOY_S,
                    runner.not_deployed,
                )
        except RemoteError as error:  # what a container raised is the user's, and no failure of this program
            failures.print_styled(failures.remote_cause(error))
            raise
    print(f"{app['name']} is at version {answer['version']}, a copy of version {answer['origin_version']}.")


def stop(name: str, yes: bool, environment: str | None) -> int:
    with connected("so no app is either") as client:
        app = find(client, name, environment)
        if app["state"] in DEPLOYED and not confirmed(_question(app), yes):
            click.echo("Nothing was stopped.", err=True)
            return 1
        answer = ask(client, lambda request: AppStopped(app["app"], request, "stopped by `kedge app stop`"), STOP_S)
    if not answer.get("known", True):
        raise NotFoundError(f"{app['name']} has stopped already")
    print(f"{app['app']} has stopped." if app["app"] == name else f"{app['name']} ({app['app']}) has stopped.")
    return 0


def id_for_logs(name: str, environment: str | None) -> str:
    """What `kedge logs` has to look for: the id of a deployment where an environment makes it certain, else the word
    itself. No server is needed."""
    if name.startswith("ap-"):
        return name
    chosen = config.environment(environment)
    return deployment_id(chosen, name) if environment is not None or chosen != "main" else name


def find(client: Client, name: str, environment: str | None) -> Facts:
    """The app of this name or id."""
    return _found(ask(client, lambda request: AppsRequested(request)), name, environment)


def _found(apps: list[Facts], name: str, environment: str | None) -> Facts:
    chosen = config.environment(environment)
    there = [app for app in apps if app["environment"] == chosen]
    elsewhere = sorted({app["environment"] for app in apps if app["name"] == name} - {chosen})
    advice = f"It is in the environment {', '.join(elsewhere)}: --env {elsewhere[0]}." if elsewhere else ""
    by_id = [app for app in apps if name.startswith("ap-") and app["app"].startswith(name)]
    return one_of(
        name,
        by_id or there,
        id="app",
        name="name",
        what="app",
        prefer=_preference,
        advice=advice or "`kedge app list --all` shows them with their ids.",
    )


def _preference(app: Facts) -> int:
    """What is deployed is meant by its name before what only runs, and that before what has stopped."""
    state = _STATES.index(app["state"])
    return 0 if state < 3 else 1 if state < 5 else 2


def _question(app: Facts) -> str:
    what = f"Stop {app['name']} ({app['app']}, version {app['version']})?"
    count = app["containers"]
    return f"{what} It has {count} container{'' if count == 1 else 's'} and {app['running']} running inputs."


def _version(app: Facts) -> str:
    return f"v{app['version']}" if app["version"] else tables.NONE


def _remarks(version: Facts) -> str:
    remarks = ["current"] if version["current"] else []
    if version["origin_version"]:
        remarks.append(f"rollback of v{version['origin_version']}")
    if not version["kept"]:
        remarks.append("not kept")
    return ", ".join(remarks)


def _number(version: str | None) -> int | None:
    if version is None:
        return None
    if not version.removeprefix("v").isdecimal():
        raise click.UsageError(f"VERSION is {version!r}; write a number that `kedge app history` shows, such as 3.")
    return int(version.removeprefix("v"))
