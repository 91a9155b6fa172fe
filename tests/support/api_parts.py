"""Providers, callers and scripted ports around the api listener."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import jmespath
from pydantic import SecretStr

from daemon.config.settings import Caller, Permission, Refresh, Settings
from daemon.domain.clock import SystemClock
from daemon.domain.connection import Connection, Failure
from daemon.domain.fields import Field
from daemon.domain.outcome import Granted, Outcome, OutcomeKind
from daemon.domain.provider import Endpoints, Provider, RequestValues, TestRequest
from daemon.domain.reply import RawReply
from daemon.domain.revocation import Initiator, RevocationResult
from daemon.domain.templates import parse_template, parse_url_template
from daemon.persistence.connections import PostgresConnections
from daemon.sidecar.access import unknown_connection

ACME = Provider(
    name="acme",
    client_id="our client",
    client_secrets=(SecretStr("client-secret-canary"),),
    issuer="https://auth.acme.example",
    endpoints=Endpoints(
        authorization="https://auth.acme.example/authorize",
        token="https://auth.acme.example/token",
    ),
    scopes=("read", "write:all"),
    rate=1000.0,
)
TENANTS = Provider(
    name="tenants",
    client_id="our client",
    client_secrets=(SecretStr("client-secret-canary"),),
    endpoints=Endpoints(
        authorization="https://{company}.tenants.example/authorize",
        token="https://{company}.tenants.example/token",
        revocation="https://{company}.tenants.example/revoke",
    ),
    scopes=("read",),
    rate=1000.0,
    fields={
        "company": Field(name="company", title="Company", help="As in the URL", required=True),
        "region": Field(name="region", title="Region", enum=("us", "eu"), default="us"),
    },
    api_base_url=parse_url_template("https://{company}.tenants.example/api"),
    allowed_hosts=("*.tenants.example",),
    test=TestRequest(path=parse_url_template("/me")),
    label=parse_template("{me.name}"),
    account_id=jmespath.compile("me.id"),
    request=RequestValues(
        headers={"X-Api-Key": parse_template("header-canary")},
        query={"key": parse_template("query-canary")},
        body={"key": parse_template("body-canary")},
    ),
)
ALL = frozenset(Permission)
KEYS = {name: f"{name}-key-canary" for name in ("admin", "reader", "tokens", "manager", "proxy")}


def caller(
    name: str, *, connections: tuple[str, ...], permissions: frozenset[Permission]
) -> Caller:
    """Return a caller with its key of ``KEYS``."""
    digest = hashlib.sha256(KEYS[name].encode()).digest()
    return Caller(name=name, key_sha256=digest, connections=connections, permissions=permissions)


CALLERS = (
    caller("admin", connections=("*",), permissions=ALL),
    caller("reader", connections=("acme-[0-9]*",), permissions=frozenset({Permission.READ})),
    caller("tokens", connections=("acme-*",), permissions=frozenset({Permission.TOKEN})),
    caller("manager", connections=("acme-*",), permissions=frozenset({Permission.MANAGE})),
    caller("proxy", connections=("acme-*",), permissions=frozenset({Permission.PROXY})),
)


SETTINGS = Settings(
    state_dir=Path("unused"),
    providers={"acme": ACME, "other": replace(ACME, name="other"), "tenants": TENANTS},
    return_urls=("https://app.example/*",),
    refresh=Refresh(request_timeout=timedelta(seconds=5)),
)


class ConfiguredEndpoints:
    """Port: ProviderResolver, where all endpoints are in the configuration."""

    async def resolve(self, provider: Provider) -> Provider:
        """Return the provider as it is."""
        return provider


class InstantSender:
    """Port: RefreshSender. Gives out ``outcomes`` first, then new tokens at once."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.outcomes: list[Outcome] = []

    async def refresh(
        self,
        provider: Provider,
        refresh_token: str,
        *,
        fields: Mapping[str, str],
        hard_timeout: float,
        send_by: float,
        received: Callable[[RawReply], Awaitable[None]],
    ) -> Outcome:
        """Answer."""
        del provider, fields, hard_timeout, send_by, received
        self.sent.append(refresh_token)
        if self.outcomes:
            return self.outcomes.pop(0)
        number = len(self.sent)
        return Outcome(
            kind=OutcomeKind.OK,
            granted=Granted(
                access_token=f"new-access-{number}",
                refresh_token=f"new-refresh-canary-{number}",
                expires_in=3600.0,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeReport:
    """How a test went."""

    checked_at: datetime
    ok: bool = True
    status: int | None = 200
    account_id: str | None = "account-7"
    label: str | None = "Ada Lovelace"
    error: Failure | None = None


class FakeTests:
    """Port: Tests. Sends nothing; gives ``report``, or a good one."""

    def __init__(self) -> None:
        self.tested: list[str] = []
        self.report: FakeReport | None = None

    async def test(self, connection: Connection) -> FakeReport:
        """Answer."""
        self.tested.append(connection.id)
        return self.report or FakeReport(checked_at=SystemClock().now())


class LocalDisconnecting:
    """Port: Disconnects. Erases in the real database and tells no provider."""

    def __init__(
        self, connections: PostgresConnections, forget: Callable[[Sequence[str]], Awaitable[None]]
    ) -> None:
        self._connections = connections
        self._forget = forget
        self.asked: list[tuple[str, Initiator, bool]] = []

    async def disconnect(
        self, connection: Connection, *, initiator: Initiator, purge: bool
    ) -> tuple[Connection, RevocationResult]:
        """Disconnect."""
        self.asked.append((connection.id, initiator, purge))
        done = await self._connections.disconnect(
            connection.id, initiator=initiator, now=SystemClock().now(), revoke=True, purge=purge
        )
        if done is None:
            raise unknown_connection(connection.id)
        await self._forget([connection.id])
        queued = RevocationResult.QUEUED if done.queued else RevocationResult.UNSUPPORTED
        return done.connection, queued
