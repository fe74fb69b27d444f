"""What is over, as the disk remembers it: versions of deployed apps, apps that have stopped, durable calls.

Calls are read over a connection of their own, in a thread of its own: a look at many of them keeps neither the event
loop nor whoever waits for the disk. Results of `.remote` and `.map` are not kept, so those calls are not here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kedge.model.payload import SUCCESS, TERMINATED
from kedge.server.inventory import STOPPED, Facts
from kedge.server.register import Deployed, Register
from kedge.server.writer import BUSY_MS, StoreError


async def with_past(register: Register, apps: Sequence[Facts], environment: str, name: str) -> list[Facts]:
    """The apps of an inventory with the times at which they were deployed, and those that have stopped, at the end."""
    deployments = {one.deployment: one for one in await register.deployments()}
    times = await register.deployed_at()
    found = []
    for app in apps:
        at = times.get(app["app"], app["deployed_at"])
        known = deployments.get(app["app"])
        stopped_at = known.stopped_at if known is not None and app["state"] == STOPPED else 0.0
        found.append({**app, "deployed_at": at, "created_at": at or app["created_at"], "stopped_at": stopped_at})
    there = {app["app"] for app in apps}
    return found + [
        _stopped(one, times.get(one.deployment, 0.0))
        for one in deployments.values()
        if one.deployment not in there
        and environment in ("", one.environment)
        and name in ("", one.name, one.deployment)
    ]


async def versions_of(register: Register, environment: str, name: str, there: Sequence[Facts]) -> list[Facts] | None:
    """All versions of a deployed app, newest first, with what is known of those that are `there`. None where there
    never was such an app."""
    known = {version["version"]: version for version in there}
    found = [
        one
        for one in await register.deployments()
        if name in (one.name, one.deployment) and environment in ("", one.environment)
    ]
    if not found:
        return list(there) or None
    versions: list[Facts] = []
    for one in await register.versions(found[0].deployment):
        facts = {
            "app": one.app,
            "deployment": found[0].deployment,
            "name": found[0].name,
            "environment": found[0].environment,
            "version": one.version,
            "tag": one.tag,
            "deployed_at": one.created_at,
            "origin_version": one.origin_version,
            "current": one.version == found[0].version and bool(found[0].app),
            "kept": one.version in known,
            "containers": 0,
            "functions": [],
        }
        live = known.get(one.version, facts)
        versions.append({**facts, "containers": live["containers"], "functions": live["functions"]})
    return versions


def _stopped(one: Deployed, deployed_at: float) -> Facts:
    return {
        "app": one.deployment,
        "name": one.name,
        "environment": one.environment,
        "state": STOPPED,
        "ephemeral": False,
        "deployed_at": deployed_at,
        "created_at": deployed_at,
        "stopped_at": one.stopped_at,
        "containers": 0,
        "running": 0,
        "queued": 0,
        "functions": [],
        "labels": {},
        "urls": {},
        "version": one.version,
        "tag": "",
    }


# ---------------------------------------------------------------- calls


def calls_over(path: Path, pools: Sequence[str], open: Collection[str], limit: int) -> list[dict[str, Any]]:
    """The last calls that were submitted to these pools or variants of them and are not among the `open` ones, newest
    first. StoreError where the database cannot be read."""
    where = " OR ".join(["pool = ? OR substr(pool, 1, ?) = ?"] * len(pools)) or "false"
    values = [value for pool in pools for value in (pool, len(pool) + 1, f"{pool}@")]
    columns = "call, pool, function, method, parent, total, changed"
    query = f"SELECT {columns} FROM calls WHERE {where} ORDER BY changed DESC LIMIT ?"
    found: list[dict[str, Any]] = []
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            database.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            rows = database.execute(query, [*values, limit + len(open)]).fetchall()
            found = [_call(database, row) for row in [row for row in rows if row[0] not in open][:limit]]
        finally:
            database.close()
    except sqlite3.Error as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    return found


def _call(database: sqlite3.Connection, row: tuple[Any, ...]) -> dict[str, Any]:
    call, pool, function, method, parent, total, changed = row
    query = (
        "SELECT count(*), coalesce(sum(status NOT IN (?, ?)), 0), coalesce(sum(status = ?), 0) "
        "FROM results WHERE call = ?"
    )
    done, failed, cancelled = database.execute(query, (SUCCESS, TERMINATED, TERMINATED, call)).fetchone()
    state = "failed" if failed else "cancelled" if cancelled else "done" if done >= total else "open"
    return {
        "call": call,
        "function": function,
        "method": method,
        "variant": pool.partition("@")[2],
        "state": state,
        "durable": True,
        "inputs": total if total >= 0 else done,
        "running": 0,
        "queued": 0,
        "done": done,
        "failed": failed,
        "parent": parent,
        "changed_at": changed,
    }
