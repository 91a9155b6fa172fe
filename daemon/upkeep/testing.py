"""[test] Connections are tested: because somebody asks, and because nothing else would tell.

The one hard idea: what a refused token means. One that can be refreshed gets a new one and a
second try; if that is refused too, the API may be wrong, and the connection stays as it is. One
that cannot be refreshed, or whose refresh is refused as well, has ended, before anybody's clock
said so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from daemon.domain.account import verdict
from daemon.domain.connection import Connection, Failure, TestResult
from daemon.domain.errors import DiscoveryError, FieldError, Problem, StorageError
from daemon.domain.provider import Provider, account_scope
from daemon.domain.revocation import Initiator, RevocationResult
from daemon.oauth.account import evaluate
from daemon.oauth.authorization import tenant_of
from daemon.oauth.examination import Examined, failed
from daemon.oauth.examiner import is_testable
from daemon.oauth.testing import next_test_at
from daemon.refresh.reading import Reading
from daemon.upkeep.testing_parts import Recorded, TestingParts

log = structlog.get_logger()

_BATCH = 50
_CONCURRENCY = 8
# The grant ended at the provider before its token expired.
TOKEN_REVOKED = "token_revoked"
_REAUTHORIZATION_REQUIRED = "reauthorization_required"


@dataclass(frozen=True, slots=True, kw_only=True)
class TestReport:
    """What is answered: the result, and whose connection it is as far as known."""

    __test__ = False  # not a test of ours

    ok: bool
    status: int | None
    account_id: str | None
    label: str | None
    checked_at: datetime
    error: Failure | None


class ConnectionTests:
    """Tests connections."""

    def __init__(self, parts: TestingParts) -> None:
        self._parts = parts

    async def test(self, connection: Connection) -> TestReport:
        """Call the provider's test request, with one refresh and one retry after a 401.

        What goes wrong with the test is in the report; what keeps it from being made is raised.

        Raises:
            Problem: 409 ``test_not_configured``, or what a token read is answered with.
            DatabaseUnavailableError: the result could not be stored.
        """
        provider = self._parts.providers.get(connection.provider)
        if provider is None:
            raise _not_configured(
                connection, f"The provider {connection.provider} is not in the configuration."
            )
        # First what a person must do: a connection without a token cannot be tested at all.
        reading = await self._read(connection)
        tenant = await self._tenant(connection, provider)
        if isinstance(tenant, Examined):
            return await self._record(connection, provider, tenant)
        examined = await self._examine(connection, tenant, reading)
        return await self._record(connection, provider, examined)

    async def run_due(self) -> None:
        """Test what is due, up to 50 connections, eight at a time; tells the log and nobody else.

        Never raises for what a provider or the database does.
        """
        parts = self._parts
        try:
            due = await parts.store.claim_tests(now=parts.clock.now(), limit=_BATCH)
        except StorageError:
            return
        places = asyncio.Semaphore(_CONCURRENCY)
        async with asyncio.TaskGroup() as running:
            for connection_id in due:
                running.create_task(self._test_quietly(connection_id, places))

    async def _test_quietly(self, connection_id: str, places: asyncio.Semaphore) -> None:
        async with places:
            try:
                connection = await self._parts.store.get(connection_id)
                if connection is not None:
                    await self.test(connection)
            except Problem as error:
                log.debug("connection_not_tested", connection=connection_id, code=error.code)
            except StorageError:
                # The database is away, or a token does not open: both are told elsewhere.
                log.debug("connection_not_tested", connection=connection_id, code="storage")

    async def _read(self, connection: Connection, *, newer_than: int | None = None) -> Reading:
        reading = await self._parts.reader.read(connection.id, newer_than=newer_than)
        if reading is None:
            raise Problem(404, "unknown_connection", "There is no such connection.")
        return reading

    async def _tenant(self, connection: Connection, provider: Provider) -> Provider | Examined:
        """Return the provider as it is for this connection, or why it cannot be asked."""
        now = self._parts.clock.now()
        try:
            tenant = tenant_of(provider, connection.fields)
            if tenant.test is None:
                tenant = await self._parts.resolver.resolve(tenant)
        except FieldError as error:
            return failed("value_missing", str(error), now=now)
        except DiscoveryError as error:
            return failed("provider_unavailable", str(error), now=now)
        if not is_testable(tenant):
            raise _not_configured(
                connection,
                f"The provider {provider.name} has neither a test request nor an introspection "
                "endpoint. Configure test.",
            )
        return tenant

    async def _examine(
        self, connection: Connection, tenant: Provider, reading: Reading
    ) -> Examined:
        examined = await self._ask(connection, tenant, reading)
        if not examined.is_refused:
            return examined
        if not reading.entry.refreshable:
            await self._end(connection, tenant, reading)
            return examined
        try:
            again = await self._read(connection, newer_than=reading.entry.generation)
        except Problem as error:
            # The refresh told what becomes of the connection; the test only that it is refused.
            if error.code == _REAUTHORIZATION_REQUIRED:
                await self._end(connection, tenant, reading)
            return _not_refreshed(examined, error)
        if again.entry.generation == reading.entry.generation:
            return examined
        return await self._ask(connection, tenant, again)

    async def _ask(self, connection: Connection, tenant: Provider, reading: Reading) -> Examined:
        _, access_token = reading.entry.token()
        examined = await self._parts.examiner.examine(
            tenant,
            access_token,
            fields=connection.fields,
            reply_values=connection.reply_values,
        )
        if examined is None:
            raise _not_configured(connection, "Nothing can be asked about its tokens.")
        return examined

    async def _end(self, connection: Connection, tenant: Provider, reading: Reading) -> None:
        """Say that a grant is over whose token is refused and cannot be replaced."""
        parts, now = self._parts, self._parts.clock.now()
        words = (
            "The provider refused the token before it expired, and there is no way to a new one: "
            "access was revoked there. A person must connect again."
        )
        is_dead = await parts.store.mark_dead(
            connection.id,
            generation=reading.entry.generation,
            failure=Failure(code=TOKEN_REVOKED, description=words, at=now),
            now=now,
        )
        if is_dead:
            if not reading.entry.refreshable:
                # A refresh that was refused has told so itself.
                parts.events.reauthorization_required(
                    connection.id, tenant.name, cause=TOKEN_REVOKED
                )
            parts.events.revocation_ended(
                connection.id,
                tenant.name,
                initiator=Initiator.PROVIDER,
                result=RevocationResult.DETECTED,
            )
            await parts.on_dead(connection.id)

    async def _record(
        self, connection: Connection, provider: Provider, examined: Examined
    ) -> TestReport:
        """Store the result and tell of it.

        Raises:
            Problem: 404 where the connection is gone.
        """
        parts, result = self._parts, examined.result
        account = replace(
            evaluate(
                provider,
                _documents(connection.fields, examined),
                scope=account_scope(provider, connection.fields),
                kept=connection.reply_values,
            ),
            test=result,
        )
        now = parts.clock.now()
        recorded = await parts.store.record_test(
            connection.id,
            account,
            now=now,
            next_test_at=next_test_at(
                provider.test, expires_at=connection.expires_at, now=now, chance=parts.chance()
            ),
        )
        if recorded is not None:
            result = verdict(account, recorded.connection.account_id) or result
        parts.events.connection_tested(
            connection.id,
            provider.name,
            ok=result.ok,
            status=result.status,
            code=None if result.error is None else result.error.code,
        )
        if recorded is None:
            raise Problem(404, "unknown_connection", "There is no such connection.")
        return report(result, recorded)


def report(result: TestResult, recorded: Recorded) -> TestReport:
    """Return what is answered. Pure.

    Another connection that has the account is not named: it may not be this caller's to know.
    """
    connection, error = recorded.connection, result.error
    if error is None and recorded.conflict is not None:
        error = Failure(
            code="account_connected_elsewhere",
            description=(
                "The token works, but its account belongs to another connection already, so this "
                "one keeps no account_id. Connect it again to join the two, or disconnect one."
            ),
            at=result.checked_at,
        )
    return TestReport(
        ok=error is None,
        status=result.status,
        account_id=connection.account_id,
        label=connection.label,
        checked_at=result.checked_at,
        error=error,
    )


def _documents(fields: Mapping[str, str], examined: Examined) -> dict[str, object]:
    """Return what is at hand: the token reply and the callback are long gone."""
    documents: dict[str, object] = {"fields": fields}
    if examined.has_me:
        documents["me"] = examined.me
    return documents


def _not_refreshed(examined: Examined, problem: Problem) -> Examined:
    """Return a refusal that says how the refresh ended."""
    error = examined.result.error
    if error is None:
        return examined
    words = f"{error.description} A refresh did not bring a new one: {problem.detail}"
    result = replace(examined.result, error=replace(error, description=words))
    return replace(examined, result=result)


def _not_configured(connection: Connection, why: str) -> Problem:
    return Problem(
        409,
        "test_not_configured",
        f"This connection cannot be tested. {why}",
        connection=connection.id,
    )
