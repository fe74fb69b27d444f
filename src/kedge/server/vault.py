"""Secrets: variables that containers get, and nobody else.

On disk they are encrypted (Fernet) with a key in a file of its own that only this user can read; in memory they stay
encrypted until a container is launched. Those with a name live until they are deleted. Those without
(`Secret.from_dict`) belong to apps: their id is made of their values and the key, so that equal ones meet, and they go
when no app has them any more and the session that brought them has left."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from kedge.exception import InvalidError, NotFoundError, ResourceExhaustedError
from kedge.model.protocol import SecretsChanged
from kedge.model.spec import SecretRef
from kedge.server import names
from kedge.server.writer import StoreError, Transaction, Writer

if TYPE_CHECKING:
    from kedge.core.plane import Plane

log = logging.getLogger("kedge.server")

Facts = dict[str, Any]

KEY_FILE = "secrets.key"
MAX_SECRETS = 10_000
"""More than that is a program that makes one for each of its runs."""
MAX_BYTES = 512 * 1024
"""Of the variables of one secret: the system takes about 2 MiB of variables and arguments for a process."""
UNUSED_S = 120.0
"""Seconds that an unnamed secret stays without an app: a program that lost its server comes back within one minute."""
SWEEP_S = 3600.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS secrets (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, environment TEXT NOT NULL, sealed BLOB NOT NULL, created_at REAL NOT NULL,
    updated_at REAL NOT NULL
) WITHOUT ROWID
"""


class _Secret(Struct, frozen=True):
    id: str
    name: str
    """Empty for one without."""
    environment: str
    sealed: bytes
    created_at: float
    updated_at: float


class Vault:
    """The secrets of one server.

    Args:
        writer: Whose database they are in.
        directory: Where the key is.

    Example:
        vault = Vault(store.writer, directory)
        await vault.open()
        vault.values(SecretRef(name="openai"), "main")
    """

    def __init__(self, writer: Writer, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._writer = writer
        self._path = directory / KEY_FILE
        self.used: Callable[[], set[str]] = set
        """Ids of those without a name that apps refer to."""
        self.lender: Path | None = None
        """Directory of another server, which does not run: its named secrets are known here too, and not kept."""
        self._clock = clock
        self._cipher: Any = None
        self._by_id: dict[str, _Secret] = {}
        self._by_name: dict[tuple[str, str], _Secret] = {}
        """By environment and name."""
        self._held: dict[str, set[str]] = {}
        """Ids that each living session has brought."""
        self._touched: dict[str, float] = {}
        """When each unnamed one was last brought, or found after a restart."""
        self._changing = asyncio.Lock()
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self.answers: dict[type, Callable[[Any, str], Any]] = {SecretsChanged: self._answer}

    async def open(self) -> None:
        """Reads what is on disk."""

        def read(tx: Transaction) -> list[Any]:
            tx.execute(SCHEMA)
            return tx.execute("SELECT * FROM secrets ORDER BY environment, name").fetchall()

        now = self._clock()
        for row in await self._writer.ask(read):
            self._remember(_Secret(*row))
        self._touched = {id: now for id, secret in self._by_id.items() if not secret.name}
        if self.lender is not None:
            for secret, values in await asyncio.to_thread(_borrowed, self.lender):
                self._remember(replace(secret, sealed=await self._seal(values)))
        self._sweep_in(UNUSED_S if self._touched else SWEEP_S)

    def close(self) -> None:
        for task in (self._sweeper, self._sweeping):
            if task is not None:
                task.cancel()

    # ------------------------------------------------------------ what containers get

    def values(self, ref: SecretRef, environment: str) -> dict[str, str]:
        """The variables that a reference means, for an app of this environment.

        NotFoundError where there is no such secret, InvalidError where it has not all of its required keys. Neither
        shows a value.
        """
        if not ref.name:
            found = self._by_id.get(ref.id)
            if found is None or found.name:
                raise NotFoundError(
                    "the values of a secret without a name are not on this server (any more): run or deploy the app "
                    "again, or keep them by name (`kedge secret create`) and write kedge.Secret.from_name"
                )
            return self._opened(found)
        secret = self._named(ref.environment or environment, ref.name)
        values = self._opened(secret)
        _require(ref.required_keys, secret, values)
        return values

    def _named(self, environment: str, name: str) -> _Secret:
        found = self._by_name.get((environment, name))
        if found is None:
            there = [known for where, known in self._by_name if where == environment]
            elsewhere = sorted(where for where, known in self._by_name if known == name)
            hint = f"It is in {', '.join(elsewhere)}. " if elsewhere else ""
            advice = f"{hint}`kedge secret create {name} KEY=VALUE` makes it"
            raise names.missing("secret", name, environment, there, advice)
        return found

    # ------------------------------------------------------------ what sessions ask

    def _answer(self, message: SecretsChanged, session: str) -> Any:
        if message.action == "list":
            there = [one for (where, _), one in self._by_name.items() if where == message.environment]
            return [_facts(one, self._keys(one)) for one in sorted(there, key=lambda one: one.name)]
        if message.action == "info":
            found = self._named(message.environment, message.name)
            if message.required_keys:
                _require(message.required_keys, found, self._opened(found))
            return _facts(found, self._keys(found))
        if message.action == "keep":
            return self._keep(message.values, session)
        if message.action in ("create", "create_missing", "replace", "update"):
            return self._change(message)
        if message.action == "delete":
            return self._delete(message.environment, message.name)
        raise InvalidError(f"action={message.action[:60]!r} is not known")

    async def _keep(self, values: Mapping[str, str], session: str) -> Facts:
        """Takes values in, for the apps of this session."""
        self._check(values)
        key = await asyncio.to_thread(self._key)
        content = msgspec.json.encode(sorted(values.items()))
        id = f"sc-{hmac.new(key, content, hashlib.sha256).hexdigest()[:32]}"
        # First of all: from now on no sweep takes it away.
        self._held.setdefault(session, set()).add(id)
        self._touched[id] = self._clock()
        async with self._changing:
            if id not in self._by_id:
                await self._save(_Secret(id, "", "", await self._seal(values), self._clock(), self._clock()))
        return {"id": id}

    async def _change(self, message: SecretsChanged) -> Facts:
        name, environment, values = message.name, message.environment, message.values
        names.check("secret", name)
        async with self._changing:
            before = self._by_name.get((environment, name))
            if message.action == "update":
                values = self._opened(self._named(environment, name)) | values
            elif before is not None and message.action == "create":
                raise names.taken("secret", name, environment, "; --force replaces it")
            elif before is not None and message.action == "create_missing":
                return _facts(before, self._keys(before))
            self._check(values)
            now = self._clock()
            sealed = await self._seal(values)
            if before is None:
                secret = _Secret(f"sc-{os.urandom(16).hex()}", name, environment, sealed, now, now)
            else:
                secret = replace(before, sealed=sealed, updated_at=now)
            await self._save(secret)
            return _facts(secret, sorted(values))

    async def _delete(self, environment: str, name: str) -> None:
        async with self._changing:
            await self._remove([self._named(environment, name)])

    def _check(self, values: Mapping[str, str]) -> None:
        size = 0
        for key, value in values.items():
            if not key or "=" in key or "\0" in key + value:
                raise InvalidError(
                    f"{key[:80]!r} cannot be a variable of a secret: its name or its value cannot be set"
                )
            size += len(key.encode("utf-8", "surrogatepass")) + len(value.encode("utf-8", "surrogatepass"))
        if size > MAX_BYTES:
            raise InvalidError(
                f"the variables of this secret have {size} bytes; at most {MAX_BYTES} are allowed, since a process "
                "takes little more. Keep files in a volume"
            )

    # ------------------------------------------------------------ the end of those without a name

    def session_closed(self, session: str) -> None:
        """Nobody starts an app with what it has brought."""
        now = self._clock()
        for id in self._held.pop(session, ()):
            self._touched[id] = now
            self._sweep_in(UNUSED_S)

    async def sweep(self) -> None:
        """Removes unnamed ones that no app has, and that nobody has brought for a while."""
        self._sweeper = None
        held = {id for ids in self._held.values() for id in ids}
        limit = self._clock() - UNUSED_S
        async with self._changing:
            kept = self.used() | held
            over = [
                secret
                for id, secret in self._by_id.items()
                if not secret.name and id not in kept and self._touched.get(id, 0.0) <= limit
            ]
            if over:
                await self._remove(over)
        self._sweep_in(SWEEP_S)

    def _sweep_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._sweeper is not None:
            if self._sweeper.when() <= loop.time() + seconds:
                return
            self._sweeper.cancel()
        self._sweeper = loop.call_later(seconds, self._begin_to_sweep)

    def _begin_to_sweep(self) -> None:
        self._sweeping = asyncio.get_running_loop().create_task(self.sweep())
        self._sweeping.add_done_callback(self._swept)

    def _swept(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("secrets that nobody uses are still there: %s", error)
            self._sweep_in(SWEEP_S)

    # ------------------------------------------------------------ keeping

    async def _save(self, secret: _Secret) -> None:
        if secret.id not in self._by_id and len(self._by_id) >= MAX_SECRETS:
            raise ResourceExhaustedError(f"there are {MAX_SECRETS} secrets already; delete some (`kedge secret list`)")
        row = (secret.id, secret.name, secret.environment, secret.sealed, secret.created_at, secret.updated_at)
        query = "INSERT OR REPLACE INTO secrets VALUES (?, ?, ?, ?, ?, ?)"
        await self._writer.ask(lambda tx: tx.execute(query, row).rowcount)
        self._remember(secret)

    async def _remove(self, gone: Iterable[_Secret]) -> None:
        ids = [(secret.id,) for secret in gone]
        await self._writer.ask(lambda tx: tx.executemany("DELETE FROM secrets WHERE id = ?", ids).rowcount)
        for (id,) in ids:
            secret = self._by_id.pop(id)
            self._by_name.pop((secret.environment, secret.name), None)
            self._touched.pop(id, None)

    def _remember(self, secret: _Secret) -> None:
        self._by_id[secret.id] = secret
        if secret.name:
            self._by_name[secret.environment, secret.name] = secret

    def _keys(self, secret: _Secret) -> list[str]:
        try:
            return sorted(self._opened(secret))
        except InvalidError:
            return []

    # ------------------------------------------------------------ the key

    async def _seal(self, values: Mapping[str, str]) -> bytes:
        cipher = await asyncio.to_thread(self._fernet)  # the first time it imports and reads
        sealed: bytes = cipher.encrypt(msgspec.json.encode(dict(values)))
        return sealed

    def _opened(self, secret: _Secret) -> dict[str, str]:
        from cryptography.fernet import InvalidToken

        try:
            return msgspec.json.decode(self._fernet().decrypt(secret.sealed), type=dict[str, str])
        except InvalidToken:
            name = repr(secret.name) if secret.name else "without a name"
            raise InvalidError(
                f"the secret {name} was encrypted with another key than the one in {self._path}; bring that file back, "
                "or create the secret anew"
            ) from None

    def _fernet(self) -> Any:
        if self._cipher is None:
            from cryptography.fernet import Fernet

            self._cipher = Fernet(self._key())
        return self._cipher

    def _key(self) -> bytes:
        """What everything is encrypted with, made when it is needed first."""
        try:
            return self._path.read_bytes().strip()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreError(f"the key of the secrets cannot be read: {error}") from error
        from cryptography.fernet import Fernet

        draft = self._path.with_name(f"{KEY_FILE}.{os.urandom(4).hex()}")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(descriptor, Fernet.generate_key())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            try:
                os.link(draft, self._path)  # whoever comes second takes the key of the first
            except FileExistsError:
                pass
            finally:
                os.unlink(draft)
            return self._path.read_bytes().strip()
        except OSError as error:
            raise StoreError(f"the key of the secrets cannot be kept: {error}") from error


def _borrowed(directory: Path) -> list[tuple[_Secret, dict[str, str]]]:
    try:
        key = (directory / KEY_FILE).read_bytes().strip()
        with closing(sqlite3.connect(f"file:{quote(str(directory / 'state.db'))}?mode=ro", uri=True)) as database:
            rows = [_Secret(*row) for row in database.execute("SELECT * FROM secrets WHERE name <> ''")]
    except FileNotFoundError:
        return []  # there never was one
    except (OSError, sqlite3.Error) as error:
        log.warning("the secrets in %s cannot be read: %s", directory, type(error).__name__)
        return []
    if not rows:
        return []
    from cryptography.fernet import Fernet, InvalidToken  # takes longer than everything else when a server starts

    try:
        cipher = Fernet(key)
        return [(row, msgspec.json.decode(cipher.decrypt(row.sealed), type=dict[str, str])) for row in rows]
    except (ValueError, InvalidToken) as error:
        log.warning("the secrets in %s cannot be read: %s", directory, type(error).__name__)
        return []


def used_in(plane: Plane) -> set[str]:
    """Ids of secrets that apps of a plane refer to, in declarations and in variants."""
    specs = [spec for app in plane.apps.values() for spec in app.spec.functions]
    specs += [pool.spec for pool in plane.pools.values()]
    return {secret.id for spec in specs for secret in spec.secrets if secret.id}


def _require(required: Iterable[str], secret: _Secret, keys: Iterable[str]) -> None:
    there = set(keys)
    if missing := [key for key in required if key not in there]:
        raise InvalidError(
            f"the secret {secret.name!r} in the environment {secret.environment!r} has no {', '.join(missing)}, which "
            f"required_keys asks for; it has {', '.join(sorted(there)) or 'nothing'}. Create it anew with `kedge "
            f"secret create --force {secret.name} …`"
        )


def _facts(secret: _Secret, keys: list[str]) -> Facts:
    return {
        "name": secret.name,
        "environment": secret.environment,
        "keys": keys,
        "created_at": secret.created_at,
        "updated_at": secret.updated_at,
    }
