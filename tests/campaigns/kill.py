"""The kill campaign: SIGKILL at random moments, then the books are balanced.

Real process, real PostgreSQL, a strict authorization server that tells which refresh token
followed which. After each kill the journal is read as the kill left it. What was in the journal
or in the database must be in force after the next start; a rotation that was in neither was lost
on the wire, which no client can prevent at a strict provider: it is counted, and excused.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - a campaign's chance is its seed, printed with the report
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import structlog
from aiohttp import ClientError

from daemon.config.settings import EncryptionKey
from daemon.domain.clock import system_entropy
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.segments import Kind, scan, segment_files
from tests.campaigns.nursery import ForkedTokenward, Nursery
from tests.support.oauth_flow import Reply
from tests.support.oidc_provider import OidcProvider
from tests.support.polling import eventually
from tests.support.server_events import digest

log = structlog.get_logger()

_KEY = bytes(32)
_KEY_TEXT = "A" * 43 + "="
_LONGEST_RUN = 0.35
# A long run that is cut off has said what it found until then.
_TELL_EVERY = 100


@dataclass
class Report:
    """What a campaign found. ``lost`` and ``reused`` must be empty."""

    seed: int
    kills: int = 0
    sends: int = 0
    recovered: int = 0
    lost_on_the_wire: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    reused: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        """Return one line for people."""
        return (
            f"seed {self.seed}: {self.kills} kills, {self.sends} refresh requests, "
            f"{self.recovered} replies recovered from the journal, "
            f"{len(self.lost_on_the_wire)} lost on the wire; received and lost: {len(self.lost)}, "
            f"sent twice: {len(self.reused)}"
        )


class KillCampaign:
    """One daemon that is killed again and again while its connections are refreshed."""

    def __init__(
        self, directory: Path, database_url: str, *, seed: int, connections: int = 3
    ) -> None:
        self.report = Report(seed=seed)
        self._chance = random.Random(seed)  # noqa: S311 - moments, not secrets
        self._daemon = ForkedTokenward(directory)
        self._database_url = database_url
        self._cipher = TokenCipher([EncryptionKey(id="k1", secret=_KEY)], entropy=system_entropy)
        self._wanted = connections
        self._names: list[str] = []
        self._made = 0
        self._read: dict[Path, set[str]] = {}

    async def run(self, kills: int) -> Report:
        """Kill so many times, then balance the books."""
        with OidcProvider() as server, Nursery() as self._daemon.nursery:
            self._daemon.settings |= self._settings(server)
            try:
                await self._daemon.start()
                for number in range(1, kills + 1):
                    await self._round(server)
                    if number % _TELL_EVERY == 0:
                        self._count_sends(server)
                        log.info("kills", report=str(self.report))
                await self._daemon.stop()
            finally:
                await self._daemon.close()
            self._count_sends(server)
        return self.report

    async def _round(self, server: OidcProvider) -> None:
        while len(self._names) < self._wanted:
            await self._add_connection(server)
        hammering = [asyncio.create_task(self._hammer(name)) for name in self._names]
        await asyncio.sleep(self._chance.uniform(0, _LONGEST_RUN))
        self._daemon.signal(signal.SIGKILL)
        await self._daemon.ended()
        for task in hammering:
            task.cancel()
        await asyncio.gather(*hammering, return_exceptions=True)
        self.report.kills += 1
        await self._balance(server)

    async def _balance(self, server: OidcProvider) -> None:
        # A request that had left may still be at the server: its end belongs to this kill.
        await eventually(lambda: is_idle(server), what="the end of the server's requests")
        # What the next process does by itself must not be mistaken for what this one lost.
        followed_by = successors(server)
        safe = self._journalled()
        before = await self._stored()
        await self._daemon.start()
        after = await self._stored()
        self.report.recovered += sum(
            before[name] in followed_by and before[name] != after[name] for name in before
        )
        for name, current in after.items():
            newer = followed_by.get(current)
            if newer is None:
                continue
            if newer in safe:
                self.report.lost.add(newer)
            else:
                self.report.lost_on_the_wire.add(current)
            if name in self._names:
                self._names.remove(name)
        # Strict: what is in doubt is not sent again before its token ends. Others take its place.
        doubted = await self._in_doubt()
        self._names = [name for name in self._names if name not in doubted]

    async def _hammer(self, name: str) -> None:
        """Ask for something newer, again and again, as a caller with a 401 does."""
        generation = 0
        while True:
            with suppress(ClientError, OSError):
                reply = await self._daemon.token(name, f"?newer_than={generation}")
                if reply.status == 200:
                    generation = reply.body["generation"]
                    continue
            await asyncio.sleep(0.01)

    async def _add_connection(self, server: OidcProvider) -> None:
        self._made += 1
        name = f"killed-{self._made}"
        granted = await server.connect()
        await self._daemon.create("acme", id=name, tokens=imported(granted))
        self._names.append(name)

    def _journalled(self) -> set[str]:
        """Return the digests of all refresh tokens that a journal file holds, whole."""
        *closed, newest = segment_files(self._daemon.state_dir / "journal")
        # Only the newest file of a journal is written to; each start begins another one.
        for path in closed:
            if path not in self._read:
                self._read[path] = self._tokens_in(path)
        return self._tokens_in(newest).union(*(self._read[path] for path in closed))

    def _tokens_in(self, path: Path) -> set[str]:
        found: set[str] = set()
        for record in scan(path.read_bytes()).records:
            if record.kind is Kind.REPLY:
                opened = self._cipher.open(
                    record.payload, connection="", column="journal", generation=0
                )
                body = orjson.loads(orjson.loads(opened)["body"])
                if "refresh_token" in body:
                    found.add(digest(body["refresh_token"]))
        return found

    async def _stored(self) -> dict[str, str]:
        """Return the digest of each connection's refresh token in the database."""
        connection = await asyncpg.connect(self._database_url)
        try:
            rows = await connection.fetch(
                "SELECT connection_id, generation, refresh_token FROM token_sets "
                "WHERE refresh_token IS NOT NULL"
            )
        finally:
            await connection.close()
        return {
            row["connection_id"]: digest(
                self._cipher.decrypt(
                    row["refresh_token"],
                    connection=row["connection_id"],
                    column="refresh_token",
                    generation=row["generation"],
                )
            )
            for row in rows
        }

    async def _in_doubt(self) -> set[str]:
        connection = await asyncpg.connect(self._database_url)
        try:
            rows = await connection.fetch(
                "SELECT connection_id FROM refresh_schedule WHERE state = 'in_doubt'"
            )
        finally:
            await connection.close()
        return {row["connection_id"] for row in rows}

    def _count_sends(self, server: OidcProvider) -> None:
        requests = server.token_requests()
        self.report.sends = requests.total()
        self.report.reused = {
            token
            for token, count in requests.items()
            if count > 1 and token not in self.report.lost_on_the_wire
        }

    def _settings(self, server: OidcProvider) -> dict[str, Any]:
        return {
            "database": {"url": self._database_url},
            "encryption": {"keys": [{"id": "k1", "secret": _KEY_TEXT}]},
            "providers": {
                "acme": {
                    "issuer": server.issuer,
                    "client_id": server.client_id,
                    "client_secret": server.client_secret,
                    "scopes": ["openid", "offline_access"],
                    "rate": "1000/s",
                }
            },
        }


def imported(granted: Reply) -> dict[str, str]:
    """Return tokens to import that need no refresh by themselves while a campaign runs."""
    return {
        "refresh_token": granted.refresh_token,
        "access_token": granted.access_token,
        "expires_at": "2030-01-01T00:00:00Z",
    }


async def is_idle(server: OidcProvider) -> bool:
    """Tell whether every request that has arrived has come to its end."""
    arrived = len(server.events("token_request.received"))
    return len(server.events("token_request.ended", "token_request.incomplete")) >= arrived


def successors(server: OidcProvider) -> dict[str, str]:
    """Return which refresh token followed which, by digest, as the server says."""
    return {
        str(event.members["presented_refresh_token"]): str(event.members["refresh_token"])
        for event in server.events("grant.success")
        if event.members.get("grant_type") == "refresh_token"
    }
