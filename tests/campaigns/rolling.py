"""The rolling campaign: replicas are replaced one after the other while callers read.

Callers ask as through a Service: some replica that said it is ready, the next one where that one
hangs up. Tokens live for seconds, so every replacement meets refreshes on their way, at a server
that ends a grant where it sees a refresh token twice.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - a campaign's chance is its seed, printed with the report
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from aiohttp import ClientError

from tests.campaigns.fleet import Books, Fleet
from tests.support.polling import eventually
from tests.support.strict_server import StrictServer
from tests.support.tokenward import Reply, Tokenward

_REPLICAS = 3
_STARTED_WITHIN = 90.0
_GRACE = 75.0
# How often the readiness of each replica is asked, as a kubelet does, only quicker.
_PROBE = 0.2
# A Service forwards to what it knows; a client tries again where nobody is at home any more.
_TRIES = 3


class How(StrEnum):
    """How a replica is replaced."""

    DEPLOYMENT = "deployment"
    """A new process with an empty state directory is ready before the old one is told to end."""
    STATEFUL_SET = "stateful set"
    """The old process ends, then a new one starts with its state directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of what. Each caller pauses for ``pause`` seconds between two reads.

    ``is_central``: two processes only refresh and are replaced, callers ask a third, which only
    serves. Else all three do both.
    """

    rounds: int = 1
    connections: int = 40
    callers: int = 8
    lifetime: int = 8
    pause: float = 0.02
    seed: int = 1
    is_central: bool = False

    @property
    def replaced(self) -> int:
        """Return how many replicas are replaced in a round."""
        return _REPLICAS - self.is_central

    @property
    def roles(self) -> list[str]:
        """Return what each replica is for."""
        central = ["refresh"] * (_REPLICAS - 1) + ["serve"]
        return central if self.is_central else ["all"] * _REPLICAS


@dataclass
class RollingReport:
    """What callers saw; ``failed`` and the books' faults must stay empty."""

    plan: Plan
    replaced: Counter[How] = field(default_factory=Counter)
    reads: int = 0
    moved_on: int = 0
    warned: int = 0
    slowest_read: float = 0.0
    slowest_stop: float = 0.0
    in_flight: int = 0
    failed: list[str] = field(default_factory=list)
    books: Books = field(default_factory=Books)

    def __str__(self) -> str:
        """Return a few lines for people."""
        ways = ", ".join(f"{count} as a {how}" for how, count in sorted(self.replaced.items()))
        return "\n".join(
            [
                str(self.plan),
                f"replaced: {ways}; {self.in_flight} requests were under way when told to end",
                f"reads {self.reads}, failed {len(self.failed)}, warned {self.warned}",
                f"asked again at another replica {self.moved_on} times",
                f"slowest read {self.slowest_read:.2f} s, slowest end {self.slowest_stop:.1f} s",
                *(f"  FAILED: {line}" for line in self.failed[:20]),
                str(self.books),
            ]
        )


class RollingCampaign:
    """Three replicas, all replaced in each round."""

    def __init__(self, directory: Path, database_url: str, plan: Plan) -> None:
        self.report = RollingReport(plan)
        self._directory = directory
        self._database_url = database_url
        self._chance = random.Random(plan.seed)  # noqa: S311 - moments, not secrets
        self._names = [f"rolled-{number}" for number in range(plan.connections)]
        self._ready: list[Tokenward] = []

    async def run(self) -> RollingReport:
        """Run all rounds under load, then balance the books."""
        plan = self.report.plan
        server = StrictServer(
            expires_in=plan.lifetime, delay=lambda: self._chance.uniform(0.0, 0.3)
        )
        async with server:
            fleet = Fleet(self._directory, self._database_url, server, replicas=_REPLICAS)
            for replica, role in zip(fleet.replicas, plan.roles, strict=True):
                replica.arguments = ("--role", role)
            async with fleet:
                await self._connect(fleet)
                await self._replace_all(fleet)
                await self._quiet(fleet)
                self.report.books = await fleet.balance()
        return self.report

    async def _replace_all(self, fleet: Fleet) -> None:
        """Replace one after the other while callers read."""
        plan = self.report.plan
        self._ready = self._asked(fleet)
        async with asyncio.TaskGroup() as group:
            load = [group.create_task(self._probe(fleet))]
            load += [group.create_task(self._read_on()) for _ in range(plan.callers)]
            for turn in range(plan.rounds * plan.replaced):
                rounds, number = divmod(turn, plan.replaced)
                how = How.STATEFUL_SET if (rounds + number) % 2 else How.DEPLOYMENT
                await self._replace(fleet, number, how)
            for task in load:
                task.cancel()

    async def _connect(self, fleet: Fleet) -> None:
        """Connect, and let each begin with a token that lives for seconds."""
        await asyncio.gather(*(fleet.connect(name) for name in self._names))
        await asyncio.gather(*(fleet.force(fleet.replicas[0], name) for name in self._names))

    async def _replace(self, fleet: Fleet, number: int, how: How) -> None:
        old = fleet.replicas[number]
        # So that the load meets each state of the fleet for a while.
        await asyncio.sleep(self._chance.uniform(0.5, 1.5))
        if how is How.DEPLOYMENT:
            new = fleet.successor(number)
            await new.start(within=_STARTED_WITHIN)
            fleet.replace(number, new)
            await self._stop(fleet, old)
        else:
            await self._stop(fleet, old)
            await old.start(within=_STARTED_WITHIN)
        self.report.replaced[how] += 1

    async def _stop(self, fleet: Fleet, old: Tokenward) -> None:
        self.report.in_flight += fleet.server.under_way
        began = time.monotonic()
        code = await old.stop(within=_GRACE)
        self.report.slowest_stop = max(self.report.slowest_stop, time.monotonic() - began)
        if code != 0:
            self.report.failed.append(f"{old.directory.name} ended with {code}")

    async def _probe(self, fleet: Fleet) -> None:
        """Keep the list of those that are ready, as the endpoints of a Service are kept."""
        while True:
            replicas = self._asked(fleet)
            answers = await asyncio.gather(*(_is_ready(replica) for replica in replicas))
            self._ready = [each for each, ready in zip(replicas, answers, strict=True) if ready]
            await asyncio.sleep(_PROBE)

    def _asked(self, fleet: Fleet) -> list[Tokenward]:
        """Return the replicas that callers ask."""
        return fleet.replicas[self.report.plan.replaced :] or list(fleet.replicas)

    async def _read_on(self) -> None:
        while True:
            await self._read(self._chance.choice(self._names))
            await asyncio.sleep(self.report.plan.pause)

    async def _read(self, name: str) -> None:
        """Read one token, from one replica after the other until one answers."""
        query = "?min_ttl=2" if self._chance.random() < 0.1 else ""
        began, report = time.monotonic(), self.report
        last = "no replica was ready"
        report.reads += 1
        # Never the same one again: that is what a client of several endpoints does.
        for replica in self._chance.sample(self._ready, k=len(self._ready))[:_TRIES]:
            try:
                reply = await replica.token(name, query)
            except (ClientError, OSError, TimeoutError) as error:
                last = f"{replica.directory.name}: {error!r}"
                report.moved_on += 1
                continue
            report.slowest_read = max(report.slowest_read, time.monotonic() - began)
            self._judge(name + query, replica, reply)
            return
        report.failed.append(f"{name}: {last}")

    def _judge(self, what: str, replica: Tokenward, reply: Reply) -> None:
        if reply.status != 200:
            self.report.failed.append(
                f"{what} at {replica.directory.name}: {reply.content[:300]!r}"
            )
            return
        self.report.warned += "warning" in reply.body
        if reply.body["expires_in"] < 1:
            self.report.failed.append(f"{what} at {replica.directory.name}: an expired token")

    async def _quiet(self, fleet: Fleet) -> None:
        """Let the tokens that are given from now on last, and wait until all have such a one."""
        fleet.server.expires_in = 3600

        async def all_last() -> bool:
            replies = [await fleet.replicas[0].token(name) for name in self._names]
            return fleet.server.under_way == 0 and all(
                reply.status == 200 and reply.body["expires_in"] > 600 for reply in replies
            )

        await eventually(all_last, within=60, what="the end of the short tokens")


async def _is_ready(replica: Tokenward) -> bool:
    try:
        async with replica.session.get(f"{replica.ops_url}/readiness") as answer:
            return answer.status == 200
    except (ClientError, OSError, TimeoutError):
        return False
