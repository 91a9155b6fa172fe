"""Tickets and authorization transactions on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from daemon.domain.authorization import PendingAuthorization, Ticket
from daemon.domain.claim import Claim, ClaimState, Settled, Settlement
from daemon.domain.claimable import Wanted
from daemon.domain.connection import Connection, Status
from daemon.domain.errors import DecryptionError
from daemon.domain.tokens import TokenSet
from daemon.persistence.authorizations import PostgresAuthorizations
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.connections import PostgresConnections
from daemon.persistence.postgres import Database
from daemon.persistence.refreshes import PostgresRefreshes
from tests.support.clock import START, FakeClock

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
        self.connections = PostgresConnections(database, cipher)
        self.refreshes = PostgresRefreshes(database, cipher)
        self.authorizations = PostgresAuthorizations(database, cipher, self.connections, self.clock)

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
    await stores.authorizations.begin(begun)
    assert "canary" not in str(await stores.database.fetch("SELECT * FROM authorizations"))
    assert await stores.authorizations.consume(begun.state_hash) == begun
    assert await stores.authorizations.consume(begun.state_hash) is None


async def test_one_consumer_wins(stores: Stores) -> None:
    """Of twenty who present the same state at once exactly one receives the transaction."""
    await stores.authorizations.begin(TRANSACTION)
    answers = await asyncio.gather(
        *(stores.authorizations.consume(TRANSACTION.state_hash) for _ in range(20))
    )
    assert [answer for answer in answers if answer is not None] == [TRANSACTION]


async def test_a_verifier_belongs_to_its_connection(stores: Stores) -> None:
    """A sealed verifier that was moved to another connection's transaction does not open."""
    await stores.connections.create(replace(PENDING, id="acme-2"), None, due_at=None)
    await stores.authorizations.begin(TRANSACTION)
    await stores.database.execute("UPDATE authorizations SET connection_id = 'acme-2'")
    with pytest.raises(DecryptionError):
        await stores.authorizations.consume(TRANSACTION.state_hash)


async def test_completing_the_first_authorization(stores: Stores) -> None:
    """The connection is active with generation 1, is scheduled, and its tickets are gone."""
    await stores.authorizations.add_ticket(TICKET)
    stored = await stores.authorizations.complete("acme-1", TOKENS, due_at=DUE)
    assert stored is not None
    assert (stored.status, stored.generation, stored.scopes) == (Status.ACTIVE, 1, ("read",))
    assert (stored.refresh_at, stored.has_refresh_token) == (DUE, True)
    assert await stores.authorizations.ticket(TICKET.ticket_hash, now=START) is None
    (current,) = await stores.connections.current(["acme-1"])
    assert current.access_token == "access"
    assert (await stores.claimed()).tokens == TOKENS


async def test_completing_for_nobody(stores: Stores) -> None:
    """A connection that is gone meanwhile gets nothing."""
    assert await stores.authorizations.complete("nobody", TOKENS, due_at=DUE) is None


async def test_completing_again_revives(stores: Stores) -> None:
    """A dead connection is active again, one generation up, with its failures forgotten."""
    await stores.authorizations.complete("acme-1", TOKENS, due_at=DUE)
    claim = await stores.claimed()
    dead = replace(
        renewal(claim),
        tokens=None,
        status=Status.REAUTHORIZATION_REQUIRED,
        due_at=None,
        failures=1,
    )
    assert await stores.refreshes.settle([dead], now=START) == [Settled.STORED]
    stored = await stores.authorizations.complete("acme-1", TOKENS, due_at=DUE)
    assert stored is not None
    assert (stored.status, stored.generation, stored.last_error) == (Status.ACTIVE, 2, None)
    assert (await stores.claimed()).failures == 0
    # The repeated settlement of before does not touch the new grant.
    assert await stores.refreshes.settle([dead], now=START) == [Settled.SUPERSEDED]


async def test_completing_fences_off_a_refresh_in_flight(stores: Stores) -> None:
    """A refresh that was on its way with the old grant is not stored over the new one."""
    await stores.authorizations.complete("acme-1", TOKENS, due_at=DUE)
    claim = await stores.claimed()
    new = replace(TOKENS, access_token="new grant", refresh_token="new refresh")
    stored = await stores.authorizations.complete("acme-1", new, due_at=DUE)
    assert stored is not None
    assert stored.generation == 2
    assert await stores.refreshes.settle([renewal(claim)], now=START) == [Settled.SUPERSEDED]
    (current,) = await stores.connections.current(["acme-1"])
    assert (current.generation, current.access_token) == (2, "new grant")


async def test_only_after_a_generation(stores: Stores) -> None:
    """A reply that was found later is stored on top of the generation it belongs to, or not."""
    store = stores.authorizations
    assert await store.complete("acme-1", TOKENS, due_at=DUE, only_after=1) is None
    stored = await stores.connections.get("acme-1")
    assert stored is not None
    assert stored.status is Status.PENDING
    assert await store.complete("acme-1", TOKENS, due_at=DUE, only_after=0) is not None
    assert await store.complete("acme-1", TOKENS, due_at=DUE, only_after=0) is None


async def test_a_transaction_knows_the_generation_it_found(stores: Stores) -> None:
    """What a consumed transaction says is the connection's generation at that moment."""
    await stores.authorizations.complete("acme-1", TOKENS, due_at=DUE)
    await stores.authorizations.begin(TRANSACTION)
    consumed = await stores.authorizations.consume(TRANSACTION.state_hash)
    assert consumed == replace(TRANSACTION, generation=1)


async def test_completing_and_settling_at_once(stores: Stores) -> None:
    """Whatever order they take, both end, and each stored reply has a generation of its own."""
    await stores.authorizations.complete("acme-1", TOKENS, due_at=DUE)
    for round_ in range(1, 16):
        claim = await stores.claimed()
        completed, (settled,) = await asyncio.gather(
            stores.authorizations.complete("acme-1", TOKENS, due_at=DUE),
            stores.refreshes.settle([renewal(claim)], now=START),
        )
        assert completed is not None
        won = settled is Settled.STORED
        (current,) = await stores.connections.current(["acme-1"])
        assert current.generation == claim.tokens.generation + 1 + won, round_
        assert current.access_token == "access"


async def test_many_first_authorizations_at_once(stores: Stores) -> None:
    """People who connect at the same moment get a generation each, and nobody a deadlock."""
    answers = await asyncio.gather(
        *(stores.authorizations.complete("acme-1", TOKENS, due_at=DUE) for _ in range(40))
    )
    assert all(answer is not None for answer in answers)
    stored = await stores.connections.get("acme-1")
    assert stored is not None
    assert stored.generation == 40


async def test_pruning(stores: Stores) -> None:
    """What has expired goes, told by connection; the rest stays."""
    store = stores.authorizations
    await stores.connections.create(replace(PENDING, id="acme-2"), None, due_at=None)
    await store.add_ticket(TICKET)
    await store.add_ticket(
        replace(TICKET, ticket_hash=b"u" * 32, expires_at=START + timedelta(hours=1))
    )
    await store.begin(replace(TRANSACTION, connection_id="acme-2"))
    assert await store.prune(now=START) == []
    concerned = await store.prune(now=START + timedelta(minutes=11))
    assert sorted(concerned) == ["acme-1", "acme-2"]
    assert await store.consume(TRANSACTION.state_hash) is None
    assert await store.ticket(b"u" * 32, now=START) is not None
