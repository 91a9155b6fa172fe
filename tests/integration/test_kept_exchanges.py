"""A code was exchanged, then the process died: its kept reply is judged as at the callback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import jmespath
import pytest

from daemon.domain.account import Account
from daemon.domain.connection import Connection, TestResult
from daemon.domain.provider import TestRequest
from daemon.domain.templates import parse_template, parse_url_template
from daemon.oauth.examination import Examined
from daemon.persistence.cipher import TokenCipher
from tests.support.authorization import START, ScriptedExaminer
from tests.support.refreshing_replica import RefreshingReplica, running, strict_provider
from tests.support.strict_server import StrictServer

ANNA = Account(account_id="17", label="Anna")


class Crashed:
    """A replica with a connection of account 17, whose process died in a reconnect."""

    def __init__(self, url: str, state: Path, cipher: TokenCipher, server: StrictServer) -> None:
        self._url = url
        self._state = state
        self._cipher = cipher
        self.server = server
        self.examiner = ScriptedExaminer()
        self._provider = replace(
            strict_provider(server),
            account_id=jmespath.compile("me.id"),
            label=parse_template("{me.name}"),
            test=TestRequest(path=parse_url_template("/me")),
        )

    def says(self, status: int, me: object) -> None:
        """Let the provider's API answer so."""
        result = TestResult(ok=status == 200, status=status, checked_at=START)
        self.examiner.examined = Examined(result=result, me=me, has_me=me is not None)

    def running(self) -> AbstractAsyncContextManager[RefreshingReplica]:
        """Start it anew."""
        return running(self._url, self._state, self._cipher, self._provider, examiner=self.examiner)

    async def die(self) -> None:
        """Connect, come back, and die between the reply and its storing."""
        async with self.running() as here:
            await here.add("a", self.server.grant())
            await here.reconnect(
                "a", self.server.grant(), later=-timedelta(minutes=5), account=ANNA
            )
            await here.keep_exchange("a", self.server.grant())


@pytest.fixture
async def crashed(migrated_url: str, tmp_path: Path, cipher: TokenCipher) -> AsyncIterator[Crashed]:
    """The replica, down."""
    async with StrictServer() as server:
        site = Crashed(migrated_url, tmp_path, cipher, server)
        await site.die()
        yield site


async def _is_kept(here: RefreshingReplica) -> bool:
    return len(here.journal) > 0


async def _connection(here: RefreshingReplica) -> Connection:
    found = await here.connections.get("a")
    assert found is not None
    return found


async def test_the_same_account_is_stored_with_what_the_test_says(crashed: Crashed) -> None:
    """The new grant is served, and what it replaced is to be revoked."""
    crashed.says(200, {"id": 17, "name": "Anna Neu"})
    async with crashed.running() as here:
        found = await _connection(here)
        assert (found.generation, found.account_id, found.label) == (3, "17", "Anna Neu")
        assert found.last_test is not None
        assert crashed.server.is_good((await here.stored("a"))[1])
        assert not await _is_kept(here)
        assert await here.database.fetchval("SELECT count(*) FROM revocations") > 0


@pytest.mark.parametrize(
    ("status", "me", "code"),
    [(200, {"id": 18, "name": "Berta"}, "other_account"), (200, {}, "account_unknown")],
)
async def test_somebody_else_is_refused_after_the_crash_as_before(
    crashed: Crashed, status: int, me: object, code: str
) -> None:
    """The connection stays whose it was; the stranger's tokens are to be revoked, for good."""
    crashed.says(status, me)
    for _ in range(2):
        async with crashed.running() as here:
            found = await _connection(here)
            assert (found.generation, found.account_id, found.label) == (2, "17", "Anna")
            assert not await _is_kept(here)
            told = await here.database.fetchval(
                "SELECT detail->>'code' FROM events WHERE type = 'connection.authorization_failed'"
            )
            assert told == code
            assert await here.database.fetchval("SELECT count(*) FROM revocations") == 2
    assert len(crashed.examiner.asked) == 1


async def test_an_api_that_is_broken_costs_no_token(crashed: Crashed) -> None:
    """Nobody said that it is somebody else: it is stored, and asked about again soon."""
    crashed.says(503, None)
    async with crashed.running() as here:
        found = await _connection(here)
        assert (found.generation, found.account_id) == (3, "17")
        due = await here.database.fetchval("SELECT test_due_at FROM connections")
        assert due - here.clock.now() < timedelta(minutes=3)


async def test_a_refresh_that_ended_meanwhile_supersedes_no_reconnect(crashed: Crashed) -> None:
    """Another replica has refreshed the old grant since: the person's new one is stored."""
    crashed.says(200, {"id": 17, "name": "Anna"})
    async with crashed.running() as here:
        pass
    async with crashed.running() as here:
        await here.database.execute("UPDATE token_sets SET granted_at = now() - interval '1 hour'")
        kept = await here.keep_exchange("a", crashed.server.grant())
        await here.refresh("a")
        assert (await _connection(here)).generation == kept.generation + 1
    async with crashed.running() as here:
        found = await _connection(here)
        assert found.generation == kept.generation + 2
        token = (await here.stored("a"))[1]
        assert token in kept.reply.body.decode()
        assert not await _is_kept(here)
