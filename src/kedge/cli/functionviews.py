"""What `kedge function` does: asks the server, and shows what it says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kedge.cli import tables
from kedge.cli.asking import Facts, ask, connected
from kedge.cli.choice import matching, some
from kedge.cli.tables import Column
from kedge.exception import InvalidError, NotFoundError
from kedge.model.protocol import CallsRequested, FunctionsRequested
from kedge.sdk.client import Client
from kedge.sdk.usage import nearest

NOTHING = "No function is there. `kedge deploy app.py` deploys an app, `kedge run app.py` runs one."
VARIANT = 6
"""Characters of a variant's digest that tell it from its siblings."""

LIST = (
    Column("app", lambda function: function["app_name"]),
    Column("function", lambda function: function["name"]),
    Column("kind", lambda function: kind_of(function)),
    Column("containers", lambda function: _sum(function, "containers", "starting"), right=True),
    Column("running", lambda function: _sum(function, "running"), right=True),
    Column("waiting", lambda function: _sum(function, "backlog", "delayed"), right=True),
    Column("address or next run", lambda function: _reached(function), folds=True),
)
STATISTICS = (
    Column("function", lambda pool: pool["label"]),
    Column("containers", lambda pool: _containers(pool), right=True),
    Column("running", lambda pool: tables.count(pool["running"]), right=True),
    Column("waiting", lambda pool: tables.count(pool["backlog"] + pool["delayed"]), right=True),
    Column("headroom", lambda pool: tables.count(pool["headroom"]), right=True),
    Column("done", lambda pool: tables.count(pool["finished"]), right=True),
    Column("failed", lambda pool: tables.count(pool["failed"]), right=True),
    Column("wait p50", lambda pool: tables.span(pool["wait_p50_s"]), right=True),
    Column("p95", lambda pool: tables.span(pool["wait_p95_s"]), right=True),
    Column("run p50", lambda pool: tables.span(pool["run_p50_s"]), right=True),
    Column("p95", lambda pool: tables.span(pool["run_p95_s"]), right=True),
    Column("bursts", lambda pool: tables.count(pool["bursts"]), right=True),
)
CALLS = (
    Column("call", lambda call: call["call"]),
    Column("method", lambda call: call["method"] or tables.NONE),
    Column("state", lambda call: call["state"]),
    Column("done", lambda call: f"{tables.count(call['done'])}/{tables.count(call['inputs'])}", right=True),
    Column("failed", lambda call: tables.count(call["failed"]), right=True),
    Column("kind", lambda call: "spawned" if call["durable"] else "waited for"),
    Column("since", lambda call: tables.when(call["changed_at"])),
)


def show_list(app: str | None, environment: str | None, as_json: bool) -> None:
    with connected() as client:
        found = functions_of(client, environment)
    if app is not None:
        found = [function for function in found if app in (function["app_name"], function["app"])] or _of_app(
            found, app
        )
    tables.show(found, tables.with_environment(LIST, found, environment), as_json=as_json, empty=NOTHING)


def show_info(name: str, environment: str | None, as_json: bool) -> None:
    with connected() as client:
        found = named(functions_of(client, environment), name)
    if as_json:
        tables.print_json(found)
        return
    for number, function in enumerate(found):
        if number:
            print()
        for line in _described(function):
            print(line)


def show_stats(name: str | None, environment: str | None, as_json: bool) -> None:
    with connected() as client:
        found = functions_of(client, environment)
    if name is not None:
        found = named(found, name)
    several = len({function["app_name"] for function in found}) > 1
    pools = [
        {
            **pool,
            "app": function["app_name"],
            "function": function["function"],
            "label": _label(function, pool, several),
        }
        for function in found
        for pool in function["pools"]
    ]
    tables.show(pools, STATISTICS, as_json=as_json, empty="Nothing was called yet, so there are no numbers.")


def show_calls(name: str, limit: int, environment: str | None, as_json: bool) -> None:
    with connected() as client:
        function = only(named(functions_of(client, environment), name), name)
        calls: list[Facts] = ask(client, lambda request: CallsRequested(request, function["function"], limit))
    empty = f"{function['name']} has no call that is open, and no spawned one whose results are kept."
    tables.show(calls, CALLS, as_json=as_json, empty=empty)


# ---------------------------------------------------------------- which function


def functions_of(client: Client, environment: str | None = None) -> list[Facts]:
    found: list[Facts] = ask(client, lambda request: FunctionsRequested(request, environment or ""))
    return found


def named(functions: Sequence[Facts], text: str) -> list[Facts]:
    """Those that `APP`, `APP.NAME`, `APP::NAME`, `NAME` or an id stands for. NotFoundError says what there is."""
    ids = matching(text, [function["function"] for function in functions]) if text.startswith("fu-") else []
    if ids:
        return [function for function in functions if function["function"] in ids]
    apps = dict.fromkeys(key for function in functions for key in (function["app_name"], function["app"]))
    for app, name in _split(text, apps):
        of_app = [function for function in functions if app in (function["app_name"], function["app"])]
        if not name:
            return of_app
        found = [
            function for function in of_app if function["name"] == name.partition(".")[0] or function["name"] == name
        ]
        if found:
            return found
        names = [function["name"] for function in of_app]
        raise NotFoundError(f"the app {app} has no function {name!r}.{nearest(name, names)} It has: {some(names)}")
    alone = [function for function in functions if function["name"] == text]
    if not alone:
        there = [f"{function['app_name']}.{function['name']}" for function in functions]
        listed = f" There are: {some(there)}" if there else f" {NOTHING}"
        raise NotFoundError(f"there is no app or function {text!r}.{nearest(text, [*apps, *there])}{listed}")
    return alone


def only(found: Sequence[Facts], text: str) -> Facts:
    if len(found) > 1:
        listed = some([f"{function['app_name']}.{function['name']}" for function in found])
        same = len({function["name"] for function in found}) == 1
        more = "; --env NAME or an id (fu-…) tells them apart" if same else ""
        raise InvalidError(f"{text!r} stands for several functions: {listed}; write one of them{more}")
    return found[0]


def _split(text: str, apps: Iterable[str]) -> Iterable[tuple[str, str]]:
    """(app, function) as `text` may mean it. Names of apps may have dots in them: the longest one that fits counts."""
    app, colons, name = text.partition("::")
    if colons:
        yield app, name
        return
    for app in sorted(apps, key=len, reverse=True):
        if text == app:
            yield app, ""
        elif text.startswith(f"{app}."):
            yield app, text[len(app) + 1 :]


def _of_app(functions: Sequence[Facts], text: str) -> list[Facts]:
    ids = matching(text, list(dict.fromkeys(function["app"] for function in functions)))
    if len(ids) != 1:
        names = list(dict.fromkeys(function["app_name"] for function in functions))
        raise NotFoundError(f"there is no app {text!r}.{nearest(text, names)} There are: {some(names) or 'none'}")
    return [function for function in functions if function["app"] == ids[0]]


# ---------------------------------------------------------------- how it is shown


def kind_of(function: Facts) -> str:
    kinds = ["class" if function["settings"]["class"] else "function"]
    if any(method["web"] for method in function["methods"]):
        kinds.append("web")
    if function["schedule"]:
        kinds.append("scheduled")
    return ", ".join(kinds)


def _described(function: Facts) -> list[str]:
    settings = function["settings"]
    facts = {
        "function": f"{function['app_name']}.{function['name']}",
        "id": function["function"],
        "environment": function["environment"],
        "kind": kind_of(function),
        "inputs": _inputs(settings),
        "containers": _bounds(settings),
        "resources": _resources(settings),
        "time limits": _limits(settings),
        "retries": str(settings["retries"]),
    }
    if function["version"]:
        facts["environment"] += f", version {function['version']}"
    if settings["variables"]:
        facts["variables"] = ", ".join(settings["variables"])
    if settings["parameters"]:
        facts["parameters"] = ", ".join(_parameter(one) for one in settings["parameters"])
    if function["schedule"]:
        facts["schedule"] = f"{_schedule(function['schedule'])}, next run {tables.when(function['next_run'])}"
        if function["last_run"]:
            facts["schedule"] += f", last run {tables.when(function['last_run'])}"
        if function["missed_runs"]:
            facts["schedule"] += f", {function['missed_runs']} missed"
    for name, url in function["urls"].items():
        facts["address" if name == function["name"] else f"address of {name}"] = url
    lines = tables.describe(facts)
    if settings["class"]:
        lines += ["", *tables.table(_METHODS, function["methods"])]
    if function["pools"]:
        pools = [{**pool, "label": _label(function, pool, False)} for pool in function["pools"]]
        lines += ["", *tables.table(STATISTICS, pools)]
    return lines


_METHODS = (
    Column("method", lambda method: method["name"]),
    Column("async", lambda method: tables.yes(method["async"])),
    Column("generator", lambda method: tables.yes(method["generator"])),
    Column("limit", lambda method: str(method["concurrency_limit"] or tables.NONE), right=True),
    Column("batch", lambda method: str((method["batching"] or {}).get("max_batch_size", tables.NONE)), right=True),
    Column("web", lambda method: (method["web"] or {}).get("kind", tables.NONE)),
)


def _inputs(settings: Facts) -> str:
    text = f"{settings['max_inputs']} at once in a container"
    if settings["target_inputs"] != settings["max_inputs"]:
        text += f", {settings['target_inputs']} aimed at"
    return text + (f", {settings['concurrency_limit']} over all" if settings["concurrency_limit"] else "")


def _bounds(settings: Facts) -> str:
    most = settings["max_containers"]
    text = f"{settings['min_containers']} to {'any number' if most is None else most}"
    if settings["buffer_containers"]:
        text += f", {settings['buffer_containers']} in reserve"
    return f"{text}, idle ones stay for {tables.span(settings['scaledown_window'])}"


def _resources(settings: Facts) -> str:
    gpu = f", {' or '.join(settings['gpu'])}" if settings["gpu"] else ""
    if settings.get("vram"):
        gpu += f" with {settings['vram']:,} MiB of its memory"
    return f"{settings['cpu']:g} cpu, {settings['memory']:,} MiB{gpu}"


def _limits(settings: Facts) -> str:
    parts = [f"{tables.span(settings['timeout'])} to run"]
    if settings["startup_timeout"] is not None:
        parts.append(f"{tables.span(settings['startup_timeout'])} to start")
    if settings["queue_timeout"] is not None:
        parts.append(f"{tables.span(settings['queue_timeout'])} to wait")
    return ", ".join(parts)


def _parameter(parameter: Facts) -> str:
    return f"{parameter['name']}: {parameter['type']}" + ("" if parameter["required"] else " = …")


def _schedule(schedule: Facts) -> str:
    if schedule["cron"]:
        return f"cron {schedule['cron']} ({schedule['timezone']})"
    return "every " + ", ".join(f"{amount:g} {unit}" for unit, amount in schedule["period"])


def _label(function: Facts, pool: Facts, with_app: bool) -> str:
    name = f"{function['app_name']}.{function['name']}" if with_app else function["name"]
    return f"{name}@{pool['variant'][:VARIANT]}" if pool["variant"] else str(name)


def _containers(pool: Facts) -> str:
    starting = f" +{pool['starting']}" if pool["starting"] else ""
    return f"{pool['containers']}{starting}"


def _sum(function: Facts, *keys: str) -> str:
    return tables.count(sum(pool[key] for pool in function["pools"] for key in keys))


def _reached(function: Facts) -> str:
    if function["urls"]:
        return ", ".join(function["urls"].values())
    return f"at {tables.when(function['next_run'])}" if function["next_run"] else tables.NONE
