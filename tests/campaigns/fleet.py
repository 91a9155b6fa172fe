"""Replicas of the real daemon on one database, and the books that must balance at the end."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import ClientError

from tests.support.strict_server import Grant, StrictServer
from tests.support.tokenward import Reply, Tokenward

KEYS = [{"id": "k1", "secret": "A" * 43 + "="}]
# What no fault may bring about: it is a bug wherever it stands in a log.
BUGS = re.compile(r"Traceback|refresh_crashed|\"level\": ?\"(error|critical)\"")
_AT_ONCE = 40
# For all connections together: a missed notification is made good within 15 s.
_PATIENCE = 20.0


@dataclass
class Books:
    """What the authorization server and the daemons say; ``faults`` must stay empty.

    ``excused`` are grants that a reply lost on the wire has cost, which nobody can prevent.
    """

    requests: int = 0
    rotations: int = 0
    gained: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return a few lines for people."""
        answers = ", ".join(
            f"{count} times {status}" for status, count in sorted(self.statuses.items())
        )
        return "\n".join(
            [
                f"requests {self.requests}, rotations {self.rotations}, gained {self.gained}",
                f"answers to callers: {answers}",
                f"excused: {len(self.excused)}; wrong: {len(self.faults)}",
                *(f"  excused: {line}" for line in self.excused[:20]),
                *(f"  WRONG: {line}" for line in self.faults[:40]),
            ]
        )


class Fleet:
    """Replicas, each with a state directory and a token endpoint of its own."""

    def __init__(
        self,
        directory: Path,
        database_url: str | Sequence[str],
        server: StrictServer,
        *,
        replicas: int,
        settings: dict[str, Any] | None = None,
        provider: dict[str, Any] | None = None,
    ) -> None:
        urls = [database_url] * replicas if isinstance(database_url, str) else database_url
        self.server = server
        self.retired: list[Tokenward] = []
        self.books = Books()
        self.grants: dict[str, Grant] = {}
        self.replicas = [Tokenward(directory / f"replica-{n}") for n in range(replicas)]
        for number, (replica, url) in enumerate(zip(self.replicas, urls, strict=True)):
            replica.settings |= {
                "database": {"url": url},
                "encryption": {"keys": KEYS},
                "refresh": {"concurrency": 500},
                **(settings or {}),
                "providers": {"acme": server.provider(f"replica-{number}", **(provider or {}))},
            }
        # One for each: a replica that answers nobody must not hold up those who ask the others.
        self._slots = {replica: asyncio.Semaphore(_AT_ONCE) for replica in self.replicas}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for replica in self.replicas:
            self._stack.push_async_callback(replica.close)
        try:
            # The first one makes the schema; a fleet that starts as one is another test's.
            await self.replicas[0].start(within=60)
            for some in _chunks(self.replicas[1:], 4):
                await asyncio.gather(*(replica.start(within=120) for replica in some))
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def successor(self, number: int) -> Tokenward:
        """Return a replica with a state directory of its own that is to take the place of one."""
        old = self.replicas[number]
        new = Tokenward(old.directory.with_name(f"replica-{number}-{len(self.retired)}"))
        kept = {name: each for name, each in old.settings.items() if name not in new.settings}
        new.settings |= kept
        new.arguments = old.arguments
        self._slots[new] = asyncio.Semaphore(_AT_ONCE)
        self._stack.push_async_callback(new.close)
        return new

    def replace(self, number: int, new: Tokenward) -> None:
        """Put a started successor in the place of a replica, whose log is still looked at."""
        self.retired.append(self.replicas[number])
        self.replicas[number] = new

    async def connect(self, name: str, *, replica: int = 0) -> Grant:
        """Import one grant as a connection that is at generation 1 and good for its lifetime."""
        grant = self.server.grant()
        created = await self.replicas[replica].create(
            "acme",
            id=name,
            tokens={
                "refresh_token": grant.refresh_token,
                "access_token": grant.access_token,
                "expires_at": "2030-01-01T00:00:00Z",
            },
        )
        if created["generation"] != 1:
            raise AssertionError(f"{name} begins at generation {created['generation']}")
        self.grants[name] = grant
        return grant

    async def ask(
        self, replica: Tokenward, method: str, path: str, *, quietly: bool = True
    ) -> Reply | None:
        """Send a request and note its status; ``None`` (0) where no answer came."""
        async with self._slots[replica]:
            try:
                reply = await replica.request(method, path)
            except (ClientError, OSError, TimeoutError):
                self.books.statuses[0] += quietly
                return None
        self.books.statuses[reply.status] += 1
        if reply.status >= 500 and reply.status != 503:
            self.books.faults.append(f"{method} {path}: {reply.status} {reply.content[:200]!r}")
        return reply

    async def force(self, replica: Tokenward, name: str) -> Reply | None:
        """Ask for a refresh now."""
        return await self.ask(replica, "POST", f"/v1/connections/{name}/refresh")

    async def newer(self, replica: Tokenward, name: str) -> Reply | None:
        """Read a token as a caller does whose last one got a 401."""
        path = f"/v1/connections/{name}/token"
        reply = await self.ask(replica, "GET", path)
        if reply is None or reply.status != 200:
            return reply
        return await self.ask(replica, "GET", f"{path}?newer_than={reply.body['generation']}")

    async def balance(self, *, excused: frozenset[str] = frozenset()) -> Books:
        """Compare the server's books with what every replica serves; return the whole account.

        ``excused`` names the connections whose grant may have been lost with a reply.
        """
        books, server = self.books, self.server
        books.requests, books.rotations = server.sends.total(), server.rotations
        lost = {self.grants[name].number: name for name in excused}
        for reuse in server.reuses:
            line = f"{reuse.token} was sent again by {reuse.sender}"
            (books.excused if reuse.grant in lost else books.faults).append(line)
        patient_until = time.monotonic() + _PATIENCE
        for name, grant in self.grants.items():
            await self._balance_one(
                name, grant, is_excused=name in excused, patient_until=patient_until
            )
        if not excused and not books.requests == books.rotations == books.gained:
            books.faults.append("requests, rotations and generations gained are not the same")
        self._look_for_bugs()
        return books

    def balance_ended(self) -> Books:
        """Compare the books where every connection has been disconnected."""
        books, server = self.books, self.server
        books.requests, books.rotations = server.sends.total(), server.rotations
        books.faults += [f"{token} was sent {n} times" for token, n in server.sent_twice().items()]
        self._look_for_bugs()
        return books

    def _look_for_bugs(self) -> None:
        for replica in (*self.replicas, *self.retired):
            self.books.faults += [
                f"{replica.directory.name} logged: {line[:600]}"
                for line in replica.log().splitlines()
                if BUGS.search(line)
            ]

    async def _balance_one(
        self, name: str, grant: Grant, *, is_excused: bool, patient_until: float
    ) -> None:
        note = self.books.excused if is_excused else self.books.faults
        newest = 0
        for replica in self.replicas:
            reply = await self._settled(replica, name, grant, patient_until=patient_until)
            if reply.status != 200:
                note.append(f"{name} at {replica.directory.name}: {reply.content[:300]!r}")
                continue
            newest = max(newest, reply.body["generation"])
            if reply.body["access_token"] != grant.access_token:
                note.append(
                    f"{name} at {replica.directory.name}: {reply.body['access_token']} is served "
                    f"at generation {reply.body['generation']}, {grant.access_token} is good"
                )
        self.books.gained += max(0, newest - 1)
        if not grant.is_alive and not is_excused:
            note.append(f"{name}: the grant is dead")

    async def _settled(
        self, replica: Tokenward, name: str, grant: Grant, *, patient_until: float
    ) -> Reply:
        """Read a token, again for a while where another replica's news is not there yet."""
        while True:
            reply = await replica.token(name)
            is_newest = reply.status == 200 and reply.body["access_token"] == grant.access_token
            if is_newest or time.monotonic() > patient_until:
                return reply
            await asyncio.sleep(0.2)


def _chunks(items: Sequence[Tokenward], size: int) -> list[Sequence[Tokenward]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
