"""Where a connection's refresh token goes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import pytest

from daemon.catalog.discovery import Discovery
from daemon.domain.outcome import FailureReason, OutcomeKind
from daemon.domain.provider import Endpoints, Provider
from daemon.domain.reply import Fault, NoReply, RawReply
from daemon.oauth.token_endpoint import TokenEndpoint
from daemon.refresh.sending import RefreshRequests
from tests.support.clock import FakeClock

TENANTS = Provider(
    name="acme",
    client_id="us",
    endpoints=Endpoints(token="https://{region}.acme.example/token"),
)


class Nobody:
    """A session that answers nothing, and remembers where it was sent."""

    def __init__(self) -> None:
        self.urls: list[str] = []

    async def post(self, url: str, *_: object, **__: object) -> NoReply:
        """Say nothing."""
        self.urls.append(url)
        return NoReply(sent=False, fault=Fault.CONNECT)

    async def get(self, url: str, *_: object, **__: object) -> NoReply:
        """Say nothing."""
        self.urls.append(url)
        return NoReply(sent=False, fault=Fault.CONNECT)


class Sent:
    """The requests of one test."""

    def __init__(self) -> None:
        clock = FakeClock()
        self.session = Nobody()
        self.in_flight: list[str] = []
        self.requests = RefreshRequests(
            TokenEndpoint(session=self.session, clock=clock),
            Discovery(session=self.session, clock=clock),
            in_flight=self._in_flight,
        )

    def _in_flight(self, provider: str) -> AbstractContextManager[None]:
        self.in_flight.append(provider)
        return nullcontext()


async def ignore(_: RawReply) -> None:
    """Keep nothing."""


IGNORE: Callable[[RawReply], Awaitable[None]] = ignore


@pytest.mark.parametrize(
    ("endpoints", "url"),
    [
        (TENANTS.endpoints, "https://us.acme.example/token"),
        (
            replace(TENANTS.endpoints, refresh="https://acme.example/{region}/again"),
            "https://acme.example/us/again",
        ),
    ],
)
async def test_a_token_goes_to_its_connections_tenant(endpoints: Endpoints, url: str) -> None:
    """The connection's fields are part of the URL; the count in flight is the provider's."""
    sent = Sent()
    outcome = await sent.requests.refresh(
        replace(TENANTS, endpoints=endpoints),
        "refresh-canary",
        fields={"region": "us"},
        hard_timeout=1.0,
        send_by=1e9,
        received=IGNORE,
    )
    assert sent.session.urls == [url]
    assert sent.in_flight == ["acme"]
    assert outcome.kind is OutcomeKind.NOT_SENT


async def test_a_tenant_that_cannot_be_found() -> None:
    """Where the endpoint has to be discovered and is not, nothing was sent."""
    sent = Sent()
    outcome = await sent.requests.refresh(
        Provider(name="acme", client_id="us", issuer="https://{region}.acme.example"),
        "refresh-canary",
        fields={"region": "us"},
        hard_timeout=1.0,
        send_by=1e9,
        received=IGNORE,
    )
    assert {url.split("/.well-known")[0] for url in sent.session.urls} == {
        "https://us.acme.example"
    }
    assert (outcome.kind, outcome.reason) == (OutcomeKind.NOT_SENT, FailureReason.NETWORK)


@pytest.mark.parametrize("fields", [{}, {"region": ""}, {"region": "evil.example/"}])
async def test_without_its_field_nothing_is_sent(fields: dict[str, str]) -> None:
    """It is neither the provider's fault nor the end of the grant, and says which field it is."""
    sent = Sent()
    outcome = await sent.requests.refresh(
        TENANTS, "refresh-canary", fields=fields, hard_timeout=1.0, send_by=1e9, received=IGNORE
    )
    assert sent.session.urls == []
    assert (outcome.kind, outcome.reason) == (OutcomeKind.NOT_SENT, FailureReason.OTHER)
    assert outcome.error == "field_missing"
    assert "the field region" in outcome.description
    assert "evil" not in outcome.description
