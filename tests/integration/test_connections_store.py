"""Connections on a real PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.domain.connection import ID_LETTERS, Connection, Failure, Status
from daemon.domain.tokens import TokenSet
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.connections import Filter, PostgresConnections, regular_expression
from daemon.persistence.history import EventRecorder
from daemon.persistence.postgres import Database
from daemon.persistence.refreshes import PostgresRefreshes
from tests.support.postgres import Cluster

NOW = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)
CONNECTION = Connection(
    id="acme-1",
    provider="acme",
    grant="authorization_code",
    status=Status.ACTIVE,
    requested_scopes=("read", "write:all"),
    metadata={"team": "billing", "ünïcode": "☃"},
    fields={"region": "eu", "tenant": "☃"},
    reply_values={"token.instance_url": "https://eu.acme.example"},
    return_url="https://app.example/done",
    created_by="billing",
    created_at=NOW,
    updated_at=NOW,
)
TOKENS = TokenSet(
    generation=1,
    access_token="access-canary",
    refresh_token="refresh-canary",
    token_type="Bearer",
    scopes=("read",),
    issued_at=NOW,
    expires_at=NOW + timedelta(hours=1),
)
DUE = NOW + timedelta(minutes=45)


@pytest.fixture
def store(database: Database, cipher: TokenCipher) -> PostgresConnections:
    """The store on an empty database."""
    return PostgresConnections(database, cipher, EventRecorder(delivers=lambda: False))


async def ids(store: PostgresConnections, wanted: Filter, *, limit: int = 100) -> list[str]:
    """Return the ids of a page."""
    return [one.id for one in await store.page(wanted, limit=limit, before=None)]


async def test_what_is_created_can_be_read(store: PostgresConnections) -> None:
    """A connection comes back as it was stored, with what its tokens say and no token."""
    assert await store.get("acme-1") is None
    assert await store.create(CONNECTION, TOKENS, due_at=DUE)
    stored = await store.get("acme-1")
    assert stored == replace(
        CONNECTION,
        scopes=("read",),
        generation=1,
        expires_at=TOKENS.expires_at,
        refresh_at=DUE,
        has_refresh_token=True,
        last_refreshed_at=NOW,
    )
    assert "canary" not in repr(stored)


async def test_a_pending_connection(store: PostgresConnections) -> None:
    """Without tokens there is no generation, no time and nothing to serve."""
    pending = replace(CONNECTION, status=Status.PENDING)
    assert await store.create(pending, None, due_at=None)
    assert await store.get("acme-1") == pending
    (current,) = await store.current(["acme-1"])
    assert (current.generation, current.access_token, current.refreshable) == (0, "", False)
    assert await store.versions(["acme-1", "nobody"]) == {"acme-1": (0, Status.PENDING, None)}


async def test_an_id_is_given_once(store: PostgresConnections) -> None:
    """A second connection with the same id changes nothing, also with other tokens."""
    assert await store.create(CONNECTION, TOKENS, due_at=DUE)
    other = replace(CONNECTION, provider="other", metadata={})
    assert not await store.create(other, replace(TOKENS, access_token="x"), due_at=None)
    stored = await store.get("acme-1")
    assert stored is not None
    assert stored.provider == "acme"
    (current,) = await store.current(["acme-1"])
    assert current.access_token == "access-canary"


async def test_tokens_are_stored_encrypted(store: PostgresConnections, database: Database) -> None:
    """No token stands readable in any column of any table."""
    await store.create(CONNECTION, TOKENS, due_at=DUE)
    for table in ("connections", "token_sets", "refresh_schedule"):
        text = str(await database.fetch(f"SELECT t::text FROM {table} t"))
        assert "canary" not in text
        assert b"canary".hex() not in text


async def test_what_serving_needs(store: PostgresConnections, database: Database) -> None:
    """Current tokens come with state and failure, and without the refresh token."""
    await store.create(CONNECTION, TOKENS, due_at=DUE)
    (current,) = await store.current(["acme-1", "nobody"])
    assert (current.connection, current.provider, current.generation) == ("acme-1", "acme", 1)
    assert (current.access_token, current.scopes) == ("access-canary", ("read",))
    assert (current.issued_at, current.expires_at) == (NOW, TOKENS.expires_at)
    assert (current.refreshable, current.failure, current.retry_at) == (True, None, None)
    await database.execute(
        "UPDATE connections SET status = 'failing', last_error = $1::jsonb",
        {"code": "network", "description": "No route.", "at": NOW.isoformat()},
    )
    (failing,) = await store.current(["acme-1"])
    assert (failing.failure, failing.retry_at) == ("No route.", DUE)
    shown = await store.get("acme-1")
    assert shown is not None
    assert shown.last_error == Failure(code="network", description="No route.", at=NOW)


async def populate(store: PostgresConnections) -> None:
    """Store five connections, two of them at the same time."""
    rows = [
        ("acme-1", "acme", Status.ACTIVE, 0, {"team": "billing", "env": "test"}),
        ("acme-2", "acme", Status.PENDING, 1, {"team": "billing"}),
        ("acme-3", "acme", Status.ACTIVE, 1, {"team": "sales"}),
        ("other-1", "other", Status.ACTIVE, 2, {}),
        ("Other%_2", "other", Status.FAILING, 3, {}),
    ]
    for name, provider, status, age, metadata in rows:
        made = replace(
            CONNECTION,
            id=name,
            provider=provider,
            status=status,
            metadata=metadata,
            created_at=NOW - timedelta(seconds=age),
        )
        await store.create(made, None, due_at=None)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(), ["acme-1", "acme-3", "acme-2", "other-1", "Other%_2"]),
        (Filter(provider="acme"), ["acme-1", "acme-3", "acme-2"]),
        (Filter(status="active"), ["acme-1", "acme-3", "other-1"]),
        (Filter(provider="other", status="failing"), ["Other%_2"]),
        (Filter(text="OTHER"), ["other-1", "Other%_2"]),
        (Filter(text="%_"), ["Other%_2"]),
        (Filter(text="cme"), ["acme-1", "acme-3", "acme-2"]),
        (Filter(text="nobody"), []),
        (Filter(metadata={"team": "billing"}), ["acme-1", "acme-2"]),
        (Filter(metadata={"team": "billing", "env": "test"}), ["acme-1"]),
        (Filter(metadata={"team": "bill"}), []),
        (Filter(patterns=("acme-[12]",)), ["acme-1", "acme-2"]),
        (Filter(patterns=("acme-1", "other-*")), ["acme-1", "other-1"]),
        (Filter(patterns=("ACME-*", "cme-1", "acme")), []),
        (Filter(patterns=()), []),
        (Filter(provider="acme'; DROP TABLE connections; --"), []),
    ],
)
async def test_filters(store: PostgresConnections, wanted: Filter, expected: list[str]) -> None:
    """A listing shows what every filter lets through, newest first, ids as the tie-break."""
    await populate(store)
    assert await ids(store, wanted) == expected


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
async def test_pages(store: PostgresConnections, limit: int) -> None:
    """Page after page shows each connection once, also where two came at the same moment."""
    await populate(store)
    seen: list[str] = []
    before = None
    while page := await store.page(Filter(), limit=limit, before=before):
        seen += [one.id for one in page]
        before = (page[-1].created_at, page[-1].id)
        newcomer = replace(CONNECTION, id=f"new-{len(seen)}", created_at=NOW + timedelta(days=1))
        await store.create(newcomer, None, due_at=None)
    assert seen == ["acme-1", "acme-3", "acme-2", "other-1", "Other%_2"]


async def test_use_is_remembered(store: PostgresConnections) -> None:
    """The latest use counts, whatever comes in later; strangers are ignored."""
    await store.create(CONNECTION, TOKENS, due_at=DUE)
    await store.create(replace(CONNECTION, id="acme-2"), TOKENS, due_at=DUE)
    await store.mark_used({"acme-1": NOW, "nobody": NOW})
    await store.mark_used({"acme-1": NOW - timedelta(hours=1)})
    first, second = await store.get("acme-1"), await store.get("acme-2")
    assert first is not None
    assert second is not None
    assert (first.last_used_at, second.last_used_at) == (NOW, None)
    warm = [token.connection async for token in store.recently_used(1)]
    assert warm == ["acme-1"]


async def test_the_census(store: PostgresConnections) -> None:
    """Counts by provider and state, what has expired, and what expires next."""
    await populate(store)
    for name, hours in [("t1", 1), ("t2", 2), ("t3", -1)]:
        tokens = replace(TOKENS, expires_at=NOW + timedelta(hours=hours))
        await store.create(replace(CONNECTION, id=name), tokens, due_at=DUE)
    census = await store.census(now=NOW)
    assert census.connections == {
        ("acme", "active"): 5,
        ("acme", "pending"): 1,
        ("other", "active"): 1,
        ("other", "failing"): 1,
    }
    assert census.expired == {"acme": 1}
    assert census.soonest == {"acme": NOW - timedelta(hours=1)}
    assert await store.providers_in_use() == {"acme": 5, "other": 2}


async def test_a_ciphertext_moved_to_another_row_is_no_token(
    store: PostgresConnections, database: Database, cipher: TokenCipher
) -> None:
    """It is neither served nor sent, shows as an error, and holds up nobody else."""
    for name in ("acme-1", "acme-2", "acme-3"):
        await store.create(replace(CONNECTION, id=name), TOKENS, due_at=NOW)
    await database.execute(
        "UPDATE token_sets SET access_token = other.access_token,"
        " refresh_token = other.refresh_token FROM token_sets other"
        " WHERE token_sets.connection_id = 'acme-1' AND other.connection_id = 'acme-2'"
    )
    current = {token.connection: token for token in await store.current(["acme-1", "acme-2"])}
    assert current["acme-1"].access_token == ""
    assert current["acme-2"].access_token == "access-canary"
    refreshes = PostgresRefreshes(database, cipher, recorder=EventRecorder(delivers=lambda: False))
    await refreshes.add_providers(["acme"])
    await database.execute("UPDATE provider_state SET free_at = free_at - interval '1 hour'")
    later = NOW + timedelta(minutes=1)
    found = await refreshes.claim_due(
        room={"acme": (8, 1.0)}, owner="x", hold=timedelta(minutes=2), now=later
    )
    assert {claim.connection_id for claim in found.claims} == {"acme-2", "acme-3"}
    assert [claim.delay for claim in found.claims] == [0.0, 0.0]
    shown = await store.get("acme-1")
    assert shown is not None
    assert shown.status is Status.FAILING
    assert shown.last_error is not None
    assert shown.last_error.code == "decrypt_error"
    assert "canary" not in shown.last_error.description
    assert shown.refresh_at == later + timedelta(minutes=5)
    kept = await database.fetchval(
        "SELECT refresh_token IS NOT NULL FROM token_sets WHERE connection_id = 'acme-1'"
    )
    assert kept


GLOBS = st.text(alphabet="ab-_.:@*?[]!^\\]-Z09é(){}+|$", max_size=12)
NAMES = st.lists(st.text(alphabet="ab-_.:@Z09", min_size=1, max_size=8), max_size=12)


@pytest.fixture(scope="module")
def glob_checker(postgres_cluster: Cluster) -> str:
    """The URL of a database in which regular expressions are tried; any will do."""
    return postgres_cluster.url("postgres")


@settings(max_examples=60, deadline=None)
@given(cases=st.lists(st.tuples(GLOBS, NAMES), min_size=20, max_size=20))
async def test_a_pattern_means_the_same_in_postgresql(
    glob_checker: str, cases: list[tuple[str, list[str]]]
) -> None:
    """Whoever may see a connection by its id finds it in a listing, and nobody else does."""
    session = await asyncpg.connect(glob_checker)
    try:
        for glob, names in cases:
            found = await session.fetch(
                "SELECT id FROM unnest($1::text[]) AS id WHERE id ~ ANY($2::text[])",
                names,
                [regular_expression(glob)],
            )
            matched = {row["id"] for row in found}
            assert matched == {name for name in names if fnmatchcase(name, glob)}, glob
    finally:
        await session.close()


@pytest.mark.parametrize(
    "glob",
    ["[]", "[!]", "[]a]*", "[!]a]", "[^a]", "[z-a]", "[!z-a]", "[[:alpha:]]", "[a-", "[\\]]", "[!"],
)
async def test_odd_patterns(glob_checker: str, glob: str) -> None:
    """Brackets mean what they mean to ``fnmatch``, where PostgreSQL's mean something else."""
    session = await asyncpg.connect(glob_checker)
    try:
        found = await session.fetch(
            "SELECT id FROM unnest($1::text[]) AS id WHERE id ~ $2",
            list(ID_LETTERS),
            regular_expression(glob),
        )
    finally:
        await session.close()
    assert [row["id"] for row in found] == [one for one in ID_LETTERS if fnmatchcase(one, glob)]
