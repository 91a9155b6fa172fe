"""The database: one serialisable store, and each process's unreliable way to it.

A statement takes effect whole, at a moment of the seed's choice; its answer may be lost, and so
may the statement. It may also take effect after its connection was given up.
"""

from __future__ import annotations

import copy
import random  # noqa: TID251 - a simulation's chance is its seed
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum, auto
from typing import Any, TypeVar

from daemon.domain.admission import ProviderState
from daemon.domain.authorization import Completion, NotStored, NotStoredReason, StoredAuthorization
from daemon.domain.claim import Abandoned, ClaimState, Standing
from daemon.domain.connection import Connection, Status
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.tokens import CurrentToken, TokenSet
from tests.simulation.books import LAG, Books
from tests.simulation.clocks import MachineClock
from tests.simulation.loop import Life, SimulatedLoop
from tests.simulation.machines import Machine
from tests.simulation.trace import Trace
from tests.support.memory_refreshes import MemoryRefreshes, MemoryRow

_T = TypeVar("_T")
# dialing.py: so long a statement waits for the end of a reconnect, looking again so often.
_ACQUIRES = 5.0
_LOOKS_AGAIN = 0.25


class StatementFault(Enum):
    """What goes wrong with one statement."""

    LOST = auto()
    """The connection breaks before it takes effect."""
    UNACKNOWLEDGED = auto()
    """It breaks after that."""
    LATE = auto()
    """It breaks at once, and the server runs the statement all the same, seconds later."""


class Rows(MemoryRefreshes):
    """The store itself: what PostgreSQL's rows and statements do, one at a time."""

    def __init__(self, clock: MachineClock, books: Books) -> None:
        super().__init__(clock)
        self._books = books
        self._created = 0

    async def abandoned(self, providers: Sequence[str], *, now: datetime) -> list[Abandoned]:
        """Return claims whose take-over time has passed; like PostgreSQL's only those due."""
        found = await super().abandoned(providers, now=now)
        due = {one.id: one.due_at for one in self.rows.values()}
        return [one for one in found if (at := due[one.connection_id]) is not None and at <= now]

    async def disconnect(self, name: str) -> CurrentToken | None:
        """Erase a connection's tokens and queue them for revocation; ``None``: it is not there."""
        row = self.rows.get(name)
        if row is None:
            return None
        if row.status is not Status.DISCONNECTED:
            self.disowned.append((name, row.provider, row.tokens))
            self._take_orphans(row)
            row.disconnect()
            row.take_over_at, row.failures = None, 0
        return (await self.current([name]))[0]

    async def purge(self, name: str) -> None:
        """Disconnect, and leave nothing of a connection."""
        if name in self.rows:
            await self.disconnect(name)
            del self.rows[name]

    async def create(self, name: str, make: Callable[[], MemoryRow]) -> bool:
        """Import a connection, unless there is one; it cannot be taken for an earlier one."""
        if name in self.rows:
            return False
        row = make()
        self._created += 1
        row.epoch = self._created * 1000
        self.rows[row.id] = row
        return True

    async def complete(self, completion: Completion) -> StoredAuthorization | NotStored:
        """Store the tokens of an authorization, as ``daemon.domain.completion`` decides."""
        row = self.rows.get(completion.connection_id)
        if row is None:
            provider = completion.provider or ""
            self.disowned.append((completion.connection_id, provider, completion.tokens))
            return NotStored(reason=NotStoredReason.GONE)
        wanted, tokens = completion.only_after, completion.tokens
        if wanted is not None and wanted != row.tokens.generation:
            return NotStored(reason=NotStoredReason.SUPERSEDED)
        stored = (row.tokens.access_token, row.tokens.issued_at)
        if stored != (tokens.access_token, tokens.issued_at):
            if self._was_disconnected(row, completion):
                self.disowned.append((row.id, row.provider, tokens))
                return NotStored(reason=NotStoredReason.DISCONNECTED)
            if completion.revokes_replaced:
                self.disowned.append((row.id, row.provider, row.tokens))
            self._take_orphans(row, revokes=completion.revokes_replaced)
            self._authorize(row, completion)
        return StoredAuthorization(connection=_connection(row, self._clock.now()))

    async def standing(self, ids: Sequence[str]) -> Mapping[str, Standing]:
        """Return where connections stand."""
        return {
            row.id: Standing(
                status=row.status,
                generation=row.tokens.generation,
                epoch=row.epoch,
                granted_at=row.granted_at,
            )
            for row in (self.rows[one] for one in ids if one in self.rows)
        }

    def _was_disconnected(self, row: MemoryRow, completion: Completion) -> bool:
        if completion.epoch is None:
            return row.status is Status.DISCONNECTED
        return completion.epoch != row.epoch

    def _authorize(self, row: MemoryRow, completion: Completion) -> None:
        generation = max(row.tokens.generation + 1, completion.least_generation)
        row.tokens = replace(completion.tokens, generation=generation)
        row.grant_generation, row.granted_at = generation, row.tokens.issued_at
        row.due_at, row.status, row.state = completion.due_at, Status.ACTIVE, ClaimState.IDLE
        row.attempt = row.owner = row.take_over_at = row.last_error = None
        row.failures = 0

    def _take_orphans(self, row: MemoryRow, *, revokes: bool = True) -> None:
        for number, (name, _, tokens) in list(self.orphans.items()):
            if name == row.id:
                del self.orphans[number]
                if revokes:
                    self.disowned.append((name, row.provider, tokens))


@dataclass(frozen=True, slots=True)
class Replica:
    """A row of ``replicas``: who has compared its journal with which incarnation."""

    incarnation: str
    since: float
    seen_at: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The store at a moment."""

    at: float
    rows: dict[str, MemoryRow]
    states: dict[str, ProviderState]
    disowned: int
    orphans: dict[int, tuple[str, str, TokenSet]]
    replicas: dict[str, Replica]


class DatabaseModel:
    """The server. ``outages`` counts what keeps it away from everybody now."""

    def __init__(
        self, loop: SimulatedLoop, rows: Rows, books: Books, *, is_asynchronous: bool
    ) -> None:
        self._loop = loop
        self._books = books
        self._is_asynchronous = is_asynchronous
        self._snapshots: list[Snapshot] = []
        self.rows = rows
        self.outages = 0
        self.starts = 1
        self.replicas: dict[str, Replica] = {}

    def run(self, statement: str, work: Callable[[Rows], Coroutine[Any, Any, _T]]) -> _T:
        """Let a statement take effect, now and whole."""
        self._remember()
        coroutine = work(self.rows)
        try:
            coroutine.send(None)
        except StopIteration as done:
            self._books.revoked = {
                tokens.refresh_token
                for _, _, tokens in self.rows.disowned
                if tokens.refresh_token is not None
            }
            self._books.orphaned = {
                tokens.refresh_token
                for _, _, tokens in self.rows.orphans.values()
                if tokens.refresh_token is not None
            }
            self._books.looked_at(statement)
            answer: _T = done.value
            return answer
        raise AssertionError("a statement waits for something")

    @property
    def incarnation(self) -> str:
        """Return what a server's start and its files are known by."""
        return f"start {self.starts}"

    def fail_over(self, chance: random.Random) -> None:
        """Promote the standby: what it had not received yet is gone."""
        self.starts += 1
        self._books.has_failed_over = True
        lag = chance.uniform(0.0, LAG)
        found = [one for one in self._snapshots if one.at >= self._loop.time() - lag]
        if not found:
            return
        then = found[0]
        self.rows.rows.clear()
        self.rows.rows.update({name: copy.copy(row) for name, row in then.rows.items()})
        self.rows.states = dict(then.states)
        del self.rows.disowned[then.disowned :]
        self.rows.orphans = dict(then.orphans)
        self.replicas = dict(then.replicas)
        self._snapshots.clear()
        self._books.rolled_back()

    def _remember(self) -> None:
        if not self._is_asynchronous:
            return
        now = self._loop.time()
        rows = {name: copy.copy(row) for name, row in self.rows.rows.items()}
        self._snapshots = [one for one in self._snapshots if one.at >= now - LAG]
        self._snapshots.append(
            Snapshot(
                now,
                rows,
                dict(self.rows.states),
                len(self.rows.disowned),
                dict(self.rows.orphans),
                dict(self.replicas),
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SentStatement:
    """A statement on its way; after ``give_up_at`` it does not wait for a reconnect any more."""

    name: str
    work: Callable[[Rows], Coroutine[Any, Any, Any]]
    future: Any
    fault: StatementFault | None
    give_up_at: float


@dataclass(kw_only=True)
class Way:
    """One process's way to the database."""

    loop: SimulatedLoop
    database: DatabaseModel
    machine: Machine
    life: Life
    books: Books
    trace: Trace
    chance: random.Random
    fault: Callable[[], StatementFault | None]

    async def call(self, statement: str, work: Callable[[Rows], Coroutine[Any, Any, _T]]) -> _T:
        """Run a statement.

        Raises:
            DatabaseUnavailableError: it may or may not have taken effect, or do so later.
        """
        future = self.loop.create_future()
        fault = self.fault()
        if fault is not None:
            self.machine.statement_faults += 1
            self.trace.count(f"fault: statement {fault.name.lower()}")
            self.trace.tell(self.life.name, f"{statement} {fault.name}")
        give_up_at = self.loop.time() + _ACQUIRES
        latency = self.chance.uniform(0.0003, 0.02)
        if fault is StatementFault.LATE:
            self.loop.outside(latency, _fail, future)
            latency = self.chance.uniform(0.05, 8.0)
        sent = SentStatement(
            name=statement, work=work, future=future, fault=fault, give_up_at=give_up_at
        )
        self.loop.outside(latency, self._effect, sent)
        answer: _T = await future
        return answer

    def _effect(self, sent: SentStatement) -> None:
        statement, work, future, fault = sent.name, sent.work, sent.future, sent.fault
        if fault is None and self._is_away() and self.loop.time() < sent.give_up_at:
            self.loop.outside(_LOOKS_AGAIN, self._effect, sent)
            return
        if fault is StatementFault.LOST or self._is_away():
            self.machine.statement_faults += 1
            self.loop.outside(self.chance.uniform(0.0, 0.5), _fail, future)
            return
        try:
            answer = self.database.run(statement, work)
        except DatabaseUnavailableError as error:
            self.trace.count("branch: refused in a new incarnation")
            self.machine.statement_faults += 1
            if not future.done():
                future.set_exception(error)
            return
        back = self.chance.uniform(0.0003, 0.01)
        if fault is None:
            self.loop.outside(back, self._answer, future, answer)
        else:
            self.loop.outside(back, _fail, future)

    def _answer(self, future: Any, answer: object) -> None:
        """Deliver an answer, unless the link broke meanwhile."""
        if self._is_away():
            self.machine.statement_faults += 1
            _fail(future)
        elif not future.done():
            future.set_result(answer)

    def _is_away(self) -> bool:
        return self.database.outages > 0 or self.machine.cuts > 0


def _fail(future: Any) -> None:
    if not future.done():
        future.set_exception(DatabaseUnavailableError("the connection was cut"))


def _connection(row: MemoryRow, now: datetime) -> Connection:
    return Connection(
        id=row.id,
        provider=row.provider,
        grant="authorization_code",
        status=row.status,
        generation=row.tokens.generation,
        expires_at=row.tokens.expires_at,
        has_refresh_token=row.tokens.refresh_token is not None,
        created_at=now,
        updated_at=now,
    )
