"""After a restart: what becomes of the replies that the journal kept."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import orjson
import pytest

from daemon.domain.account import Account
from daemon.domain.authorization import (
    Completion,
    NotStored,
    NotStoredReason,
    StoredAuthorization,
)
from daemon.domain.claim import Claim, ClaimState, Refusal, Settlement, Standing
from daemon.domain.connection import Connection, Status
from daemon.domain.errors import DecryptionError, StorageError
from daemon.domain.history import EventType
from daemon.domain.journal import JournaledReply, Purpose
from daemon.domain.outcome import Granted
from daemon.domain.provider import Provider, RevocationRequest, TestRequest
from daemon.domain.reply import RawReply
from daemon.domain.tokens import TokenSet
from daemon.oauth.identifying import Identity
from daemon.refresh.recovery import Recovery
from daemon.refresh.replaying import Stored
from tests.support.clock import START, FakeClock
from tests.support.memory_refreshes import MemoryRefreshes
from tests.support.refreshing import ACME, Replica

NEW = {"access_token": "new", "refresh_token": "next", "token_type": "Bearer", "expires_in": 3600}


class PartlyLocked(MemoryRefreshes):
    """A store with one row that does not decrypt; while ``gives_no_claim`` none is taken again."""

    gives_no_claim = False

    async def reclaim(
        self, connection_id: str, *, attempt: str, generation: int, owner: str, hold: timedelta
    ) -> Claim | Refusal | None:
        """Claim again, unless it is that row."""
        if connection_id == "locked":
            raise DecryptionError("gone", connection="locked", column="refresh_token", key_id="k")
        return await super().reclaim(
            connection_id, attempt=attempt, generation=generation, owner=owner, hold=hold
        )

    async def recall(
        self,
        connection_id: str,
        *,
        attempt: str,
        generation: int,
        sent_at: datetime,
        epoch: int,
        owner: str,
        hold: timedelta,
    ) -> Claim | Refusal | None:
        """Claim again, unless it is that row."""
        if self.gives_no_claim:
            raise StorageError("permission denied")
        if connection_id == "locked":
            raise DecryptionError("gone", connection="locked", column="refresh_token", key_id="k")
        return await super().recall(
            connection_id,
            attempt=attempt,
            generation=generation,
            sent_at=sent_at,
            epoch=epoch,
            owner=owner,
            hold=hold,
        )


class Exchanges:
    """Port: Exchanged. Every connection is at generation 6 afterwards, unless ``refused``.

    Where ``generation`` is set, it is superseded unless it is only after that one.
    """

    def __init__(self) -> None:
        self.refused: NotStoredReason | None = None
        self.generation: int | None = None
        self.merged: str | None = None
        self.asked: list[Completion] = []

    async def complete(self, completion: Completion) -> StoredAuthorization | NotStored:
        """Store nothing."""
        self.asked.append(completion)
        if self.refused is not None:
            return NotStored(reason=self.refused)
        if self.generation is not None and self.generation != completion.only_after:
            return NotStored(reason=NotStoredReason.SUPERSEDED)
        connection = Connection(
            id=completion.connection_id,
            provider="acme",
            grant="authorization_code",
            status=Status.ACTIVE,
            generation=6,
            created_at=START,
            updated_at=START,
        )
        return StoredAuthorization(connection=connection, merged=self.merged)


def reply(body: object, *, status: int = 200, attempt: str = "attempt 1") -> JournaledReply:
    """Return what the journal kept of one attempt."""
    return JournaledReply(
        attempt=attempt,
        purpose=Purpose.REFRESH,
        connection_id="acme-1",
        provider="acme",
        generation=1,
        scopes=("read",),
        sent_at=START,
        reply=RawReply(status=status, headers={"content-length": "9"}, body=orjson.dumps(body)),
    )


class Asked:
    """Port: Identities. Everybody is account 17; ``found`` has the attempts asked about."""

    def __init__(self) -> None:
        self.found: list[str] = []

    async def identify(
        self, entry: JournaledReply, provider: Provider, granted: Granted, tokens: TokenSet
    ) -> Identity:
        """Answer."""
        del provider, granted, tokens
        self.found.append(entry.attempt)
        account = Account(account_id="17")
        return Identity(
            account=account,
            next_test_at=START + timedelta(days=1),
            may_merge=lambda other: other == "theirs",
        )

    async def identity(
        self, entry: JournaledReply, provider: Provider, granted: Granted, tokens: TokenSet
    ) -> Identity:
        """Never: nothing here is forgotten by a database."""
        raise AssertionError(entry, provider, granted, tokens)


class OneIncarnation:
    """Port: Incarnations, of a database that forgets nothing; ``place`` is where all stands."""

    def __init__(self, place: Standing) -> None:
        self.place = place

    async def current(self) -> str:
        """Return its name."""
        return "the only one"

    async def is_known(self, incarnation: str) -> bool:
        """Tell that it is."""
        return incarnation == "the only one"

    async def changed(self) -> None:
        """Never return."""
        await asyncio.Event().wait()

    async def trust(self, incarnation: str) -> None:
        """Agree."""

    def hold_back(self, providers: Collection[str]) -> None:
        """Hold nothing back."""

    async def all_replayed(self, incarnation: str) -> bool:
        """Tell that nobody else is there."""
        return incarnation == "the only one"

    async def standing(self, ids: Sequence[str]) -> Mapping[str, Standing]:
        """Return the one place for each."""
        return dict.fromkeys(ids, self.place)


class Restarted:
    """A replica that starts with what its journal kept."""

    def __init__(self, *kept: JournaledReply) -> None:
        clock = FakeClock()
        self.store = PartlyLocked(clock)
        self.here = Replica(clock=clock, shared_store=self.store, recovered=False)
        self.here.add()
        self.here.journal.kept = {entry.attempt: entry for entry in kept}
        self.authorized: list[tuple[Connection, TokenSet]] = []
        self.exchanges = Exchanges()
        self.identities: Asked | None = None
        self.place: Standing | None = None
        self.gone: list[str] = []
        self.disowned = 0

    async def claim(self, owner: str = "one") -> Claim:
        """Claim the connection, as whoever sent last had done."""
        here = self.here
        claim = await here.store.claim(
            here.wanted(), owner=owner, hold=here.refresher.hold, now=here.clock.now()
        )
        assert isinstance(claim, Claim)
        return claim

    async def recover(self) -> Recovery:
        """Run the recovery to its end."""
        here = self.here
        stored = Stored(
            journal=here.journal,
            store=here.store,
            exchanged=self.exchanges,
            providers=here.providers,
            on_authorized=lambda *told: self.authorized.append(told),
            clock=here.clock,
            chance=lambda: 0.5,
            on_disowned=self._disowned,
            on_gone=self.gone.append,
            late=here.store,
            identities=self.identities,
            incarnations=None if self.place is None else OneIncarnation(self.place),
        )
        recovery = Recovery(
            stored,
            pending=list(here.journal.kept.values()),
            refresher=here.refresher,
            settings=lambda: here.settings,
            owner="one",
        )
        await recovery.run()
        return recovery

    def _disowned(self) -> None:
        self.disowned += 1


async def test_a_kept_token_is_stored() -> None:
    """The reply is stored on top of what it followed, and then kept no more."""
    after = Restarted(reply(NEW))
    await after.claim()
    await after.recover()
    assert after.here.row().tokens.refresh_token == "next"
    assert after.here.row().state is ClaimState.IDLE
    assert after.here.journal.kept == {}


async def test_a_kept_token_waits_for_its_provider() -> None:
    """While the provider is not configured its reply stays kept: no later start may miss it."""
    after = Restarted(reply(NEW))
    await after.claim()
    del after.here.providers["acme"]
    await after.recover()
    assert list(after.here.journal.kept) == ["attempt 1"]
    after.here.providers["acme"] = ACME
    await after.recover()
    assert after.here.row().tokens.refresh_token == "next"
    assert after.here.journal.kept == {}


async def test_one_row_that_cannot_be_read_stops_nothing() -> None:
    """A row whose key is missing keeps its reply in the journal, and the others are stored."""
    after = Restarted(replace(reply(NEW, attempt="attempt 0"), connection_id="locked"), reply(NEW))
    await after.claim()
    await after.recover()
    assert list(after.here.journal.kept) == ["attempt 0"]
    assert after.here.row().tokens.refresh_token == "next"


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, "invalid_client"), (400, "temporarily_unavailable"), (503, "")],
)
async def test_a_kept_refusal_frees_nothing(status: int, error: str) -> None:
    """Another client secret may have been tried after it: the claim stays in doubt."""
    after = Restarted(reply({"error": error}, status=status))
    await after.claim()
    await after.recover()
    row = after.here.row()
    assert (row.state, row.status) == (ClaimState.IN_DOUBT, Status.FAILING)
    assert row.due_at is not None
    assert (row.due_at - START).total_seconds() > 3000
    assert after.here.journal.kept == {}


async def test_a_kept_refusal_does_not_end_anothers_doubt() -> None:
    """An old refusal says nothing of the request that another replica has sent since."""
    after = Restarted(reply({"error": "temporarily_unavailable"}, status=400))
    await after.claim()
    row = after.here.row()
    row.state, row.attempt, row.owner = ClaimState.IN_DOUBT, "another's", None
    await after.recover()
    assert (row.state, row.attempt) == (ClaimState.IN_DOUBT, "another's")


async def test_a_kept_end_of_the_grant_is_stored() -> None:
    """A dead grant is dead, whatever came after."""
    after = Restarted(reply({"error": "invalid_grant"}, status=400))
    await after.claim()
    await after.recover()
    assert after.here.row().status is Status.REAUTHORIZATION_REQUIRED


async def test_a_reply_that_is_stored_already_is_not_needed() -> None:
    """The note that it was stored may have been lost: the newer generation says so."""
    after = Restarted(reply(NEW))
    row = after.here.row()
    row.tokens = replace(row.tokens, generation=2)
    await after.recover()
    assert (row.tokens.generation, row.tokens.refresh_token) == (2, "refresh 1")
    assert after.here.journal.kept == {}
    assert after.here.store.disowned == []


async def test_a_kept_refusal_of_a_code_is_not_needed() -> None:
    """An exchange that brought nothing has nothing to store."""
    refused = reply({"error": "invalid_grant"}, status=400, attempt="exchange")
    after = Restarted(replace(refused, purpose=Purpose.EXCHANGE))
    await after.recover()
    assert after.exchanges.asked == []
    assert after.here.journal.kept == {}


async def test_recovery_waits_for_the_database() -> None:
    """Until it can be asked nothing is refreshed and nothing is given up."""
    after = Restarted(reply(NEW))
    await after.claim()
    after.here.store.is_away = True
    recovering = asyncio.create_task(after.recover())
    await after.here.clock.run(5)
    assert list(after.here.journal.kept) == ["attempt 1"]
    after.here.store.is_away = False
    await after.here.clock.run(2)
    await recovering
    assert after.here.row().tokens.refresh_token == "next"


async def test_a_kept_exchange_is_told_with_its_generation() -> None:
    """The cache hears the generation that was stored, not that of a first token."""
    after = Restarted(replace(reply(NEW, attempt="exchange"), purpose=Purpose.EXCHANGE))
    await after.recover()
    ((connection, tokens),) = after.authorized
    assert (connection.id, tokens.generation) == ("acme-1", 6)


async def test_a_kept_exchange_is_stored_as_it_was_begun() -> None:
    """With the fields and the epoch of its transaction, to be tested soon where that is wanted."""
    entry = replace(
        reply(NEW, attempt="exchange"),
        purpose=Purpose.EXCHANGE,
        epoch=3,
        fields={"region": "us"},
    )
    after = Restarted(entry, replace(entry, attempt="older", fields={}, epoch=0))
    once = RevocationRequest(on_reconnect=False)
    tested = replace(ACME, test=TestRequest(), revocation_request=once, tokens_never_expire=True)
    after.here.providers["acme"] = tested
    await after.recover()
    newer, older = after.exchanges.asked
    assert (newer.connection_id, newer.provider, newer.account) == ("acme-1", "acme", None)
    assert (newer.fields, newer.epoch, newer.only_after) == ({"region": "us"}, 3, 1)
    assert (newer.next_test_at, newer.revokes_replaced) == (START, False)
    assert newer.tokens.expires_at == START + timedelta(hours=1)
    assert (older.fields, older.epoch) == (None, 0)
    after.here.providers["acme"] = replace(ACME, test=TestRequest(interval=None))
    after.here.journal.kept["again"] = replace(entry, attempt="again")
    await after.recover()
    # Nobody has asked whose it is yet, also where it is never asked again.
    assert after.exchanges.asked[-1].next_test_at == START
    assert after.exchanges.asked[-1].revokes_replaced
    assert not after.exchanges.asked[-1].may_merge("acme-2")


async def test_whose_account_a_kept_exchange_was_for_is_asked_before_it_is_stored() -> None:
    """A crash must not let somebody else's tokens into a connection."""
    after = Restarted(replace(reply(NEW, attempt="exchange"), purpose=Purpose.EXCHANGE))
    after.identities = Asked()
    after.exchanges.merged = "acme-1"
    await after.recover()
    (completion,) = after.exchanges.asked
    assert after.identities.found == ["exchange"]
    assert completion.account == Account(account_id="17")
    assert completion.next_test_at == START + timedelta(days=1)
    assert (completion.may_merge("theirs"), completion.may_merge("others")) == (True, False)
    assert after.gone == ["acme-1"]
    assert after.here.journal.kept == {}


@pytest.mark.parametrize(
    ("granted_before", "expected"),
    [(timedelta(hours=1), [1, 2]), (timedelta(seconds=3), [1]), (timedelta(0), [1]), (None, [1])],
)
async def test_a_refresh_of_the_old_grant_supersedes_no_exchange(
    granted_before: timedelta | None, expected: list[int]
) -> None:
    """The person came back while it was under way: the new grant goes over what it brought."""
    after = Restarted(replace(reply(NEW, attempt="exchange"), purpose=Purpose.EXCHANGE))
    after.exchanges.generation = 2
    after.place = Standing(
        status=Status.ACTIVE,
        generation=2,
        epoch=0,
        granted_at=None if granted_before is None else START - granted_before,
    )
    await after.recover()
    assert [one.only_after for one in after.exchanges.asked] == expected
    assert len(after.authorized) == len(expected) - 1
    assert after.here.journal.kept == {}


@pytest.mark.parametrize("reason", list(NotStoredReason))
async def test_a_kept_exchange_that_is_refused_is_done_with(reason: NotStoredReason) -> None:
    """The store has queued its tokens, unless it knows them: nothing is left to do here."""
    after = Restarted(replace(reply(NEW, attempt="exchange"), purpose=Purpose.EXCHANGE))
    after.exchanges.refused = reason
    await after.recover()
    assert after.authorized == []
    assert after.here.journal.kept == {}
    assert after.disowned == int(reason is not NotStoredReason.SUPERSEDED)


@pytest.mark.parametrize("purge", ["", "purge"])
async def test_a_kept_token_of_a_disconnected_connection_is_disowned(purge: str) -> None:
    """It brings nothing back; its tokens are to be revoked, and the reply is kept no more."""
    after = Restarted(reply(NEW))
    await after.claim()
    row = after.here.row()
    row.disconnect()
    if purge:
        del after.here.store.rows["acme-1"]
    await after.recover()
    assert (row.state, row.tokens.access_token) == (ClaimState.IDLE, "")
    ((name, provider, tokens),) = after.here.store.disowned
    assert (name, provider) == ("acme-1", "acme")
    assert (tokens.refresh_token, tokens.access_token) == ("next", "new")
    assert after.disowned == 1
    assert after.here.journal.kept == {}
    assert after.here.store.events == []


async def test_a_salvaged_token_of_a_disconnected_connection_is_disowned() -> None:
    """Also a refresh token alone, out of a reply that is otherwise unusable."""
    after = Restarted(reply({"refresh_token": "next"}))
    await after.claim()
    after.here.row().disconnect()
    await after.recover()
    ((_, _, tokens),) = after.here.store.disowned
    assert (tokens.refresh_token, tokens.access_token) == ("next", "")


async def test_an_interrupted_refresh_is_in_the_history() -> None:
    """What was under way at the crash is recorded when it is put in doubt."""
    after = Restarted()
    await after.claim()
    await after.recover()
    (event,) = after.here.store.events
    assert (event.type, event.detail["error"]) == (EventType.REFRESH_FAILED, "in_doubt")


async def test_a_reply_waits_for_another_replicas_attempt() -> None:
    """While somebody else sends, the kept reply waits; when that came to nothing it is stored."""
    after = Restarted(reply(NEW, attempt="ours"))
    theirs = await after.claim(owner="two")
    recovery = await after.recover()
    assert list(after.here.journal.kept) == ["ours"]
    watching = asyncio.create_task(recovery.watch())
    await after.here.clock.run(5)
    assert list(after.here.journal.kept) == ["ours"]
    unsent = Settlement(
        connection_id=theirs.connection_id,
        attempt=theirs.attempt,
        generation=1,
        state=ClaimState.IDLE,
        due_at=None,
        status=Status.FAILING,
        failures=1,
        last_error=None,
        touches_connection=True,
    )
    await after.here.store.settle([unsent], now=after.here.clock.now())
    await after.here.clock.run(5)
    assert after.here.row().tokens.refresh_token == "next"
    assert after.here.journal.kept == {}
    watching.cancel()
    await asyncio.wait([watching])


async def test_a_provider_that_comes_back_needs_no_restart() -> None:
    """Its kept replies are stored when recovery is woken."""
    after = Restarted(reply(NEW))
    await after.claim()
    del after.here.providers["acme"]
    recovery = await after.recover()
    watching = asyncio.create_task(recovery.watch())
    recovery.wake()
    await after.here.clock.settle()
    assert list(after.here.journal.kept) == ["attempt 1"]
    after.here.providers["acme"] = ACME
    recovery.wake()
    await after.here.clock.settle()
    assert after.here.row().tokens.refresh_token == "next"
    assert after.here.journal.kept == {}
    watching.cancel()
    await asyncio.wait([watching])


async def test_a_kept_token_that_came_too_late_is_an_orphan() -> None:
    """The owner is back with a reply, but another replica's was stored meanwhile."""
    after = Restarted(reply(NEW))
    row = after.here.row()
    row.tokens = replace(row.tokens, generation=2, access_token="theirs")
    await after.recover()
    ((name, attempt, tokens),) = after.here.store.orphans.values()
    assert (name, attempt) == ("acme-1", "attempt 1")
    assert (tokens.generation, tokens.refresh_token) == (2, "next")
    assert row.tokens.access_token == "theirs"
    assert after.here.journal.kept == {}
    assert after.here.journal.history == []


async def test_a_database_that_refuses_stops_no_recovery() -> None:
    """It is tried again until it is stored; nothing is refreshed before."""
    after = Restarted(reply(NEW))
    await after.claim()
    await after.here.store.settle([], now=START)
    after.here.store.is_refusing = True
    recovering = asyncio.create_task(after.recover())
    await after.here.clock.run(100)
    assert not recovering.done()
    after.here.store.is_refusing = False
    await after.here.clock.run(40)
    await recovering
    assert after.here.row().tokens.refresh_token == "next"


async def test_a_database_that_refuses_a_late_reply_does_not_lose_it() -> None:
    """Nothing else holds a reply that waited for another replica: it is tried again."""
    after = Restarted(reply(NEW, attempt="ours"))
    theirs = await after.claim(owner="two")
    recovery = await after.recover()
    watching = asyncio.create_task(recovery.watch())
    row = after.here.row()
    row.state, row.attempt, row.owner = ClaimState.IN_DOUBT, theirs.attempt, None
    after.store.gives_no_claim = True
    await after.here.clock.run(100)
    assert list(after.here.journal.kept) == ["ours"]
    after.store.gives_no_claim = False
    await after.here.clock.run(40)
    assert after.here.row().tokens.refresh_token == "next"
    assert after.here.journal.kept == {}
    watching.cancel()
    await asyncio.wait([watching])


async def test_a_reply_that_was_given_up_elsewhere_is_stored_without_a_restart() -> None:
    """A person connected while the database was away: its tokens do not wait for a start."""
    after = Restarted()
    recovery = await after.recover()
    watching = asyncio.create_task(recovery.watch())
    await after.here.clock.settle()
    exchange = replace(reply(NEW, attempt="exchange"), purpose=Purpose.EXCHANGE)
    after.here.journal.kept["exchange"] = exchange
    recovery.store_later(exchange)
    assert after.here.refresher.attempts.waiting == {"exchange": "acme-1"}
    await after.here.clock.run(5)
    ((connection, tokens),) = after.authorized
    assert (connection.id, tokens.access_token) == ("acme-1", "new")
    assert after.here.journal.kept == {}
    assert after.here.refresher.attempts.waiting == {}
    watching.cancel()
    await asyncio.wait([watching])
