"""What has a name and must survive: apps and their pools, deployments with their versions, schedules, learned imports.

A version's spec is written before the plane hears of it, and that it is current once the plane has decided so. Until
then it stands here under its own id only; what never became current is not loaded again. A deployment that has stopped
keeps its history. Specs are kept for as long as the plane knows the version.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from kedge.exception import ServiceError
from kedge.model.ids import deployment_id
from kedge.model.protocol import DeploymentChanged
from kedge.model.spec import AppSpec, Variant
from kedge.server.writer import Transaction, Writer

log = logging.getLogger("kedge.server.store")

SCHEMA = """
CREATE TABLE IF NOT EXISTS apps (app TEXT PRIMARY KEY, spec BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS variants (pool TEXT PRIMARY KEY, app TEXT NOT NULL, variant BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deployments (
    deployment TEXT PRIMARY KEY, environment TEXT NOT NULL, name TEXT NOT NULL, app TEXT NOT NULL,
    version INTEGER NOT NULL, origin_version INTEGER NOT NULL, stopped_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS versions (
    deployment TEXT NOT NULL, version INTEGER NOT NULL, app TEXT NOT NULL, tag TEXT NOT NULL, created_at REAL NOT NULL,
    origin_version INTEGER NOT NULL, PRIMARY KEY (deployment, version)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS schedules (
    deployment TEXT NOT NULL, function TEXT NOT NULL, digest TEXT NOT NULL, began REAL NOT NULL,
    settled REAL NOT NULL, ran REAL NOT NULL, missed INTEGER NOT NULL, PRIMARY KEY (deployment, function)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS imports (key TEXT PRIMARY KEY, modules TEXT NOT NULL) WITHOUT ROWID;
"""
HISTORY = 1000
"""Versions of one deployment that are remembered as rows: three a day for a year."""

_encode = msgspec.msgpack.encode


class Version(NamedTuple):
    version: int
    app: str
    tag: str
    created_at: float
    origin_version: int
    """The version that it brought back; 0 for a deploy."""


class Deployed(NamedTuple):
    """A deployment as the disk knows it."""

    deployment: str
    environment: str
    name: str
    app: str
    """Of the current version; empty where it has stopped."""
    version: int
    """The last one."""
    origin_version: int
    stopped_at: float
    """0 while it lives."""


class ScheduleRow(NamedTuple):
    """How far a schedule has come. Another `digest` is another schedule."""

    deployment: str
    function: str
    digest: str
    began: float
    """When it was deployed: where a period counts from."""
    settled: float
    """The last due time that needs no more thought: it ran, or was missed and said so. Its start at first."""
    ran: float = 0.0
    """The last due time that ran; 0 where none has."""
    missed: int = 0


class Names(NamedTuple):
    """What a restarted server must know again, in the order in which the plane should hear it."""

    apps: list[AppSpec]
    deployments: list[DeploymentChanged]
    variants: list[Variant]


class Register:
    """A part of the `Store`: its tables are in the same database, and its jobs in the same order."""

    def __init__(self, writer: Writer, clock: Callable[[], float]) -> None:
        self._writer = writer
        self._clock = clock
        self._imports: dict[str, list[str]] = {}
        self._latest: dict[str, DeploymentChanged] = {}
        """What each deployment changed to last: an earlier change that is written late must not undo it."""

    def prepare(self, database: sqlite3.Connection) -> None:
        database.executescript(SCHEMA)
        for key, modules in database.execute("SELECT key, modules FROM imports"):
            self._imports[key] = modules.split("\n")

    # ------------------------------------------------------------ apps and their pools

    def save_app(self, spec: AppSpec, then: Callable[[Any, str], None] | None = None) -> None:
        row = spec.app, _encode(spec)
        self._writer.put(lambda tx: tx.execute("INSERT OR IGNORE INTO apps VALUES (?, ?)", row).rowcount, then)

    def save_variant(self, pool: str, app: str, variant: Variant) -> None:
        """`app` is the one in the id of the variant's function: that of a deployment, or of an app itself."""
        row = pool, app, _encode(variant)
        self._writer.put(lambda tx: tx.execute("INSERT OR IGNORE INTO variants VALUES (?, ?, ?)", row))

    def forget_app(self, app: str) -> None:
        self._writer.put(lambda tx: _forget(tx, [app]), keep=True)

    # ------------------------------------------------------------ deployments

    def change(
        self, message: DeploymentChanged, spec: AppSpec | None, then: Callable[[Any, str], None] | None = None
    ) -> None:
        """A deployment has another current version (`spec`), or has stopped (None). Where the disk refuses it, `then`
        hears why, and it is written as soon as the disk takes it."""
        now = self._clock()
        self._latest[message.deployment] = message

        def write(tx: Transaction) -> None:
            if self._latest.get(message.deployment) is message:
                _change(tx, message, spec, now)

        def written(value: Any, error: str) -> None:
            if error:
                self._writer.put(write, keep=True)
            if then is not None:
                then(value, error)

        self._writer.put(write, written)

    async def deployments(self) -> list[Deployed]:
        """All that were ever deployed here, also those that have stopped, by environment and name."""
        query = "SELECT * FROM deployments ORDER BY environment, name"
        return await self._writer.ask(lambda tx: [Deployed(*row) for row in tx.execute(query)])

    async def deployed_at(self) -> dict[str, float]:
        """When the last version of each deployment was deployed. Its other versions are not looked at."""
        query = (
            "SELECT v.deployment, v.created_at FROM deployments d JOIN versions v ON v.deployment = d.deployment AND "
            "v.version = (SELECT max(version) FROM versions WHERE deployment = d.deployment)"
        )
        return await self._writer.ask(lambda tx: dict(tx.execute(query).fetchall()))

    async def versions(self, deployment: str) -> list[Version]:
        """The history of a deployment, the newest first."""
        query = (
            "SELECT version, app, tag, created_at, origin_version FROM versions WHERE deployment = ? "
            "ORDER BY version DESC"
        )
        return await self._writer.ask(lambda tx: [Version(*row) for row in tx.execute(query, (deployment,))])

    # ------------------------------------------------------------ schedules

    def save_schedule(self, row: ScheduleRow) -> None:
        query = "INSERT OR REPLACE INTO schedules VALUES (?, ?, ?, ?, ?, ?, ?)"
        self._writer.put(lambda tx: tx.execute(query, row), keep=True)

    def forget_schedules(self, deployment: str, but: Iterable[str] = ()) -> None:
        """Those of a deployment, except for the functions in `but`."""
        kept = set(but)

        def forget(tx: Transaction) -> None:
            found = tx.execute("SELECT function FROM schedules WHERE deployment = ?", (deployment,)).fetchall()
            gone = [(deployment, function) for (function,) in found if function not in kept]
            tx.executemany("DELETE FROM schedules WHERE deployment = ? AND function = ?", gone)

        self._writer.put(forget, keep=True)

    async def schedules(self) -> list[ScheduleRow]:
        return await self._writer.ask(lambda tx: [ScheduleRow(*row) for row in tx.execute("SELECT * FROM schedules")])

    async def known_calls(self, calls: list[str]) -> set[str]:
        """Those of them that are on disk."""
        query = "SELECT 1 FROM calls WHERE call = ?"  # one by one: a statement takes so many values and no more
        return await self._writer.ask(lambda tx: {call for call in calls if tx.execute(query, (call,)).fetchone()})

    # ------------------------------------------------------------ imports

    def imports(self, key: str) -> list[str]:
        return self._imports.get(key, [])

    def learn_imports(self, key: str, modules: list[str], limit: int) -> None:
        """Adds modules to what is known under `key`, up to `limit` of them."""
        known = self._imports.get(key, [])
        merged = list(dict.fromkeys([*known, *modules]))[:limit]
        if merged != known:
            self._imports[key] = merged
            row = key, "\n".join(merged)
            self._writer.put(lambda tx: tx.execute("INSERT OR REPLACE INTO imports VALUES (?, ?)", row))

    # ------------------------------------------------------------ restart

    def load(self, tx: Transaction) -> Names:
        """All that lives, and which deployments there were. What is left of deploys that never came to their end is
        removed."""
        deployments = [Deployed(*row) for row in tx.execute("SELECT * FROM deployments")]
        versions = {one.deployment: _versions(tx, one.deployment) for one in deployments if one.app}
        numbers = {app: (id, number) for id, known in versions.items() for number, app in reversed(known.items())}
        apps, served = dict[str, AppSpec](), dict[str, AppSpec]()
        found = [_decoded(app, blob) for app, blob in tx.execute("SELECT app, spec FROM apps").fetchall()]
        stored = [spec for spec in found if spec is not None]
        for spec in sorted(stored, key=lambda spec: spec.created_at):
            if not spec.deployment:
                apps[spec.app] = spec
            elif spec.ephemeral:
                served[spec.deployment] = replace(spec, version=1)  # the last one counts
            elif spec.app in numbers:
                deployment, number = numbers[spec.app]
                apps[spec.app] = replace(spec, deployment=deployment, version=number)
        apps |= {spec.app: spec for spec in served.values()}
        for spec in stored:
            if spec.app not in apps:
                self.forget_app(spec.app)  # later: a disk that is full must not keep the server from coming back
        changes = [DeploymentChanged(*one[:6], versions=versions.get(one.deployment, {})) for one in deployments]
        for id, spec in served.items():
            changes.append(DeploymentChanged(id, spec.environment_name, spec.name, spec.app, 1))
        variants = [msgspec.msgpack.decode(row[0], type=Variant) for row in tx.execute("SELECT variant FROM variants")]
        return Names(list(apps.values()), changes, variants)


def stored_images(path: Path) -> set[str]:
    """Images of the apps that a server's database remembers, whether it runs or not: those of deployed versions, also
    the earlier ones that a rollback may bring back."""
    if not path.exists():
        return set()
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT app, spec FROM apps").fetchall()
    except sqlite3.Error as error:
        raise ServiceError(f"{path} says which images deployed apps have, and cannot be read: {error}") from None
    specs = [spec for spec in (_decoded(app, blob) for app, blob in rows) if spec is not None]
    return {function.image.id for spec in specs if not spec.ephemeral for function in spec.functions} - {""}


def served_id(spec: AppSpec) -> str:
    """The id that stands for whichever version of an app is current."""
    return spec.deployment or deployment_id(spec.environment_name, spec.name, spec.ephemeral)


def _versions(tx: Transaction, deployment: str) -> dict[int, str]:
    """The apps of its versions by number. One that was brought back has several: its own is the first."""
    query = "SELECT version, app FROM versions WHERE deployment = ? ORDER BY version"
    return dict(tx.execute(query, (deployment,)).fetchall())


def _decoded(app: str, blob: bytes) -> AppSpec | None:
    try:
        return msgspec.msgpack.decode(blob, type=AppSpec)
    except msgspec.MsgspecError as error:
        log.error("the app %s was stored by another version of kedge and cannot be read: %s", app, error)
        return None


def _change(tx: Transaction, message: DeploymentChanged, spec: AppSpec | None, now: float) -> None:
    origin = message.origin_version
    row = message.deployment, message.environment, message.name, message.app, message.version, origin
    tx.execute("INSERT OR REPLACE INTO deployments VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, 0.0 if message.app else now))
    if spec is None:
        tx.execute("DELETE FROM variants WHERE app = ?", (message.deployment,))
        tx.execute("DELETE FROM schedules WHERE deployment = ?", (message.deployment,))
        return
    tx.execute("INSERT OR REPLACE INTO apps VALUES (?, ?)", (spec.app, _encode(spec)))
    created_at = now if origin else spec.created_at or now
    version = message.deployment, message.version, message.app, spec.tag, created_at, origin
    tx.execute("INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?, ?, ?)", version)
    tx.execute(
        "DELETE FROM versions WHERE deployment = ? AND version <= ?", (message.deployment, message.version - HISTORY)
    )


def _forget(tx: Transaction, apps: Iterable[str]) -> None:
    for app in apps:
        for table in ("apps", "variants"):
            tx.execute(f"DELETE FROM {table} WHERE app = ?", (app,))
