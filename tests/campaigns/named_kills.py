"""The kill campaign at named moments: SIGKILL before and after each step of the protocol, in turn.

A random kill seldom hits the microseconds between two steps; here each is hit. What must hold
afterwards is known for each moment: before the request left, nothing is lost; from the synced
journal on, nothing is lost either; a code is sent at most once; what was disconnected stays so.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path

import asyncpg
from aiohttp import ClientError

from daemon.demo.authorization_server.child import Event
from tests.campaigns.doomed import Doing, Doom, doom
from tests.campaigns.kill import KillCampaign, imported, is_idle, successors
from tests.campaigns.nursery import Nursery
from tests.support.oauth_flow import browser_session
from tests.support.oidc_provider import OidcProvider
from tests.support.polling import eventually
from tests.support.tokenward import connect

# A reply is in memory alone from its last byte until the journal is synced: in these moments a
# kill loses it, at a provider that is strict. Everywhere else it must not.
_IN_MEMORY_ONLY = frozenset(
    {
        ("first byte", "before"),  # the request may have left with the same turn of the loop
        ("first byte", "after"),
        ("reading", "before"),
        ("reading", "after"),
        ("keeping", "before"),
        ("sealing", "before"),
        ("sealing", "after"),
        ("group", "before"),
        ("append", "before"),
        ("append", "torn"),
        ("sync", "before"),
        # Notifications go out by themselves: the next refresh may be on its way already.
        ("notification", "before"),
        ("notification", "after"),
    }
)
# What leaves a reply in the journal that the database lacks: the start after it has work to do.
_PRELUDE = doom("refresh/settlement:before")
_DIES_WITHIN = 30.0


@dataclass
class NamedReport:
    """What the kills at named moments found. ``wrong`` and ``not_met`` must stay empty."""

    kills: int = 0
    lost_on_the_wire: int = 0
    not_met: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return a few lines for people."""
        return "\n".join(
            [
                f"{self.kills} kills at named moments",
                f"{self.lost_on_the_wire} replies lost before they were on the disk",
                f"not met: {len(self.not_met)}, wrong: {len(self.wrong)}",
                *(f"  NOT MET: {line}" for line in self.not_met),
                *(f"  WRONG: {line}" for line in self.wrong),
            ]
        )


class NamedKills(KillCampaign):
    """One daemon that is killed at each moment of a list."""

    def __init__(self, directory: Path, database_url: str) -> None:
        super().__init__(directory, database_url, seed=0, connections=0)
        self.found = NamedReport()
        self._armed = directory / "armed"
        self._following: Doom | None = None
        self._ended_grants: list[str] = []

    async def run_at(self, moments: Sequence[Doom]) -> NamedReport:
        """Be killed at each of the moments, and balance the books after each."""
        # Long lives: nothing but what a round asks for is refreshed, or meets its moment.
        with (
            Nursery() as self._daemon.nursery,
            OidcProvider(
                redirect_uris=(self._daemon.redirect_uri,),
                access_token_lifetime=timedelta(hours=1),
            ) as server,
        ):
            self._daemon.settings |= self._settings(server)
            provider = self._daemon.settings["providers"]["acme"]
            provider["authorization_params"] = {"prompt": "consent"}
            try:
                for moment, self._following in zip_longest(moments, moments[1:]):
                    await self._at(moment, server)
                await self._until_revoked(server)
                await self._daemon.stop()
            finally:
                await self._daemon.close()
            self._count_sends(server)
        self.found.lost_on_the_wire = len(self.report.lost_on_the_wire)
        self.found.wrong += [f"sent twice: {token}" for token in sorted(self.report.reused)]
        return self.found

    async def _at(self, moment: Doom, server: OidcProvider) -> None:
        rounds = {
            Doing.REFRESH: self._refreshing,
            Doing.START: self._starting,
            Doing.CONNECT: self._connecting,
            Doing.DISCONNECT: self._disconnecting,
        }
        self._wrong_at = str(moment)
        if self._daemon.process is None:
            self._doom(_first_end(moment))
            await self._daemon.start()
        await rounds[moment.doing](moment, server)

    async def _refreshing(self, moment: Doom, server: OidcProvider) -> None:
        await self._add_connection(server)
        await self._die_refreshing(moment)
        await self._balanced(moment, server)

    async def _starting(self, moment: Doom, server: OidcProvider) -> None:
        await self._add_connection(server)
        await self._die_refreshing(_PRELUDE)
        self._armed.touch()
        self._doom(moment)
        self._daemon.spawn()
        await self._ended(moment)
        await self._balanced(moment, server)

    async def _connecting(self, moment: Doom, server: OidcProvider) -> None:
        self._made += 1
        name = f"killed-{self._made}"
        created = await self._daemon.create("acme", id=name)
        before = len(_exchanges(server, "token_request.received"))
        self._armed.touch()
        async with browser_session() as browser:
            with suppress(ClientError, OSError):
                await connect(browser, created["connect_url"], server.login)
        await self._ended(moment)
        await eventually(lambda: is_idle(server), what="the end of the server's requests")
        self._prepare_next()
        await self._daemon.start()
        sent = _exchanges(server, "token_request.received")[before:]
        self._check(len(sent) <= 1, f"the code was sent {len(sent)} times")
        given = [
            str(event.members["refresh_token"])
            for event in _exchanges(server, "grant.success")[before:]
        ]
        has_arrived = bool(given) and given[0] in self._journalled()
        shown = await self._daemon.connection(name)
        self._check(
            (shown["status"] == "active") == has_arrived,
            f"{shown['status']}, and the reply was{'' if has_arrived else ' not'} on the disk",
        )
        self._check(
            has_arrived or (moment.name, moment.moment) in _IN_MEMORY_ONLY or not sent,
            "the reply is lost, and was on the disk",
        )
        if has_arrived:
            stored = await self._stored()
            self._check(stored[name] == given[0], "another refresh token is stored")

    async def _disconnecting(self, moment: Doom, server: OidcProvider) -> None:
        self._made += 1
        name = f"killed-{self._made}"
        granted = await server.connect()
        await self._daemon.create("acme", id=name, tokens=imported(granted))
        self._armed.touch()
        with suppress(ClientError, OSError):
            await self._daemon.request("DELETE", f"/v1/connections/{name}")
        await self._ended(moment)
        has_ended = await self._status(name) == "disconnected"
        self._check(
            has_ended != (moment.name == "end" and moment.moment == "before"),
            f"the database says disconnected: {has_ended}",
        )
        self._prepare_next()
        await self._daemon.start()
        reply = await self._daemon.token(name)
        if has_ended:
            self._check(reply.status == 409, f"a token request is answered with {reply.status}")
            self._ended_grants.append(granted.refresh_token)
        else:
            self._check(reply.status == 200, f"a token request is answered with {reply.status}")

    def _doom(self, moment: Doom) -> None:
        self._daemon.program = ("tests.campaigns.doomed", str(moment), "1", str(self._armed))

    async def _die_refreshing(self, moment: Doom) -> None:
        self._armed.touch()
        hammering = asyncio.create_task(self._hammer(self._names[-1]))
        await self._ended(moment)
        hammering.cancel()
        await asyncio.gather(hammering, return_exceptions=True)

    async def _ended(self, moment: Doom) -> None:
        try:
            await self._daemon.ended(within=_DIES_WITHIN)
            self.found.kills += 1
        except subprocess.TimeoutExpired:
            self.found.not_met.append(str(moment))
            self._daemon.signal(signal.SIGKILL)
            await self._daemon.ended()

    async def _until_revoked(self, server: OidcProvider) -> None:
        """Wait for all revocations at once: one that a kill cut off is tried again in a minute."""

        async def are_revoked() -> bool:
            return not any([await server.is_active(token) for token in self._ended_grants])

        await eventually(are_revoked, within=120, what="the revocations")

    def _prepare_next(self) -> None:
        """Let the next start be an undisturbed one, of a process that the next round can end."""
        self._armed.unlink(missing_ok=True)
        self._daemon.program = ("daemon",)
        if self._following is not None:
            self._doom(_first_end(self._following))

    async def _balanced(self, moment: Doom, server: OidcProvider) -> None:
        self._prepare_next()
        name = self._names[-1]
        wire, lost = len(self.report.lost_on_the_wire), len(self.report.lost)
        await self._balance(server)
        if len(self.report.lost_on_the_wire) > wire:
            self._check(
                (moment.name, moment.moment) in _IN_MEMORY_ONLY,
                "a rotation is lost, and its reply was on the disk",
            )
        self._check(len(self.report.lost) == lost, "a reply in the journal is lost")
        reply = await self._daemon.token(name)
        self._check(reply.status == 200, f"a token request is answered with {reply.status}")
        stored = await self._stored()
        if stored[name] not in successors(server):
            self._names = [other for other in self._names if other != name]

    async def _status(self, name: str) -> str:
        connection = await asyncpg.connect(self._database_url)
        try:
            status = await connection.fetchval("SELECT status FROM connections WHERE id = $1", name)
        finally:
            await connection.close()
        return str(status)

    def _check(self, holds: bool, otherwise: str) -> None:  # noqa: FBT001 - a condition
        if not holds:
            self.found.wrong.append(f"{self._wrong_at}: {otherwise}")


def _first_end(moment: Doom) -> Doom:
    """Return how the process that a round begins with ends."""
    return _PRELUDE if moment.doing is Doing.START else moment


def _exchanges(server: OidcProvider, name: str) -> list[Event]:
    return [
        event
        for event in server.events(name)
        if event.members.get("grant_type") == "authorization_code"
    ]
