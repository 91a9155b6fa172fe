"""After a restart: what becomes of the replies that the journal kept."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import orjson
import pytest

from daemon.domain.claim import Claim, ClaimState, Refusal, Settlement
from daemon.domain.connection import Connection, Status
from daemon.domain.errors import DecryptionError
from daemon.domain.journal import JournaledReply, Purpose
from daemon.domain.reply import RawReply
from daemon.domain.tokens import TokenSet
from daemon.refresh.recovery import Recovery, Stored
from tests.support.clock import START, FakeClock
from tests.support.memory_refreshes import MemoryRefreshes
from tests.support.refreshing import ACME, Replica

NEW = {"access_token": "new", "refresh_token": "next", "token_type": "Bearer", "expires_in": 3600}


class PartlyLocked(MemoryRefreshes):
    """A store with one row that does not decrypt."""

    async def reclaim(
        self, connection_id: str, *, attempt: str, generation: int, owner: str, hold: timedelta
    ) -> Claim | Refusal | None:
        """Claim again, unless it is that row."""
        if connection_id == "locked":
            raise DecryptionError("gone", connection="locked", column="refresh_token", key_id="k")
        return await super().reclaim(
            connection_id, attempt=attempt, generation=generation, owner=owner, hold=hold
        )


class Exchanges:
    """Port: Exchanged. Every connection is at generation 6 afterwards."""

    async def complete(
        self,
        connection_id: str,
        tokens: TokenSet,
        *,
        due_at: object,
        only_after: int | None = None,
    ) -> Connection:
        """Store nothing."""
        del tokens, due_at, only_after
        return Connection(
            id=connection_id,
            provider="acme",
            grant="authorization_code",
            status=Status.ACTIVE,
            generation=6,
            created_at=START,
            updated_at=START,
        )


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


class Restarted:
    """A replica that starts with what its journal kept."""

    def __init__(self, *kept: JournaledReply) -> None:
        clock = FakeClock()
        self.here = Replica(clock=clock, shared_store=PartlyLocked(clock), recovered=False)
        self.here.add()
        self.here.journal.kept = {entry.attempt: entry for entry in kept}
        self.authorized: list[tuple[Connection, TokenSet]] = []

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
            exchanged=Exchanges(),
            providers=here.providers,
            on_authorized=lambda *told: self.authorized.append(told),
            clock=here.clock,
            chance=lambda: 0.5,
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


async def test_a_kept_exchange_is_told_with_its_generation() -> None:
    """The cache hears the generation that was stored, not that of a first token."""
    after = Restarted(replace(reply(NEW, attempt="exchange"), purpose=Purpose.EXCHANGE))
    await after.recover()
    ((connection, tokens),) = after.authorized
    assert (connection.id, tokens.generation) == ("acme-1", 6)


async def test_a_reply_waits_for_another_replicas_attempt() -> None:
    """While somebody else sends, the kept reply waits; when that came to nothing it is stored."""
    after = Restarted(reply(NEW, attempt="ours"))
    theirs = await after.claim(owner="two")
    recovery = await after.recover()
    assert list(after.here.journal.kept) == ["ours"]
    finishing = asyncio.create_task(recovery.finish())
    await after.here.clock.run(5)
    assert not finishing.done()
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
    await finishing
    assert after.here.row().tokens.refresh_token == "next"
    assert after.here.journal.kept == {}
