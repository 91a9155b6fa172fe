"""Marking a connection due for those that refresh: only what they would give a caller."""

from __future__ import annotations

from dataclasses import replace

import pytest

from daemon.domain.claim import RefusalReason
from daemon.domain.claimable import Wanted
from daemon.persistence.asks import PostgresAsks
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.postgres import Database
from tests.support.refresh_claims import add, due, failure, settle, tokens
from tests.support.refresh_stages import PostgresStage

_WANTED = Wanted(connection_id="a", provider="acme", generation=1, rate=10)


@pytest.fixture
def stage(database: Database, cipher: TokenCipher) -> PostgresStage:
    """A store on PostgreSQL."""
    return PostgresStage(database, cipher)


@pytest.fixture
def asks(stage: PostgresStage) -> PostgresAsks:
    """How others are asked there."""
    return PostgresAsks(stage.database)


async def _ask(
    asks: PostgresAsks, stage: PostgresStage, wanted: Wanted = _WANTED
) -> RefusalReason | None:
    refusal = await asks.ask(wanted, now=stage.now())
    return None if refusal is None else refusal.reason


async def test_what_is_asked_for_is_due(asks: PostgresAsks, stage: PostgresStage) -> None:
    """A row with a later time is due now; the sweep of any that refreshes claims it."""
    await add(stage, "a", due_in=3600)
    assert (await due(stage)).claims == []
    assert await _ask(asks, stage) is None
    assert [claim.connection_id for claim in (await due(stage)).claims] == ["a"]
    assert await _ask(asks, stage) is RefusalReason.SENDING


async def test_a_row_that_was_never_due_is(asks: PostgresAsks, stage: PostgresStage) -> None:
    """A token that does not expire has no time, until a caller cannot use it."""
    await add(stage, "a", due_in=None)
    assert await _ask(asks, stage) is None
    assert len((await due(stage)).claims) == 1


async def test_what_is_overdue_keeps_its_place(asks: PostgresAsks, stage: PostgresStage) -> None:
    """Asking moves nobody back in the queue."""
    await add(stage, "a", due_in=-60)
    before = (await stage.stored("a")).due_at
    assert await _ask(asks, stage) is None
    assert (await stage.stored("a")).due_at == before


async def test_a_backoff_holds_for_everybody(asks: PostgresAsks, stage: PostgresStage) -> None:
    """After a failure asking changes nothing, and says when the next try is."""
    await add(stage, "a")
    (claim,) = (await due(stage)).claims
    await settle(stage, failure(claim, stage, due_in=30))
    before = (await stage.stored("a")).due_at
    refusal = await asks.ask(_WANTED, now=stage.now())
    assert refusal is not None
    assert (refusal.reason, refusal.retry_at) == (RefusalReason.BACKING_OFF, before)
    assert (await stage.stored("a")).due_at == before


async def test_a_newer_generation_is_said(asks: PostgresAsks, stage: PostgresStage) -> None:
    """Nothing is marked where the asker has missed the news."""
    await add(stage, "a", due_in=3600, stored=tokens(stage, generation=2))
    assert await _ask(asks, stage) is RefusalReason.SUPERSEDED
    assert await _ask(asks, stage, replace(_WANTED, generation=2)) is None


async def test_what_nobody_can_refresh(asks: PostgresAsks, stage: PostgresStage) -> None:
    """Without a refresh token, disconnected, or not there at all."""
    await add(stage, "a", due_in=3600, stored=tokens(stage, refreshable=False))
    assert await _ask(asks, stage) is RefusalReason.NOT_REFRESHABLE
    await add(stage, "b", due_in=3600)
    await stage.disconnect("b")
    ended = replace(_WANTED, connection_id="b", generation=9)
    assert await _ask(asks, stage, ended) is RefusalReason.NOT_REFRESHABLE
    gone = replace(_WANTED, connection_id="c")
    assert await _ask(asks, stage, gone) is RefusalReason.UNKNOWN
