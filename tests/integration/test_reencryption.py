"""Encrypting everything again beside those who use it, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import asyncpg
import pytest

from daemon.config.settings import EncryptionKey
from daemon.domain.authorization import PendingAuthorization, Ticket
from daemon.domain.claim import Settled
from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.errors import DecryptionError
from daemon.domain.revocation import Initiator
from daemon.persistence.agreement import KeyAgreement
from daemon.persistence.authorizations import PostgresAuthorizations
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.dialing import DatabaseConnection, hang_up
from daemon.persistence.keyring import Keyring, stored_keys
from daemon.persistence.orphans import Late, PostgresOrphans, keep_orphans
from daemon.persistence.postgres import Database
from daemon.persistence.reencryption import (
    TABLES,
    Rotation,
    count_ciphertexts,
    reencrypt,
    retire,
    rows_left,
)
from daemon.persistence.revocations import revocations_of
from tests.support.clocks import HastyClock
from tests.support.polling import eventually
from tests.support.refresh_claims import claimed, renewal, tokens
from tests.support.refresh_stages import PostgresStage

OLD, NEW = (EncryptionKey(id=name, secret=name.encode() * 8) for name in ("2026", "2027"))
CLOCK = HastyClock()


def cipher_of(*keys: EncryptionKey) -> TokenCipher:
    """Return a cipher; the first key encrypts."""
    return TokenCipher(keys, entropy=system_entropy)


@pytest.fixture
def stage(database: Database) -> PostgresStage:
    """Stores of a replica that has both keys and encrypts with the old one."""
    return PostgresStage(database, cipher_of(OLD, NEW))


@asynccontextmanager
async def session_of(database: Database) -> AsyncIterator[DatabaseConnection]:
    """Open a connection of one's own, as the command has."""
    connection = await database.connect()
    try:
        yield connection
    finally:
        await hang_up(connection)


async def rotated(
    connection: DatabaseConnection, *keys: EncryptionKey, most: int | None = None
) -> Rotation:
    """Encrypt again, stopping after ``most`` batches."""
    seen: list[Rotation] = []
    async for rotation in reencrypt(connection, cipher_of(*keys), clock=CLOCK):
        seen.append(rotation)
        if len(seen) == most:
            break
    return seen[-1] if seen else Rotation()


async def fill(stage: PostgresStage) -> None:
    """Put something into every table that holds ciphertexts, by those who write there."""
    now = stage.now()
    database, cipher = stage.database, stage.cipher
    for name in ("a", "b"):
        await stage.add(name, tokens(stage), provider="acme", due_at=None)
    await stage.add("alone", tokens(stage, refreshable=False), provider="acme", due_at=None)
    revocations = revocations_of(
        tokens(stage),
        connection_id="a",
        provider="acme",
        fields={},
        initiator=Initiator.CALLER,
    )
    await stage.revocations.queue(revocations, now=now)
    async with database.transaction() as session:
        late = Late(connection_id="a", attempt="late", tokens=tokens(stage, generation=2))
        await keep_orphans(session, cipher, [late], now=now)
    flows = authorizations(stage)
    ticket = Ticket(
        ticket_hash=b"t" * 32,
        connection_id="a",
        caller="billing",
        return_url=None,
        expires_at=now + timedelta(hours=1),
    )
    assert await flows.add_ticket(ticket)
    for state, verifier in ((b"s" * 32, "verifier"), (b"n" * 32, None)):
        assert await flows.begin(pending(stage, state, verifier), ticket_hash=ticket.ticket_hash)


def authorizations(stage: PostgresStage) -> PostgresAuthorizations:
    """Return the store of flows under way."""
    return PostgresAuthorizations(
        stage.database, stage.cipher, stage.connections, SystemClock(), recorder=stage.recorder
    )


def pending(stage: PostgresStage, state: bytes, verifier: str | None) -> PendingAuthorization:
    """Return a flow under way."""
    return PendingAuthorization(
        state_hash=state,
        connection_id="a",
        provider="acme",
        issuer=None,
        token_endpoint="https://auth.acme.example/token",
        redirect_uri="http://localhost:7421/callback",
        code_verifier=verifier,
        browser_hash=b"b" * 32,
        scopes=(),
        return_url=None,
        expires_at=stage.now() + timedelta(hours=1),
    )


async def test_everything_opens_with_the_new_key_alone(stage: PostgresStage) -> None:
    """Every table's ciphertexts are written again, and nothing else of their rows is touched."""
    await fill(stage)
    async with session_of(stage.database) as connection:
        before = await count_ciphertexts(connection)
        assert before == {
            OLD.id: {"token_sets": 5, "revocations": 2, "orphans": 2, "authorizations": 1}
        }
        assert await rows_left(connection, cipher_of(NEW, OLD)) == 7
        assert (await rotated(connection, NEW, OLD)).rewritten == 7
        assert await count_ciphertexts(connection) == {NEW.id: before[OLD.id]}
        # Again: nothing is left to do.
        assert (await rotated(connection, NEW, OLD)).rewritten == 0
    after = PostgresStage(stage.database, cipher_of(NEW))
    assert (await after.stored("a")).tokens == tokens(stage)
    assert (await after.stored("alone")).tokens.refresh_token is None
    assert [token for *_, token in await after.queued()] == ["r", "access 1"]
    orphan = await PostgresOrphans(stage.database, after.cipher).newest("a")
    assert orphan is not None
    assert orphan.refresh_token == "r"
    opened = [await authorizations(after).consume(state) for state in (b"s" * 32, b"n" * 32)]
    assert [flow and flow.code_verifier for flow in opened] == ["verifier", None]


async def test_it_goes_on_where_it_was_stopped(stage: PostgresStage) -> None:
    """Stopped after a batch, it finds what is left, and no row is written twice."""
    for number in range(205):
        await stage.add(f"c{number:03}", tokens(stage), provider="acme", due_at=None)
    async with session_of(stage.database) as connection:
        assert (await rotated(connection, NEW, OLD, most=1)).rewritten == 100
        counts = await count_ciphertexts(connection)
        assert (counts[OLD.id], counts[NEW.id]) == ({"token_sets": 210}, {"token_sets": 200})
    async with session_of(stage.database) as connection:
        assert (await rotated(connection, NEW, OLD)).rewritten == 105
        assert await count_ciphertexts(connection) == {NEW.id: {"token_sets": 410}}


class Interrupted:
    """A connection that lets something happen right before the first row is written back."""

    def __init__(
        self, connection: DatabaseConnection, happens: Callable[[], Awaitable[object]]
    ) -> None:
        self._connection = connection
        self._happens: Callable[[], Awaitable[object]] | None = happens

    async def fetch(self, statement: str, *values: object, **more: Any) -> list[asyncpg.Record]:
        """Fetch, after what was to happen."""
        if "UPDATE token_sets" in statement and self._happens is not None:
            happens, self._happens = self._happens, None
            await happens()
        return list(await self._connection.fetch(statement, *values, **more))

    async def execute(self, statement: str) -> str:
        """Execute."""
        return await self._connection.execute(statement)


async def test_a_newer_token_is_never_overwritten(stage: PostgresStage) -> None:
    """A refresh between reading and writing a row wins; its token is encrypted again next."""
    await stage.add("a", tokens(stage), provider="acme", due_at=None)
    claim = await claimed(stage)

    async def refresh() -> None:
        settled = await stage.store.settle([renewal(claim)], now=stage.now())
        assert settled == [Settled.STORED]

    async with session_of(stage.database) as connection:
        interrupted = cast("DatabaseConnection", Interrupted(connection, refresh))
        rotation = await rotated(interrupted, NEW, OLD)
    assert (rotation.rewritten, rotation.busy) == (1, 0)
    after = PostgresStage(stage.database, cipher_of(NEW))
    assert (await after.stored("a")).tokens.generation == 2
    assert (await after.stored("a")).tokens.access_token == "new"


async def test_a_locked_row_is_left_for_later(stage: PostgresStage) -> None:
    """Somebody else's lock is not waited for: the rest is done, then that row."""
    await stage.add("a", tokens(stage), provider="acme", due_at=None)
    await stage.add("b", tokens(stage), provider="acme", due_at=None)
    seen: list[tuple[int, int]] = []
    async with session_of(stage.database) as holder, session_of(stage.database) as connection:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("SELECT 1 FROM token_sets WHERE connection_id = 'a' FOR UPDATE")
        async for rotation in reencrypt(connection, cipher_of(NEW, OLD), clock=CLOCK):
            seen.append((rotation.rewritten, rotation.busy))
            if len(seen) == 1:
                await transaction.rollback()
    assert seen == [(1, 1), (2, 0)]


async def test_a_refresh_that_meets_a_rewritten_row_stores_its_token(
    stage: PostgresStage,
) -> None:
    """A settlement that waits for the rewriting's lock then finds the row changed, and stores."""
    await stage.add("a", tokens(stage), provider="acme", due_at=None)
    await stage.add("b", tokens(stage), provider="acme", due_at=None)
    claims = [await claimed(stage, name) for name in ("a", "b")]
    async with session_of(stage.database) as connection, connection.transaction():
        assert (await rotated(connection, NEW, OLD)).rewritten == 2
        settling = asyncio.create_task(
            stage.store.settle([renewal(claim) for claim in claims], now=stage.now())
        )

        async def waits() -> bool:
            return bool(
                await stage.database.fetchval(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            )

        await eventually(waits, what="the settlement at the lock")
    assert await settling == [Settled.STORED, Settled.STORED]
    for name in ("a", "b"):
        stored = await stage.stored(name)
        assert (stored.tokens.generation, stored.tokens.access_token) == (2, "new")


async def test_what_does_not_open_is_left_as_it_is(stage: PostgresStage) -> None:
    """A ciphertext of a lost key is counted, told and kept; everything else is done."""
    lost = PostgresStage(stage.database, cipher_of(EncryptionKey(id="lost", secret=b"l" * 32)))
    await lost.add("a", tokens(stage), provider="acme", due_at=None)
    await stage.add("b", tokens(stage), provider="acme", due_at=None)
    async with session_of(stage.database) as connection:
        rotation = await rotated(connection, NEW, OLD)
        assert (rotation.rewritten, rotation.unopened) == (1, 2)
        counts = await count_ciphertexts(connection)
    assert counts == {"lost": {"token_sets": 2}, NEW.id: {"token_sets": 2}}
    assert (await lost.stored("a")).tokens == tokens(stage)


async def test_a_wrong_secret_writes_nothing(stage: PostgresStage) -> None:
    """With another secret under the old id nothing opens, and not one row is written."""
    await fill(stage)
    wrong = replace(OLD, secret=b"w" * 32)
    statement = "SELECT xmin, ctid FROM token_sets ORDER BY connection_id"
    before = await stage.database.fetch(statement)
    async with session_of(stage.database) as connection:
        rotation = await rotated(connection, NEW, wrong)
    assert (rotation.rewritten, rotation.unopened) == (0, 10)
    assert await stage.database.fetch(statement) == before


async def test_what_is_no_ciphertext_is_counted_apart(stage: PostgresStage) -> None:
    """A column that somebody else has written is shown, and does not stop the count."""
    await stage.add("a", tokens(stage), provider="acme", due_at=None)
    for junk in (b"", b"\x01", b"\x01\xff", b"\x02\x01xyz"):
        await stage.database.execute("UPDATE token_sets SET access_token = $1", junk)
        async with session_of(stage.database) as connection:
            counts = await count_ciphertexts(connection)
            assert counts[OLD.id] == {"token_sets": 1}
            assert sum(sum(each.values()) for each in counts.values()) == 2


def agreement(*keys: EncryptionKey, owner: str) -> KeyAgreement:
    """Return a replica's part in the agreement on keys."""
    return KeyAgreement(
        Keyring(keys=keys),
        cipher_of(*keys),
        owner=owner,
        journal_keys=frozenset,
        clock=SystemClock(),
        entropy=system_entropy,
    )


async def test_a_key_is_let_go_of_when_nothing_needs_it(stage: PostgresStage) -> None:
    """Not while a ciphertext or a live replica needs it; then others may start without it."""
    one, two = agreement(OLD, NEW, owner="one"), agreement(NEW, OLD, owner="two")
    async with session_of(stage.database) as connection:
        await one.join(connection)
        await two.join(connection)
        await stage.add("a", tokens(stage), provider="acme", due_at=None)
        assert await retire(connection, keep=NEW.id, clock=SystemClock()) == ()
        await rotated(connection, NEW, OLD)
        # Nothing is encrypted with it, but a replica would.
        assert await retire(connection, keep=NEW.id, clock=SystemClock()) == ()
        await one.leave(stage.database)
        assert await retire(connection, keep=NEW.id, clock=SystemClock()) == (OLD.id,)
        assert (await stored_keys(connection)).in_use == {NEW.id}
        await agreement(NEW, owner="three").join(connection)
    with pytest.raises(DecryptionError):
        await PostgresStage(stage.database, cipher_of(OLD)).stored("a")


async def test_a_key_that_somebody_may_be_writing_with_is_kept(stage: PostgresStage) -> None:
    """What a transaction has written and not committed counts: nobody sees it yet."""
    await stage.add("a", tokens(stage), provider="acme", due_at=None)
    async with session_of(stage.database) as writer, session_of(stage.database) as connection:
        await agreement(NEW, OLD, owner="one").join(connection)
        await connection.execute("UPDATE encryption_keys SET in_use = true")
        await rotated(connection, NEW, OLD)
        transaction = writer.transaction()
        await transaction.start()
        access = stage.cipher.encrypt("x", connection="a", column="access_token", generation=1)
        await writer.execute("UPDATE token_sets SET access_token = $1", access)
        letting_go = asyncio.create_task(retire(connection, keep=NEW.id, clock=SystemClock()))
        done, _ = await asyncio.wait({letting_go}, timeout=0.3)
        assert not done
        await transaction.commit()
        assert await letting_go == ()
        assert (await rotated(connection, NEW, OLD)).rewritten == 1
        assert await retire(connection, keep=NEW.id, clock=SystemClock()) == (OLD.id,)


async def test_every_column_of_bytes_is_accounted_for(stage: PostgresStage) -> None:
    """A new column of bytes is a ciphertext, and rotated, or is named here as something else."""
    hashes = {
        ("encryption_keys", "canary"),
        ("connect_tickets", "ticket_hash"),
        ("authorizations", "state_hash"),
        ("authorizations", "browser_hash"),
        ("refused_replies", "reply_hash"),
    }
    rows = await stage.database.fetch(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND data_type = 'bytea'"
    )
    rotated_columns = {(sealed.table, column) for sealed in TABLES for column in sealed.columns}
    assert {(row["table_name"], row["column_name"]) for row in rows} == hashes | rotated_columns
