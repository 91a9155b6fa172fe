"""The disconnect campaign: a person disconnects in the middle of a refresh, on another replica.

A second after the 200 no replica serves a token of it, the refresh does not bring it back, and the
authorization server has been asked to revoke what the refresh brought.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - a campaign's chance is its seed, printed with the report
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.campaigns.fleet import Fleet
from tests.support.polling import eventually
from tests.support.strict_server import Grant, StrictServer
from tests.support.tokenward import Tokenward

_GRACE = 1.0
_WATCHED = 1.5
_REVOKED_WITHIN = 90.0


@dataclass
class DisconnectReport:
    """What the races ended in; ``wrong`` must stay empty."""

    seed: int
    disconnects: int = 0
    raced: int = 0
    latest: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return a few lines for people."""
        return "\n".join(
            [
                f"seed {self.seed}: {self.disconnects} disconnects, {self.raced} in a refresh",
                f"latest token {self.latest:.3f} s after a 200; wrong: {len(self.wrong)}",
                *(f"  WRONG: {line}" for line in self.wrong[:40]),
            ]
        )


class DisconnectCampaign:
    """A fleet whose connections are disconnected while they are refreshed."""

    def __init__(
        self, directory: Path, database_url: str, *, seed: int, replicas: int = 3, at_once: int = 15
    ) -> None:
        self.report = DisconnectReport(seed)
        self._directory = directory
        self._database_url = database_url
        self._replicas = replicas
        self._at_once = at_once
        self._chance = random.Random(seed)  # noqa: S311 - moments, not secrets

    async def run(self, disconnects: int) -> DisconnectReport:
        """Race so many times."""
        server = StrictServer(delay=lambda: self._chance.uniform(0.0, 0.3))
        async with (
            server,
            Fleet(self._directory, self._database_url, server, replicas=self._replicas) as fleet,
        ):
            names = [f"ended-{number}" for number in range(disconnects)]
            for start in range(0, disconnects, self._at_once):
                some = names[start : start + self._at_once]
                await asyncio.gather(*(self._race(fleet, name) for name in some))
            await self._until_revoked(fleet)
            self.report.wrong += fleet.balance_ended().faults
        return self.report

    async def _race(self, fleet: Fleet, name: str) -> None:
        await fleet.connect(name)
        for replica in fleet.replicas:
            await replica.token(name)
        refreshing, ending = self._chance.choices(fleet.replicas, k=2)
        forced = asyncio.create_task(fleet.force(refreshing, name))
        await asyncio.sleep(self._chance.uniform(0.0, 0.25))
        self.report.raced += not forced.done()
        reply = await fleet.ask(ending, "DELETE", f"/v1/connections/{name}")
        ended_at = time.monotonic()
        self.report.disconnects += 1
        if reply is None or reply.status != 200:
            self.report.wrong.append(f"{name}: {reply and reply.content!r}")
            return
        await asyncio.gather(*(self._watch(replica, name, ended_at) for replica in fleet.replicas))
        await forced
        await self._stays_ended(fleet.replicas, name)

    async def _watch(self, replica: Tokenward, name: str, ended_at: float) -> None:
        """Note when the last token was served after the disconnect."""
        while (asked_at := time.monotonic()) < ended_at + _WATCHED:
            reply = await replica.token(name)
            if reply.status == 200:
                after = asked_at - ended_at
                self.report.latest = max(self.report.latest, after)
                if after > _GRACE:
                    self.report.wrong.append(f"{name} is served {after:.2f} s after the 200")
            await asyncio.sleep(0.02)

    async def _stays_ended(self, replicas: Sequence[Tokenward], name: str) -> None:
        for replica in replicas:
            read, shown = await replica.token(name), await replica.connection(name)
            if (read.status, shown["status"]) != (409, "disconnected"):
                self.report.wrong.append(f"{name} came back: {read.status}, {shown['status']}")

    async def _until_revoked(self, fleet: Fleet) -> None:
        """Wait until the server was asked to revoke the newest refresh token of every grant."""

        def left() -> list[Grant]:
            return [
                grant
                for grant in fleet.grants.values()
                if grant.refresh_token not in fleet.server.revoked
            ]

        async def none_is_left() -> bool:
            return not left()

        try:
            await eventually(none_is_left, within=_REVOKED_WITHIN, what="the revocations")
        except AssertionError:
            self.report.wrong += [f"{grant.refresh_token} was never revoked" for grant in left()]
