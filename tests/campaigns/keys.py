"""The key campaign: a new encryption key for two replicas, while their connections are refreshed.

Each replica learns the key by SIGHUP, one after the other; ``keys rotate`` is killed in the middle
and started again; the old key is taken away by SIGHUP, and both start again without it. All the
time each connection is refreshed again and again, and tokens are read. A strict server counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import random  # noqa: TID251 - a campaign's chance is its seed, printed with the report
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from daemon.cli.exits import Exit
from daemon.persistence.journal_keys import count_records
from daemon.persistence.reencryption import count_ciphertexts
from tests.campaigns.fleet import KEYS, Books, Fleet
from tests.support.polling import eventually
from tests.support.strict_server import StrictServer
from tests.support.tokenward import ROOT, Tokenward

NEW = {"id": "k2", "secret": "B" * 43 + "="}
_OLD = KEYS[0]["id"]
# What a key that is not there, or a ciphertext in the wrong place, looks like.
_NOT_OPENED = ("cannot be decrypted", "decrypt_error", "not_opened", "key_missing")
_ROTATED_WITHIN = 180.0
# On a machine that does other things the database may be too busy for a new connection.
_REPEATS = 3
# What a thousand rows take at least, in seconds.
_WRITING = 0.3
_IMPORTS_AT_ONCE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of what. ``rest`` is for how many seconds a connection rests between refreshes.

    ``takes`` bounds how long the provider takes for each; ``kills`` is how often ``keys rotate``
    is killed.
    """

    connections: int
    takes: float
    rest: float
    kills: int
    seed: int = 1


@dataclass
class KeyReport:
    """What was seen; ``wrong`` must stay empty."""

    plan: Plan
    books: Books = field(default_factory=Books)
    statuses: Counter[str] = field(default_factory=Counter)
    reads: Counter[int] = field(default_factory=Counter)
    kills: int = 0
    repeats: int = 0
    most_under_way: int = 0
    slowest_read: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    needed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return a few lines for people."""
        seconds = ", ".join(f"{what} {length:.1f} s" for what, length in self.seconds.items())
        return "\n".join(
            [
                f"{self.plan}",
                f"answers to refreshes: {dict(self.statuses)}",
                f"at most {self.most_under_way} requests at the provider at one moment",
                f"reads: {dict(self.reads)}, the slowest {self.slowest_read * 1000:.0f} ms",
                f"{seconds}; keys rotate was killed {self.kills} times while it wrote",
                f"it was repeated {self.repeats} times because the database was too busy",
                f"wrong: {len(self.wrong)}",
                *(f"  WRONG: {line}" for line in self.wrong[:40]),
                str(self.books),
            ]
        )


class KeyCampaign:
    """One rotation under load."""

    def __init__(self, directory: Path, database_url: str, plan: Plan) -> None:
        self.report = KeyReport(plan)
        self._directory = directory
        self._database_url = database_url
        self._plan = plan
        self._chance = random.Random(plan.seed)  # noqa: S311 - moments, not secrets
        self._names = [f"sealed-{number}" for number in range(plan.connections)]
        self._ends = asyncio.Event()
        # Which replicas are there to be asked.
        self._up: list[Tokenward] = []

    async def run(self) -> KeyReport:
        """Rotate, then balance the books."""
        server = StrictServer(delay=lambda: self._chance.uniform(0.0, self._plan.takes))
        async with (
            server,
            Fleet(self._directory, self._database_url, server, replicas=2) as fleet,
            ClientSession(
                connector=TCPConnector(limit=0), timeout=ClientTimeout(total=120)
            ) as session,
        ):
            for start in range(0, len(self._names), _IMPORTS_AT_ONCE):
                some = self._names[start : start + _IMPORTS_AT_ONCE]
                await asyncio.gather(*(fleet.connect(name) for name in some))
            self._up = list(fleet.replicas)
            async with asyncio.TaskGroup() as group:
                for name in self._names:
                    group.create_task(self._refresh(session, name))
                group.create_task(self._read(session))
                group.create_task(self._watch(server))
                await self._change_keys(fleet)
                self._ends.set()
            await self._compare(fleet)
        return self.report

    async def _change_keys(self, fleet: Fleet) -> None:
        first = fleet.replicas[0]
        with self._timed("new key at both"):
            await self._configure(first, [NEW, *KEYS])
            code, said = await self._rotate(first)
            if code != 1 or "do not have the key" not in said:
                self.report.wrong.append(f"keys rotate before all have the key: {code} {said}")
            await self._configure(fleet.replicas[1], [NEW, *KEYS])
        with self._timed("rotation"):
            for _ in range(self._plan.kills):
                await self._rotate(first, is_killed=True)
            code, said = await self._rotate(first)
            while code == Exit.UNAVAILABLE and self.report.repeats < _REPEATS:
                self.report.repeats += 1
                code, said = await self._rotate(first)
            if code:
                self.report.wrong.append(f"keys rotate ended with {code}: {said[-500:]}")
        with self._timed("until the old key may go"):
            try:
                await eventually(lambda: self._may_go(first), within=_ROTATED_WITHIN)
            except AssertionError:
                self.report.wrong.append(f"the old key may not go: {self.report.needed}")
                return
        for replica in fleet.replicas:
            await self._configure(replica, [NEW])
        with self._timed("restart of both without it"):
            for replica in fleet.replicas:
                self._up.remove(replica)
                if code := await replica.stop(within=75):
                    self.report.wrong.append(f"{replica.directory.name} ended with {code}")
                await replica.start(within=90)
                self._up.append(replica)
        await asyncio.sleep(self._plan.rest + self._plan.takes)

    async def _configure(self, replica: Tokenward, keys: list[dict[str, str]]) -> None:
        replica.settings["encryption"] = {"keys": keys}
        if not await replica.reload():
            rejected = replica.logged("configuration_rejected")[-1]
            self.report.wrong.append(f"{replica.directory.name} refused its keys: {rejected}")

    async def _rotate(self, replica: Tokenward, *, is_killed: bool = False) -> tuple[int, str]:
        """Run the command, to its end or until it has begun to write."""
        process = await asyncio.create_subprocess_exec(
            *command(replica, "keys", "rotate"),
            cwd=ROOT,
            env=environ_of(replica),
            stdout=DEVNULL,
            stderr=PIPE,
        )
        said = b""
        async with asyncio.timeout(_ROTATED_WITHIN):
            if is_killed and process.stderr is not None:
                said = await process.stderr.readline()
                await asyncio.sleep(self._chance.uniform(0.0, _WRITING))
                with suppress(ProcessLookupError):
                    process.kill()
            said += (await process.communicate())[1]
        self.report.kills += process.returncode == -signal.SIGKILL
        return process.returncode or 0, said.decode()

    async def _may_go(self, replica: Tokenward) -> bool:
        # The command costs more than the daemons do meanwhile.
        await asyncio.sleep(1.0)
        process = await asyncio.create_subprocess_exec(
            *command(replica, "keys", "status", "--output", "json"),
            cwd=ROOT,
            env=environ_of(replica),
            stdout=PIPE,
        )
        said, _ = await process.communicate()
        (old,) = (key for key in json.loads(said)["keys"] if key["id"] == _OLD)
        self.report.needed = old["needed"]
        return bool(old["may_be_removed"])

    async def _refresh(self, session: ClientSession, name: str) -> None:
        """Refresh a connection again and again, at whichever replica is there."""
        while not self._ends.is_set():
            replica = self._chance.choice(self._up)
            self.report.statuses[await self._force(session, replica, name)] += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(self._chance.uniform(0.0, 2 * self._plan.rest)):
                    await self._ends.wait()

    async def _force(self, session: ClientSession, replica: Tokenward, name: str) -> str:
        try:
            async with session.post(
                f"{replica.api_url}/v1/connections/{name}/refresh",
                headers={"Authorization": f"Bearer {replica.key}"},
            ) as answer:
                body = await answer.json()
        except (ClientError, OSError):
            # It has just been stopped, or has not started yet.
            if replica in self._up:
                self.report.wrong.append(f"{replica.directory.name} did not answer")
            await asyncio.sleep(0.1)
            return "none"
        if answer.status != 200 and replica in self._up:
            self.report.wrong.append(f"{name}: {answer.status} {body}")
        return str(answer.status)

    async def _read(self, session: ClientSession) -> None:
        """Read tokens: one that is good must be served at once, whatever happens to keys."""
        loop = asyncio.get_running_loop()
        while not self._ends.is_set():
            replica, name = self._chance.choice(self._up), self._chance.choice(self._names)
            began = loop.time()
            try:
                async with session.get(
                    f"{replica.api_url}/v1/connections/{name}/token",
                    headers={"Authorization": f"Bearer {replica.key}"},
                ) as answer:
                    await answer.read()
            except (ClientError, OSError):
                continue
            self.report.slowest_read = max(self.report.slowest_read, loop.time() - began)
            self.report.reads[answer.status] += 1
            if answer.status != 200:
                self.report.wrong.append(f"read of {name}: {answer.status}")
            await asyncio.sleep(0.02)

    async def _watch(self, server: StrictServer) -> None:
        while not self._ends.is_set():
            self.report.most_under_way = max(self.report.most_under_way, server.under_way)
            await asyncio.sleep(0.05)

    async def _compare(self, fleet: Fleet) -> None:
        """Look for anything of the old key, and for anything that did not open."""
        report, wrong = self.report, self.report.wrong
        connection = await asyncpg.connect(self._database_url)
        try:
            counts = await count_ciphertexts(connection)
        finally:
            await connection.close()
        if set(counts) != {NEW["id"]}:
            wrong.append(f"ciphertexts by key: {counts}")
        for replica in fleet.replicas:
            records = count_records(replica.state_dir / "journal")
            if set(records) - {NEW["id"]}:
                wrong.append(f"journal of {replica.directory.name} by key: {records}")
            lines = replica.log().splitlines()
            wrong += [line[:400] for line in lines if any(each in line for each in _NOT_OPENED)]
        wrong += [f"{token} was sent {n} times" for token, n in fleet.server.sent_twice().items()]
        report.books = await fleet.balance()
        wrong += report.books.faults

    def _timed(self, what: str) -> Any:
        return _Timed(self.report.seconds, what)


class _Timed:
    """Notes how long its block took."""

    def __init__(self, seconds: dict[str, float], what: str) -> None:
        self._seconds = seconds
        self._what = what
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = asyncio.get_running_loop().time()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._what] = asyncio.get_running_loop().time() - self._began


def command(replica: Tokenward, *arguments: str) -> tuple[str, ...]:
    """Return how the command line is called with a replica's configuration."""
    return (sys.executable, "-m", "daemon", "--config", str(replica.config_path), *arguments)


def environ_of(replica: Tokenward) -> dict[str, str]:
    """Return the environment of such a call."""
    return {"PATH": os.environ["PATH"], "HOME": str(replica.directory)}
