"""The queue of tokens to revoke, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from daemon.domain.revocation import GIVE_UP_AFTER, Initiator, RevocationQueue
from daemon.domain.tokens import TokenSet
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.postgres import Database
from daemon.persistence.revocations import PostgresRevocations, Revoke, revocations_of
from tests.support.clock import START

TOKENS = TokenSet(
    generation=3,
    access_token="access-canary",
    refresh_token="refresh-canary",
    token_type="Bearer",
    scopes=(),
    issued_at=START,
    expires_at=None,
)
HOLD = timedelta(minutes=2)


def of(tokens: TokenSet, name: str = "acme-1") -> tuple[Revoke, ...]:
    """Return what revokes tokens of a connection."""
    return revocations_of(
        tokens,
        connection_id=name,
        provider="acme",
        fields={"region": "eu"},
        initiator=Initiator.OPERATOR,
    )


@pytest.fixture
def queue(database: Database, cipher: TokenCipher) -> PostgresRevocations:
    """An empty queue."""
    return PostgresRevocations(database, cipher)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (TOKENS, ["refresh_token", "access_token"]),
        (replace(TOKENS, refresh_token=None), ["access_token"]),
        (replace(TOKENS, access_token=""), ["refresh_token"]),
        (replace(TOKENS, access_token="", refresh_token=None), []),
    ],
)
def test_what_is_to_revoke(tokens: TokenSet, expected: list[str]) -> None:
    """The refresh token comes first, and what is not there is not revoked."""
    assert [one.token_type_hint for one in of(tokens)] == expected
    assert "canary" not in repr(of(tokens))


async def test_what_was_queued_is_claimed_as_it_was(
    queue: PostgresRevocations, database: Database
) -> None:
    """All that a request needs comes back, refresh token first; at rest nothing is readable."""
    port: RevocationQueue = queue
    await queue.queue(of(TOKENS), now=START)
    at_rest = str(await database.fetch("SELECT r::text FROM revocations r"))
    assert "canary" not in at_rest
    assert b"canary".hex() not in at_rest
    refresh, access = await port.claim(now=START, hold=HOLD, limit=10)
    assert (refresh.token, refresh.token_type_hint) == ("refresh-canary", "refresh_token")
    assert (access.token, access.token_type_hint) == ("access-canary", "access_token")
    assert (refresh.connection_id, refresh.provider) == ("acme-1", "acme")
    assert (refresh.fields, refresh.initiator) == ({"region": "eu"}, Initiator.OPERATOR)
    assert (refresh.attempts, refresh.created_at) == (0, START)
    assert "canary" not in repr(refresh)


async def test_nothing_to_queue(queue: PostgresRevocations) -> None:
    """No token is no row."""
    await queue.queue((), now=START)
    assert await queue.next_at() is None
    assert await queue.claim(now=START, hold=HOLD, limit=10) == []


async def test_a_claim_holds(queue: PostgresRevocations) -> None:
    """What one has claimed others see only after the hold; what is done nobody sees again."""
    await queue.queue(of(TOKENS), now=START)
    first, second = await queue.claim(now=START, hold=HOLD, limit=10)
    assert await queue.claim(now=START, hold=HOLD, limit=10) == []
    assert await queue.next_at() == START + HOLD
    await queue.done(first.id)
    await queue.done(first.id)
    assert await queue.count("acme-1") == 1
    again = await queue.claim(now=START + HOLD, hold=HOLD, limit=10)
    assert [one.id for one in again] == [second.id]


async def test_trying_later(queue: PostgresRevocations, database: Database) -> None:
    """A failed attempt is counted, told of and due when it was put off to."""
    await queue.queue(of(replace(TOKENS, refresh_token=None)), now=START)
    (claimed,) = await queue.claim(now=START, hold=HOLD, limit=10)
    later = START + timedelta(hours=1)
    await queue.later(claimed.id, at=later, error="The provider answered 503.")
    assert await queue.next_at() == later
    assert await queue.claim(now=later - timedelta(seconds=1), hold=HOLD, limit=10) == []
    (again,) = await queue.claim(now=later, hold=HOLD, limit=10)
    assert (again.id, again.attempts) == (claimed.id, 1)
    assert await database.fetchval("SELECT last_error FROM revocations") == (
        "The provider answered 503."
    )


async def test_one_connections_only(queue: PostgresRevocations) -> None:
    """Who waits for one connection's revocation claims no other's."""
    await queue.queue((*of(TOKENS, "acme-1"), *of(TOKENS, "acme-2")), now=START)
    claimed = await queue.claim(now=START, hold=HOLD, limit=10, connection_id="acme-2")
    assert [one.connection_id for one in claimed] == ["acme-2", "acme-2"]
    assert len(await queue.claim(now=START, hold=HOLD, limit=1)) == 1


async def test_many_workers_claim_each_row_once(queue: PostgresRevocations) -> None:
    """At any one time a token is with one worker."""
    for number in range(10):
        await queue.queue(of(TOKENS, f"acme-{number}"), now=START)
    claims = await asyncio.gather(*(queue.claim(now=START, hold=HOLD, limit=4) for _ in range(20)))
    ids = [one.id for claim in claims for one in claim]
    assert len(ids) == len(set(ids)) == 20


async def test_what_does_not_decrypt_stays_and_holds_up_nobody(
    queue: PostgresRevocations, database: Database
) -> None:
    """A ciphertext moved to another row does not open, is not returned, and says why."""
    await queue.queue((*of(TOKENS, "acme-1"), *of(TOKENS, "acme-2")), now=START)
    await database.execute(
        "UPDATE revocations SET token = (SELECT token FROM revocations ORDER BY id DESC LIMIT 1)"
        " WHERE connection_id = 'acme-1'"
    )
    claimed = await queue.claim(now=START, hold=HOLD, limit=10)
    assert [one.connection_id for one in claimed] == ["acme-2", "acme-2"]
    assert await queue.count("acme-1") == 2
    errors = await database.fetch(
        "SELECT last_error, next_at FROM revocations WHERE connection_id = 'acme-1'"
    )
    for row in errors:
        assert "cannot be decrypted" in row["last_error"]
        assert "canary" not in row["last_error"]
        assert row["next_at"] > START + HOLD


async def test_what_does_not_decrypt_is_kept_no_longer_than_the_rest(
    queue: PostgresRevocations, database: Database
) -> None:
    """No token stays for ever because its key does not come back."""
    await queue.queue(of(TOKENS, "acme-1"), now=START)
    await database.execute("UPDATE revocations SET token = 'x'")
    late = START + GIVE_UP_AFTER
    assert await queue.claim(now=late - HOLD, hold=HOLD, limit=10) == []
    assert await queue.count("acme-1") == 2
    assert await queue.claim(now=late + timedelta(hours=1), hold=HOLD, limit=10) == []
    assert await queue.count("acme-1") == 0
