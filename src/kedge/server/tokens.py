"""Who may come in: API tokens for clients over TCP, proxy tokens for web functions with requires_proxy_auth.

A token is an id and a secret. The secret is told once, when it is made; what is kept is its SHA-256, on disk and in
memory, so that a request asks no disk. Secrets are 32 random bytes: nothing slower is needed to keep them from being
guessed. The token in the state directory is the server's own and always good.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable
from hmac import compare_digest
from typing import Any

from msgspec import Struct

from kedge.exception import NotFoundError, ResourceExhaustedError
from kedge.server.writer import Transaction, Writer

API = "api"
PROXY = "proxy"
KINDS = {API: "a", PROXY: "w"}
"""The first letter of their ids and secrets: `ak-…`, `as-…` and `wk-…`, `ws-…`."""
MAX_TOKENS = 1000
"""More than that is a program that makes one for each of its runs."""
_NOBODY = hashlib.sha256(b"nobody").digest()
"""Compared with where there is no such token, so that the answer takes as long."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, digest BLOB NOT NULL, created_at REAL NOT NULL
) WITHOUT ROWID
"""


class Token(Struct, frozen=True):
    id: str
    kind: str
    name: str
    digest: bytes
    created_at: float


class Tokens:
    """The tokens of one server. `own` is that of its state directory, in full.

    Example:
        tokens = Tokens(store.writer, directory.token())
        await tokens.open()
        made = await tokens.create("api", "laptop")
        tokens.admits(f"{made['id']}.{made['secret']}")
    """

    def __init__(self, writer: Writer, own: str, clock: Callable[[], float] = time.time) -> None:
        self._writer = writer
        self._own = _digest(own)
        self._clock = clock
        self._by_id: dict[str, Token] = {}
        self._making = asyncio.Lock()
        self.deleted: Callable[[str], None] = lambda id: None
        """Called with the id of a token that is good no more: whoever came in with it has to leave."""

    async def open(self) -> None:
        """Reads what is on disk."""

        def read(tx: Transaction) -> list[Any]:
            tx.execute(SCHEMA)
            return tx.execute("SELECT id, kind, name, digest, created_at FROM tokens ORDER BY created_at").fetchall()

        self._by_id = {row[0]: Token(*row) for row in await self._writer.ask(read)}

    # ------------------------------------------------------------ who may come in

    def allowed(self, id: str, secret: str) -> bool:
        """Whether these are a proxy token. Takes the same time for every wrong one."""
        return self._good(PROXY, id, secret)

    def admits(self, token: str) -> bool:
        """Whether a client may use this server: with `id.secret` of an API token, or with the server's own token."""
        own = compare_digest(self._own, _digest(token))
        id, _, secret = token.partition(".")
        return self._good(API, id, secret) or own

    def _good(self, kind: str, id: str, secret: str) -> bool:
        token = self._by_id.get(id)
        good = compare_digest(token.digest if token is not None else _NOBODY, _digest(secret))
        return good and token is not None and token.kind == kind

    # ------------------------------------------------------------ what there is

    async def create(self, kind: str, name: str = "") -> dict[str, str]:
        """Makes one: {"id", "secret"} once it is on disk. The secret is told here and never again."""
        letter = KINDS[kind]
        id, secret = f"{letter}k-{secrets.token_hex(8)}", f"{letter}s-{secrets.token_urlsafe(32)}"
        token = Token(id, kind, name, _digest(secret), self._clock())
        async with self._making:
            if len(self._by_id) >= MAX_TOKENS:
                raise ResourceExhaustedError(
                    f"there are {MAX_TOKENS} tokens already; delete some first (`kedge token list`)"
                )
            row = (token.id, token.kind, token.name, token.digest, token.created_at)
            await self._writer.ask(lambda tx: tx.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?)", row).rowcount)
            self._by_id[id] = token
        return {"id": id, "secret": secret}

    def list(self, kind: str = "") -> list[dict[str, Any]]:
        """All of them without their secrets, the oldest first."""
        return [
            {"id": token.id, "kind": token.kind, "name": token.name, "created_at": token.created_at}
            for token in self._by_id.values()
            if kind in ("", token.kind)
        ]

    async def delete(self, id: str) -> None:
        """From now on it is good for nothing, also after a restart."""
        if id not in self._by_id:
            raise NotFoundError(f"there is no token {id}; `kedge token list` shows those that there are")
        await self._writer.ask(lambda tx: tx.execute("DELETE FROM tokens WHERE id = ?", (id,)).rowcount)
        self._by_id.pop(id, None)
        self.deleted(id)


def id_of(token: str) -> str:
    """The id of an API token as clients show it; empty for the server's own."""
    id, dot, _ = token.partition(".")
    return id if dot else ""


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
