"""What happens to a connection beside its refreshes, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from daemon.config.settings import EncryptionKey
from daemon.domain.account import Account
from daemon.domain.authorization import Completion, StoredAuthorization
from daemon.domain.claim import Claim, ClaimState, Settled, Settlement
from daemon.domain.claimable import Wanted
from daemon.domain.clock import system_entropy
from daemon.domain.connection import Connection, Failure, Status, TestResult
from daemon.domain.history import EventType
from daemon.domain.revocation import Initiator
from daemon.domain.tokens import TokenSet
from daemon.persistence.authorizations import PostgresAuthorizations
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.history import EventRecorder, PostgresHistory
from daemon.persistence.life import Change, Disconnected, TestRecorded
from daemon.persistence.postgres import Database
from daemon.persistence.refreshes import PostgresRefreshes
from daemon.persistence.revocations import PostgresRevocations
from tests.support.clock import START, FakeClock
from tests.support.first_epoch import ConnectionsFromZero

CONNECTION = Connection(
    id="acme-1",
    provider="acme",
    grant="authorization_code",
    status=Status.ACTIVE,
    requested_scopes=("read",),
    metadata={"team": "billing"},
    fields={"region": "eu"},
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
DUE = START + timedelta(minutes=45)
LATER = START + timedelta(minutes=1)
TOMORROW = START + timedelta(days=1)
GOOD = TestResult(ok=True, status=200, checked_at=LATER)
BAD = TestResult(
    ok=False,
    status=401,
    checked_at=LATER,
    error=Failure(code="unauthorized", description="The provider answered 401.", at=LATER),
)
ANNA = Account(account_id="anna", label="Anna", test=GOOD)


class Life:
    """The stores on one database."""

    def __init__(self, database: Database, cipher: TokenCipher) -> None:
        self.database = database
        recorder = EventRecorder(delivers=lambda: True)
        self.connections = ConnectionsFromZero(database, cipher, recorder)
        self.refreshes = PostgresRefreshes(database, cipher, recorder=recorder)
        self.revocations = PostgresRevocations(database, cipher)
        self.history = PostgresHistory(database, recorder)
        self.authorizations = PostgresAuthorizations(
            database, cipher, self.connections, FakeClock(), recorder=recorder
        )

    async def add(self, name: str = "acme-1", **changes: Any) -> None:
        """Store a connection with tokens."""
        connection = replace(CONNECTION, id=name, **changes)
        assert await self.connections.create(connection, TOKENS, due_at=DUE)

    async def get(self, name: str = "acme-1") -> Connection:
        """Return a connection that is there."""
        found = await self.connections.get(name)
        assert found is not None
        return found

    async def told(self, name: str = "acme-1") -> list[tuple[EventType, Mapping[str, Any]]]:
        """Return the events since its creation, oldest first."""
        events = await self.history.of_connection(name, limit=100, before=None)
        return [(event.type, event.detail) for event in reversed(events)][2:]

    async def tested(self, name: str, account: Account, **changes: Any) -> TestRecorded:
        """Record a test of a connection that is there."""
        arguments = {"now": LATER, "next_test_at": TOMORROW, **changes}
        found = await self.connections.record_test(name, account, **arguments)
        assert found is not None
        return found

    async def disconnected(self, name: str = "acme-1", **changes: Any) -> Disconnected:
        """Disconnect a connection that is there."""
        arguments = {
            "initiator": Initiator.OPERATOR,
            "now": LATER,
            "revoke": True,
            "purge": False,
            **changes,
        }
        found = await self.connections.disconnect(name, **arguments)
        assert found is not None
        return found

    async def claimed(self, name: str = "acme-1") -> Claim:
        """Claim a connection's refresh."""
        await self.refreshes.add_providers(["acme"])
        wanted = Wanted(
            connection_id=name, provider="acme", generation=99, rate=1000.0, forced=True
        )
        claim = await self.refreshes.claim(
            wanted, owner="one", hold=timedelta(minutes=2), now=START
        )
        assert isinstance(claim, Claim), claim
        return claim


@pytest.fixture
def life(database: Database, cipher: TokenCipher) -> Life:
    """The stores on an empty database."""
    return Life(database, cipher)


def renewal(claim: Claim) -> Settlement:
    """Return the settlement of a refresh that brought tokens."""
    return Settlement(
        connection_id=claim.connection_id,
        attempt=claim.attempt,
        generation=claim.tokens.generation,
        tokens=replace(
            claim.tokens,
            generation=claim.tokens.generation + 1,
            access_token="late access",
            refresh_token="late refresh",
        ),
        state=ClaimState.IDLE,
        due_at=DUE,
        status=Status.ACTIVE,
        failures=0,
        last_error=None,
        touches_connection=True,
        epoch=claim.epoch,
        provider=claim.provider,
    )


async def test_a_creation_is_told(life: Life) -> None:
    """A connection that comes with tokens was created and authorized; without, only created."""
    await life.add()
    await life.connections.create(
        replace(CONNECTION, id="acme-2", status=Status.PENDING), None, due_at=None
    )
    first = await life.history.of_connection("acme-1", limit=9, before=None)
    assert [event.type for event in first] == [EventType.AUTHORIZED, EventType.CREATED]
    assert first[0].detail == {
        "generation": 1,
        "has_refresh_token": True,
        "account_known": False,
        "imported": True,
    }
    second = await life.history.of_connection("acme-2", limit=9, before=None)
    assert [event.type for event in second] == [EventType.CREATED]
    assert await life.database.fetchval("SELECT count(*) FROM webhook_deliveries") == 3


async def test_a_creation_that_fails_is_not_told(life: Life) -> None:
    """An id that is taken leaves no event behind."""
    await life.add()
    assert not await life.connections.create(CONNECTION, TOKENS, due_at=DUE)
    assert await life.told() == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Change(), {}),
        (Change(label="Main"), {"label": "Main"}),
        (Change(metadata={}), {"metadata": {}}),
        (
            Change(metadata={"a": "b"}, fields={"region": "us"}),
            {"metadata": {"a": "b"}, "fields": {"region": "us"}},
        ),
    ],
)
async def test_a_change(life: Life, change: Change, expected: Mapping[str, Any]) -> None:
    """What is given replaces what there was, and nothing else changes."""
    await life.add()
    before = await life.get()
    changed = await life.connections.update("acme-1", lambda _: change, now=LATER)
    assert changed == replace(before, updated_at=LATER, **expected)
    assert await life.get() == changed


async def test_a_change_of_nobody(life: Life) -> None:
    """Who is not there cannot be changed."""
    assert await life.connections.update("nobody", lambda _: Change(label="x"), now=LATER) is None


async def test_a_name_given_by_a_person(life: Life) -> None:
    """No test renames it, until the person gives the naming back."""
    await life.add()
    await life.connections.update("acme-1", lambda _: Change(label="Main"), now=LATER)
    assert (await life.tested("acme-1", ANNA)).connection.label == "Main"
    given_back = await life.connections.update("acme-1", lambda _: Change(label=""), now=LATER)
    assert given_back is not None
    assert given_back.label is None
    assert (await life.tested("acme-1", ANNA)).connection.label == "Anna"


async def test_a_good_test(life: Life) -> None:
    """Result, label, account and values are kept, the next test is planned, and it is told."""
    await life.add(reply_values={"token.a": "1"})
    recorded = await life.tested("acme-1", replace(ANNA, reply_values={"me.id": "2"}))
    assert recorded.conflict is None
    shown = await life.get()
    assert recorded.connection == shown
    assert (shown.label, shown.account_id) == ("Anna", "anna")
    assert (shown.last_test, shown.last_tested_at, shown.updated_at) == (GOOD, LATER, LATER)
    assert shown.reply_values == {"token.a": "1", "me.id": "2"}
    assert await life.told() == [(EventType.TESTED, {"ok": True, "status": 200})]
    assert await life.connections.claim_tests(now=TOMORROW, limit=9) == ["acme-1"]


async def test_a_failed_test(life: Life) -> None:
    """It is kept and told with its code; what was known stays; nothing counts as an update."""
    await life.add()
    await life.tested("acme-1", ANNA)
    after = (await life.tested("acme-1", Account(test=BAD), now=TOMORROW)).connection
    assert (after.last_test, after.label, after.account_id) == (BAD, "Anna", "anna")
    assert after.updated_at == LATER
    assert (await life.told())[-1] == (
        EventType.TESTED,
        {"ok": False, "status": 401, "code": "unauthorized"},
    )


async def test_a_test_finds_an_account_that_another_has(life: Life) -> None:
    """The other is named and keeps it; the rest of what was learned is stored."""
    await life.add("acme-1")
    await life.add("acme-2")
    await life.tested("acme-1", ANNA)
    recorded = await life.tested("acme-2", ANNA)
    assert (recorded.conflict, recorded.connection.account_id) == ("acme-1", None)
    assert recorded.connection.label == "Anna"
    elsewhere = await life.tested("acme-2", replace(ANNA, scope="us"))
    assert (elsewhere.conflict, elsewhere.connection.account_id) == (None, "anna")


async def test_a_test_of_somebody_elses_token(life: Life) -> None:
    """A stored account is never replaced by a test, nor named by somebody else's reply."""
    await life.add()
    await life.tested("acme-1", ANNA)
    otto = replace(ANNA, account_id="otto", label="Otto", reply_values={"me.id": "otto"})
    after = await life.tested("acme-1", otto)
    shown = after.connection
    assert (after.conflict, shown.account_id, shown.label) == (None, "anna", "Anna")
    assert shown.reply_values == {}
    assert shown.last_test is not None
    assert shown.last_test.error is not None
    assert (shown.last_test.ok, shown.last_test.error.code) == (False, "other_account")
    assert (await life.told())[-1] == (
        EventType.TESTED,
        {"ok": False, "status": 200, "code": "other_account"},
    )


async def test_tests_of_one_account_at_once(life: Life) -> None:
    """Exactly one of many connections becomes the account's, and the others name it."""
    names = [f"acme-{number}" for number in range(12)]
    for name in names:
        await life.add(name)
    recorded = await asyncio.gather(*(life.tested(name, ANNA) for name in names))
    (winner,) = [one.connection.id for one in recorded if one.conflict is None]
    assert {one.conflict for one in recorded} == {None, winner}


async def test_a_test_that_ends_after_the_connection(life: Life) -> None:
    """What was disconnected meanwhile stays as it is; what is gone is nobody."""
    await life.add()
    await life.disconnected()
    recorded = await life.tested("acme-1", ANNA)
    assert (recorded.connection.label, recorded.connection.last_test) == (None, None)
    assert await life.connections.claim_tests(now=TOMORROW, limit=9) == []
    await life.disconnected(purge=True)
    nothing = await life.connections.record_test("acme-1", ANNA, now=LATER, next_test_at=None)
    assert nothing is None


async def test_tests_are_claimed_once(life: Life) -> None:
    """A due test is with one replica for an hour; what does not work is not tested."""
    for name in ("a", "b", "c", "d"):
        await life.connections.create(
            replace(CONNECTION, id=name), TOKENS, due_at=DUE, next_test_at=START
        )
    await life.connections.create(
        replace(CONNECTION, id="dead", status=Status.REAUTHORIZATION_REQUIRED),
        TOKENS,
        due_at=None,
        next_test_at=START,
    )
    await life.add("unplanned")
    assert await life.connections.claim_tests(now=START - timedelta(seconds=1), limit=9) == []
    claims = await asyncio.gather(
        *(life.connections.claim_tests(now=START, limit=2) for _ in range(8))
    )
    assert sorted(name for claim in claims for name in claim) == ["a", "b", "c", "d"]
    later = START + timedelta(hours=1)
    assert await life.connections.claim_tests(now=later - timedelta(seconds=1), limit=9) == []
    assert len(await life.connections.claim_tests(now=later, limit=9)) == 4


FAILURE = Failure(code="revoked", description="The provider has ended the grant.", at=LATER)


async def dead(life: Life, *, generation: int = 1) -> bool:
    """Mark the connection dead."""
    return await life.connections.mark_dead(
        "acme-1", generation=generation, failure=FAILURE, now=LATER
    )


async def test_a_dead_grant(life: Life) -> None:
    """A person must act, nothing is refreshed or tested any more, and it is told once."""
    await life.add()
    await life.tested("acme-1", Account(test=GOOD))
    assert await dead(life)
    assert not await dead(life)
    shown = await life.get()
    assert (shown.status, shown.last_error) == (Status.REAUTHORIZATION_REQUIRED, FAILURE)
    assert (shown.refresh_at, shown.expires_at) == (None, LATER)
    assert await life.refreshes.count_due(now=TOMORROW) == 0
    assert await life.connections.claim_tests(now=TOMORROW, limit=9) == []
    detail = {"cause": "revoked", "generation": 1}
    assert (await life.told())[1:] == [
        (EventType.REVOKED_AT_PROVIDER, detail),
        (EventType.REAUTHORIZATION_REQUIRED, detail),
    ]


async def test_a_grant_that_a_refresh_found_dead_before(life: Life) -> None:
    """The refresh's words stay; that the token is refused as well is told once, and ends it."""
    await life.add()
    claim = await life.claimed()
    words = replace(FAILURE, code="invalid_grant")
    refused = replace(
        renewal(claim),
        tokens=None,
        state=ClaimState.IDLE,
        status=Status.REAUTHORIZATION_REQUIRED,
        last_error=words,
    )
    assert await life.refreshes.settle([refused], now=LATER) == [Settled.STORED]
    assert (await life.get()).expires_at != LATER
    assert await dead(life)
    assert not await dead(life)
    shown = await life.get()
    assert (shown.status, shown.last_error) == (Status.REAUTHORIZATION_REQUIRED, words)
    assert shown.expires_at == LATER
    detail = {"cause": "revoked", "generation": 1}
    assert (await life.told())[-1] == (EventType.REVOKED_AT_PROVIDER, detail)


async def test_a_grant_that_has_moved_on_is_not_dead(life: Life) -> None:
    """A newer generation, a refresh on its way, or one in doubt decides for itself."""
    assert not await dead(life)
    await life.add()
    assert not await dead(life, generation=2)
    claim = await life.claimed()
    assert not await dead(life)
    doubtful = replace(
        renewal(claim), tokens=None, state=ClaimState.IN_DOUBT, status=Status.FAILING
    )
    assert await life.refreshes.settle([doubtful], now=LATER) == [Settled.STORED]
    assert not await dead(life)
    assert (await life.get()).status is Status.FAILING


async def test_a_disconnect(life: Life) -> None:
    """Tokens are erased here and queued for revocation; name, fields and generation stay."""
    await life.add()
    await life.tested("acme-1", ANNA)
    ended = await life.disconnected()
    assert ended.queued == 2
    shown = await life.get()
    assert ended.connection == shown
    assert (shown.status, shown.generation, shown.scopes) == (Status.DISCONNECTED, 1, ())
    assert (shown.label, shown.account_id, shown.fields) == ("Anna", "anna", {"region": "eu"})
    assert (shown.has_refresh_token, shown.expires_at, shown.refresh_at) == (False, None, None)
    (current,) = await life.connections.current(["acme-1"])
    assert (current.status, current.access_token, current.failure) == (
        Status.DISCONNECTED,
        "",
        None,
    )
    assert await life.connections.versions(["acme-1"]) == {"acme-1": (1, Status.DISCONNECTED, None)}
    claimed = await life.revocations.claim(now=LATER, hold=timedelta(minutes=1), limit=9)
    assert [(one.token, one.initiator) for one in claimed] == [
        ("refresh", Initiator.OPERATOR),
        ("access", Initiator.OPERATOR),
    ]
    assert (await life.told())[-1] == (
        EventType.DISCONNECTED,
        {"initiator": "operator", "generation": 1, "queued": 2},
    )


async def test_disconnecting_twice(life: Life) -> None:
    """The second time changes nothing and says what is still queued."""
    await life.add()
    first = await life.disconnected()
    (one, _) = await life.revocations.claim(now=LATER, hold=timedelta(minutes=1), limit=9)
    await life.revocations.done(one.id)
    second = await life.disconnected(now=TOMORROW)
    assert (second.connection, second.queued) == (first.connection, 1)
    assert len(await life.told()) == 1
    assert await life.database.fetchval("SELECT epoch FROM connections") == 1


async def test_disconnecting_at_once(life: Life) -> None:
    """Of many disconnects one ends it, and each token is queued once."""
    await life.add()
    ended = await asyncio.gather(*(life.disconnected() for _ in range(10)))
    assert {one.queued for one in ended} == {2}
    assert len(await life.told()) == 1


async def test_disconnecting_what_was_never_authorized(life: Life) -> None:
    """It is disconnected, with nothing to revoke."""
    pending = replace(CONNECTION, status=Status.PENDING)
    await life.connections.create(pending, None, due_at=None)
    ended = await life.disconnected()
    assert (ended.connection.status, ended.connection.generation) == (Status.DISCONNECTED, 0)
    assert ended.queued == 0
    assert (
        await life.connections.disconnect(
            "nobody", initiator=Initiator.CALLER, now=LATER, revoke=True, purge=True
        )
        is None
    )


async def test_disconnecting_where_nothing_can_be_revoked(life: Life) -> None:
    """The tokens are erased and go nowhere."""
    await life.add()
    assert (await life.disconnected(revoke=False)).queued == 0
    assert await life.revocations.next_at() is None


async def test_a_disconnect_during_a_refresh(life: Life) -> None:
    """The refresh that ends later does not bring it back, and its tokens are revoked, too."""
    await life.add()
    claim = await life.claimed()
    await life.disconnected()
    settled = await life.refreshes.settle([renewal(claim)], now=LATER)
    assert settled == [Settled.DISCONNECTED]
    assert (await life.get()).status is Status.DISCONNECTED
    queued = await life.revocations.claim(now=LATER, hold=timedelta(minutes=1), limit=9)
    assert {one.token for one in queued} == {"refresh", "access", "late refresh", "late access"}


async def test_connecting_again_after_a_disconnect(life: Life) -> None:
    """The next generation, with name and fields of before; a refresh of before stays out."""
    await life.add()
    claim = await life.claimed()
    await life.tested("acme-1", ANNA)
    await life.disconnected()
    again = Completion(
        connection_id="acme-1",
        tokens=replace(TOKENS, issued_at=LATER, access_token="new"),
        due_at=DUE,
        account=ANNA,
        epoch=1,
    )
    stored = await life.authorizations.complete(again)
    assert isinstance(stored, StoredAuthorization)
    assert (stored.connection.generation, stored.connection.label) == (2, "Anna")
    assert stored.connection.fields == {"region": "eu"}
    settled = await life.refreshes.settle([renewal(claim)], now=LATER)
    assert settled == [Settled.DISCONNECTED]
    (current,) = await life.connections.current(["acme-1"])
    assert current.access_token == "new"


async def test_a_purge(life: Life) -> None:
    """Nothing is left but the tokens that the provider is still to be told of."""
    await life.add()
    await life.add("acme-2")
    ended = await life.disconnected(purge=True)
    assert (ended.connection.status, ended.queued) == (Status.DISCONNECTED, 2)
    assert await life.connections.get("acme-1") is None
    assert await life.connections.versions(["acme-1"]) == {}
    assert await life.history.of_connection("acme-1", limit=9, before=None) == []
    for table in ("token_sets", "refresh_schedule"):
        left = await life.database.fetch(f"SELECT connection_id FROM {table}")
        assert [row["connection_id"] for row in left] == ["acme-2"], table
    assert await life.database.fetchval("SELECT count(*) FROM webhook_deliveries") == 2
    assert await life.revocations.count("acme-1") == 2


async def test_purging_what_is_disconnected(life: Life) -> None:
    """A purge may follow a disconnect; what others were merged into goes with it."""
    await life.add()
    await life.disconnected()
    await life.database.execute("INSERT INTO merged_connections VALUES ('old', 'acme-1', now())")
    assert await life.connections.survivor_of("old") == "acme-1"
    assert (await life.disconnected(purge=True)).queued == 2
    assert await life.connections.survivor_of("old") is None


async def test_an_id_that_was_merged_may_be_used_again(life: Life) -> None:
    """It is a connection of its own again, and leads nowhere else."""
    await life.add()
    await life.database.execute("INSERT INTO merged_connections VALUES ('acme-2', 'acme-1', now())")
    await life.add("acme-2")
    assert await life.connections.survivor_of("acme-2") is None


async def test_tokens_that_cannot_be_decrypted(life: Life, database: Database) -> None:
    """They are erased all the same, and the event says that nobody could revoke them."""
    await life.add()
    other = TokenCipher((EncryptionKey(id="other", secret=b"o" * 32),), entropy=system_entropy)
    stranger = Life(database, other)
    ended = await stranger.disconnected()
    assert (ended.connection.status, ended.queued) == (Status.DISCONNECTED, 0)
    assert (await life.told())[-1][1]["tokens_undecryptable"] is True
    (current,) = await stranger.connections.current(["acme-1"])
    assert current.access_token == ""


async def test_one_token_that_cannot_be_decrypted(life: Life) -> None:
    """The other one is revoked."""
    await life.add()
    await life.database.execute("UPDATE token_sets SET access_token = refresh_token")
    assert (await life.disconnected()).queued == 1
    (queued,) = await life.revocations.claim(now=LATER, hold=timedelta(minutes=1), limit=9)
    assert queued.token == "refresh"
    assert (await life.told())[-1][1]["tokens_undecryptable"] is True


async def test_two_who_change_at_once_lose_nothing(life: Life) -> None:
    """Each sees what the other has stored: both keys of the metadata are there afterwards."""
    await life.add()

    async def put(name: str) -> None:
        await life.connections.update(
            "acme-1", lambda now: Change(metadata={**now.metadata, name: "1"}), now=LATER
        )

    names = [f"k{number}" for number in range(10)]
    await asyncio.gather(*map(put, names))
    changed = await life.connections.get("acme-1")
    assert changed is not None
    assert changed.metadata.keys() >= set(names)
