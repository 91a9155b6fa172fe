"""Tickets and authorization transactions on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from daemon.domain.account import Account
from daemon.domain.authorization import (
    Completion,
    NotStored,
    NotStoredReason,
    PendingAuthorization,
    StoredAuthorization,
    Ticket,
)
from daemon.domain.claim import Claim, ClaimState, Settled, Settlement
from daemon.domain.claimable import Wanted
from daemon.domain.connection import Connection, Status
from daemon.domain.errors import DatabaseUnavailableError, DecryptionError
from daemon.domain.revocation import Initiator
from daemon.domain.tokens import TokenSet
from daemon.persistence.authorizations import PostgresAuthorizations
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.history import EventRecorder, PostgresHistory
from daemon.persistence.postgres import Database
from daemon.persistence.refreshes import PostgresRefreshes
from tests.support.clock import START, FakeClock
from tests.support.database import open_database
from tests.support.first_epoch import ConnectionsFromZero
from tests.support.polling import eventually

PENDING = Connection(
    id="acme-1",
    provider="acme",
    grant="authorization_code",
    status=Status.PENDING,
    created_at=START,
    updated_at=START,
)
TOKENS = TokenSet(
    generation=1,
    access_token="access",
    refresh_token="refresh",
    token_type="Bearer",
    scopes=("read",),
    issued_at=START,
    expires_at=START + timedelta(hours=1),
)
TICKET = Ticket(
    ticket_hash=b"t" * 32,
    connection_id="acme-1",
    caller="billing",
    return_url="https://app.example/done",
    expires_at=START + timedelta(minutes=10),
)
TRANSACTION = PendingAuthorization(
    state_hash=b"s" * 32,
    connection_id="acme-1",
    provider="acme",
    issuer="https://auth.acme.example",
    token_endpoint="https://auth.acme.example/token",
    redirect_uri="http://localhost:7421/callback",
    code_verifier="verifier-canary",
    browser_hash=b"b" * 32,
    scopes=("read", "write:all"),
    return_url=None,
    expires_at=START + timedelta(minutes=10),
)
DUE = START + timedelta(minutes=45)


class Stores:
    """The stores on one database."""

    def __init__(self, database: Database, cipher: TokenCipher) -> None:
        self.clock = FakeClock()
        self.database = database
        recorder = EventRecorder(delivers=lambda: False)
        self.connections = ConnectionsFromZero(database, cipher, recorder)
        self.refreshes = PostgresRefreshes(database, cipher, recorder=recorder)
        self.history = PostgresHistory(database, recorder)
        self.authorizations = PostgresAuthorizations(
            database, cipher, self.connections, self.clock, recorder=recorder
        )
        self.replies = 0

    async def answered(
        self, name: str = "acme-1", *, tokens: TokenSet | None = None, **changes: Any
    ) -> StoredAuthorization | NotStored:
        """Complete an authorization of ``name`` with a reply of its own."""
        self.replies += 1
        issued_at = START + timedelta(seconds=self.replies)
        completion = Completion(
            connection_id=name,
            tokens=tokens or replace(TOKENS, issued_at=issued_at),
            due_at=DUE,
            revokes_replaced=True,
        )
        return await self.authorizations.complete(replace(completion, **changes))

    async def completed(self, name: str = "acme-1", **changes: Any) -> Connection:
        """Complete an authorization that must be stored."""
        answer = await self.answered(name, **changes)
        assert isinstance(answer, StoredAuthorization), answer
        return answer.connection

    async def waiting_for_transaction(self) -> bool:
        """Tell whether some statement waits for another's transaction to end."""
        waiting = await self.database.fetchval(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
        )
        return bool(waiting)

    async def claimed(self) -> Claim:
        """Claim the connection."""
        await self.refreshes.add_providers(["acme"])
        wanted = Wanted(
            connection_id="acme-1", provider="acme", generation=99, rate=1000.0, forced=True
        )
        claim = await self.refreshes.claim(
            wanted, owner="one", hold=timedelta(minutes=2), now=START
        )
        assert isinstance(claim, Claim), claim
        return claim


@pytest.fixture
async def stores(database: Database, cipher: TokenCipher) -> Stores:
    """The stores, with one pending connection."""
    stores = Stores(database, cipher)
    await stores.connections.create(PENDING, None, due_at=None)
    return stores


@pytest.fixture
async def replica(stores: Stores, migrated_url: str, cipher: TokenCipher) -> AsyncIterator[Stores]:
    """The stores of another replica, with a pool of its own."""
    del stores
    database = open_database(migrated_url)
    assert await database.start()
    other = Stores(database, cipher)
    # Replies of its own, not those of the other one.
    other.replies = 1_000_000
    yield other
    await database.close()


def renewal(claim: Claim) -> Settlement:
    """Return the settlement of a refresh that brought tokens."""
    return Settlement(
        connection_id=claim.connection_id,
        attempt=claim.attempt,
        generation=claim.tokens.generation,
        tokens=replace(
            claim.tokens, generation=claim.tokens.generation + 1, access_token="refreshed"
        ),
        state=ClaimState.IDLE,
        due_at=DUE,
        status=Status.ACTIVE,
        failures=0,
        last_error=None,
        touches_connection=True,
    )


async def test_a_ticket_lives_until_its_time(stores: Stores) -> None:
    """A live ticket comes with its connection; unknown and expired ones are nothing."""
    store = stores.authorizations
    await store.add_ticket(TICKET)
    assert await store.ticket(TICKET.ticket_hash, now=START) == (TICKET, PENDING)
    assert await store.ticket(b"x" * 32, now=START) is None
    assert await store.ticket(TICKET.ticket_hash, now=TICKET.expires_at) is None


@pytest.mark.parametrize("verifier", ["verifier-canary", None])
async def test_a_transaction_comes_back_once(stores: Stores, verifier: str | None) -> None:
    """A transaction is returned as it was begun, and then it is gone."""
    begun = replace(TRANSACTION, code_verifier=verifier)
    await stores.authorizations.add_ticket(TICKET)
    assert await stores.authorizations.begin(begun, ticket_hash=TICKET.ticket_hash)
    assert "canary" not in str(await stores.database.fetch("SELECT * FROM authorizations"))
    assert await stores.authorizations.consume(begun.state_hash) == begun
    assert await stores.authorizations.consume(begun.state_hash) is None


async def test_one_consumer_wins(stores: Stores) -> None:
    """Of twenty who present the same state at once exactly one receives the transaction."""
    await stores.authorizations.add_ticket(TICKET)
    assert await stores.authorizations.begin(TRANSACTION, ticket_hash=TICKET.ticket_hash)
    answers = await asyncio.gather(
        *(stores.authorizations.consume(TRANSACTION.state_hash) for _ in range(20))
    )
    assert [answer for answer in answers if answer is not None] == [TRANSACTION]


async def test_a_verifier_belongs_to_its_connection(stores: Stores) -> None:
    """A sealed verifier that was moved to another connection's transaction does not open."""
    await stores.connections.create(replace(PENDING, id="acme-2"), None, due_at=None)
    await stores.authorizations.add_ticket(TICKET)
    assert await stores.authorizations.begin(TRANSACTION, ticket_hash=TICKET.ticket_hash)
    await stores.database.execute("UPDATE authorizations SET connection_id = 'acme-2'")
    with pytest.raises(DecryptionError):
        await stores.authorizations.consume(TRANSACTION.state_hash)


async def test_a_completed_authorization_can_be_served_and_refreshed(stores: Stores) -> None:
    """What was stored is what serving and refreshing read."""
    await stores.authorizations.add_ticket(TICKET)
    stored = await stores.completed(tokens=TOKENS)
    assert (stored.status, stored.generation, stored.scopes) == (Status.ACTIVE, 1, ("read",))
    assert await stores.authorizations.ticket(TICKET.ticket_hash, now=START) is None
    (current,) = await stores.connections.current(["acme-1"])
    assert current.access_token == "access"
    assert (await stores.claimed()).tokens == TOKENS


async def test_completing_again_revives(stores: Stores) -> None:
    """A dead connection is active again, one generation up, with its failures forgotten."""
    await stores.completed()
    claim = await stores.claimed()
    dead = replace(
        renewal(claim),
        tokens=None,
        status=Status.REAUTHORIZATION_REQUIRED,
        due_at=None,
        failures=1,
    )
    assert await stores.refreshes.settle([dead], now=START) == [Settled.STORED]
    stored = await stores.completed()
    assert (stored.status, stored.generation, stored.last_error) == (Status.ACTIVE, 2, None)
    assert (await stores.claimed()).failures == 0
    # The repeated settlement of before does not touch the new grant.
    assert await stores.refreshes.settle([dead], now=START) == [Settled.SUPERSEDED]


async def test_completing_fences_off_a_refresh_in_flight(stores: Stores) -> None:
    """A refresh that was on its way with the old grant is not stored over the new one."""
    await stores.completed()
    claim = await stores.claimed()
    new = replace(TOKENS, access_token="new grant", refresh_token="new refresh")
    assert (await stores.completed(tokens=new)).generation == 2
    assert await stores.refreshes.settle([renewal(claim)], now=START) == [Settled.SUPERSEDED]
    (current,) = await stores.connections.current(["acme-1"])
    assert (current.generation, current.access_token) == (2, "new grant")


async def test_completing_and_settling_at_once(stores: Stores) -> None:
    """Whatever order they take, both end, and each stored reply has a generation of its own."""
    await stores.completed()
    for round_ in range(1, 16):
        claim = await stores.claimed()
        _, (settled,) = await asyncio.gather(
            stores.completed(), stores.refreshes.settle([renewal(claim)], now=START)
        )
        won = settled is Settled.STORED
        (current,) = await stores.connections.current(["acme-1"])
        assert current.generation == claim.tokens.generation + 1 + won, round_
        assert current.access_token == "access"


async def test_many_first_authorizations_at_once(stores: Stores) -> None:
    """People who connect at the same moment get a generation each, and nobody a deadlock."""
    await asyncio.gather(*(stores.completed() for _ in range(40)))
    stored = await stores.connections.get("acme-1")
    assert stored is not None
    assert stored.generation == 40


async def test_the_same_reply_many_times_at_once(stores: Stores) -> None:
    """One reply is stored once, whoever repeats it and when."""
    await asyncio.gather(*(stores.completed(tokens=TOKENS) for _ in range(20)))
    stored = await stores.connections.get("acme-1")
    assert stored is not None
    assert stored.generation == 1
    assert await stores.database.fetchval("SELECT count(*) FROM revocations") == 0


async def test_one_account_on_two_replicas_at_once(stores: Stores, replica: Stores) -> None:
    """Of two new connections that bring one account exactly one survives; round after round."""
    for round_ in range(40):
        names = [f"a-{round_}", f"b-{round_}"]
        for name in names:
            await stores.connections.create(replace(PENDING, id=name), None, due_at=None)
        account = Account(account_id=f"account {round_}")
        answers = await asyncio.gather(
            stores.answered(names[0], account=account),
            replica.answered(names[1], account=account),
        )
        ended = [answer for answer in answers if isinstance(answer, StoredAuthorization)]
        assert len(ended) == 2, answers
        (survivor,) = {answer.connection.id for answer in ended}
        (gone,) = set(names) - {survivor}
        assert {answer.merged for answer in ended} == {None, gone}
        assert await stores.connections.get(gone) is None
        assert await replica.connections.survivor_of(gone) == survivor
        shown = await stores.connections.get(survivor)
        assert shown is not None
        assert shown.generation == 2


async def test_crossed_merges_settlements_and_tests(stores: Stores, replica: Stores) -> None:
    """Everything that locks two connections or one, at once: all end, and the counts are right."""
    for name in ("x", "y"):
        await stores.connections.create(replace(PENDING, id=name), None, due_at=None)
    anna, otto = Account(account_id="anna"), Account(account_id="otto")
    await stores.completed("x", account=anna)
    await stores.completed("y", account=otto)
    for round_ in range(12):
        new = [f"n{round_}-{number}" for number in range(4)]
        for name in new:
            await stores.connections.create(replace(PENDING, id=name), None, due_at=None)
        await asyncio.gather(
            stores.completed(new[0], account=anna),
            replica.completed(new[1], account=otto),
            stores.completed(new[2], account=otto),
            replica.completed(new[3], account=anna),
            stores.completed("y", account=otto),
            replica.completed("x", account=anna),
            stores.connections.record_test("x", anna, now=START, next_test_at=None),
            replica.connections.record_test("y", otto, now=START, next_test_at=None),
        )
    generations = {
        name: version.generation
        for name, version in (await stores.connections.versions(["x", "y"])).items()
    }
    assert generations == {"x": 37, "y": 37}
    assert await stores.database.fetchval("SELECT count(*) FROM merged_connections") == 48


async def test_an_account_taken_without_its_lock(stores: Stores) -> None:
    """The unique index has the last word: who meets it looks again, and merges."""
    await stores.connections.create(replace(PENDING, id="acme-2"), None, due_at=None)
    taken = asyncio.Event()

    async def take() -> None:
        async with stores.database.transaction() as session:
            await session.execute("UPDATE connections SET account_id = 'anna' WHERE id = 'acme-2'")
            taken.set()
            # Until the completion waits for the index entry that is not committed yet.
            await eventually(stores.waiting_for_transaction)

    async def complete() -> Connection:
        await taken.wait()
        return await stores.completed(account=Account(account_id="anna"))

    _, stored = await asyncio.gather(take(), complete())
    assert stored.id == "acme-2"
    assert await stores.connections.survivor_of("acme-1") == "acme-2"


async def test_an_account_that_is_taken_every_time(stores: Stores) -> None:
    """Who never gets past the unique index is told to try again, and nothing is stored."""
    await stores.connections.create(replace(PENDING, id="acme-2"), None, due_at=None)
    await stores.completed("acme-2", account=Account(account_id="anna"))
    # An account that nobody is found to have, and that is taken all the same.
    await stores.database.execute(
        "DROP INDEX connections_account;"
        "CREATE UNIQUE INDEX connections_account ON connections (provider)"
        " WHERE account_id IS NOT NULL"
    )
    with pytest.raises(DatabaseUnavailableError, match="takes the same account"):
        await stores.completed(account=Account(account_id="otto"))
    shown = await stores.connections.get("acme-1")
    assert shown is not None
    assert shown.status is Status.PENDING


async def test_disconnecting_and_beginning_at_once(stores: Stores) -> None:
    """Whoever waits for the other: after a disconnect no transaction of before is left."""
    for round_ in range(15):
        name, secret = f"race-{round_}", bytes([round_]) * 32
        await stores.connections.create(replace(PENDING, id=name), None, due_at=None)
        ticket = replace(TICKET, ticket_hash=secret, connection_id=name)
        await stores.authorizations.add_ticket(ticket)
        begun = replace(TRANSACTION, state_hash=secret, connection_id=name)
        await asyncio.gather(
            stores.authorizations.begin(begun, ticket_hash=secret),
            stores.connections.disconnect(
                name, initiator=Initiator.CALLER, now=START, revoke=True, purge=False
            ),
        )
        assert await stores.authorizations.consume(secret) is None, round_


async def test_disconnecting_and_completing_at_once(stores: Stores) -> None:
    """A disconnect wins every race with a code that was spent before it, and all tokens go."""
    for round_ in range(15):
        name = f"race-{round_}"
        await stores.connections.create(replace(PENDING, id=name), None, due_at=None)
        await asyncio.gather(
            stores.answered(name, epoch=0),
            stores.connections.disconnect(
                name, initiator=Initiator.CALLER, now=START, revoke=True, purge=False
            ),
        )
        shown = await stores.connections.get(name)
        assert shown is not None
        assert shown.status is Status.DISCONNECTED
        queued = await stores.database.fetchval(
            "SELECT count(*) FROM revocations WHERE connection_id = $1", name
        )
        assert queued == 2, round_


async def test_purging_and_completing_at_once(stores: Stores) -> None:
    """Tokens of a connection that is purged meanwhile are revoked, whichever comes first."""
    for round_ in range(10):
        name = f"race-{round_}"
        await stores.connections.create(replace(PENDING, id=name), None, due_at=None)
        answer, _ = await asyncio.gather(
            stores.answered(name, epoch=0, provider="acme"),
            stores.connections.disconnect(
                name, initiator=Initiator.CALLER, now=START, revoke=True, purge=True
            ),
        )
        if isinstance(answer, NotStored):
            assert answer.reason is NotStoredReason.GONE
        queued = await stores.database.fetchval(
            "SELECT count(*) FROM revocations WHERE connection_id = $1", name
        )
        assert queued == 2, round_


async def test_what_is_recorded_is_in_the_same_transaction(stores: Stores) -> None:
    """Where the event cannot be written, nothing is stored."""
    await stores.database.execute("ALTER TABLE events RENAME TO elsewhere")
    with pytest.raises(asyncpg.UndefinedTableError):
        await stores.completed()
    shown = await stores.connections.get("acme-1")
    assert shown is not None
    assert (shown.status, shown.generation) == (Status.PENDING, 0)
