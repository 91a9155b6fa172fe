"""What stays of metadata when its server is away, and which changes of it are taken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from daemon.catalog.discovery import Discovery
from daemon.catalog.metadata import metadata_urls
from daemon.domain.errors import DiscoveryError
from daemon.domain.provider import Endpoints, Provider
from daemon.domain.reply import Fault, NoReply, RawReply

ISSUER = "https://auth.acme.example"
DOCUMENT = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/authorize",
    "token_endpoint": f"{ISSUER}/token",
}
PROVIDER = Provider(name="acme", client_id="client", issuer=ISSUER)
DOWN = NoReply(sent=False, fault=Fault.CONNECT)


def reply(document: object, status: int = 200) -> RawReply:
    """Return a JSON document."""
    return RawReply(status=status, headers={}, body=json.dumps(document).encode())


GOOD = reply(DOCUMENT)
NOT_FOUND = reply({}, 404)


class FakeClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def now(self) -> datetime:
        """Return a fixed time."""
        return datetime(2026, 11, 21, tzinfo=UTC)

    def boottime(self) -> float:
        """Return the time it was set to."""
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        """Move on at once."""
        self.seconds += seconds


@dataclass
class FakeSession:
    """Publishes documents by URL; ``otherwise`` is the answer for all others."""

    otherwise: RawReply | NoReply = GOOD
    published: dict[str, RawReply | NoReply] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    gate: asyncio.Event | None = None

    async def get(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        hard_timeout: float,
    ) -> RawReply | NoReply:
        """Record the request and return what is published, once the gate is open."""
        assert headers == {"Accept": "application/json"}
        assert hard_timeout > 0
        self.asked.append(url)
        if self.gate is not None:
            await self.gate.wait()
        return self.published.get(url, self.otherwise)


def discovery(session: FakeSession, clock: FakeClock | None = None) -> Discovery:
    """Return a discovery that knows nothing yet."""
    return Discovery(session=session, clock=clock or FakeClock())


async def test_endpoints_are_filled_in_once() -> None:
    """The first caller fetches, later ones are answered from memory."""
    session = FakeSession()
    catalog = discovery(session)
    filled = Endpoints(authorization=f"{ISSUER}/authorize", token=f"{ISSUER}/token")
    for _ in range(3):
        assert (await catalog.resolve(PROVIDER)).endpoints == filled
    assert len(session.asked) == 1


async def test_what_is_configured_wins() -> None:
    """A configured endpoint stays, a discovered one fills only the gap."""
    provider = replace(PROVIDER, endpoints=Endpoints(token="https://own.example/token"))
    resolved = await discovery(FakeSession()).resolve(provider)
    assert resolved.endpoints == Endpoints(
        authorization=f"{ISSUER}/authorize", token="https://own.example/token"
    )


async def test_nobody_is_asked_where_nothing_is_open() -> None:
    """A provider with both endpoints configured needs no metadata, with or without issuer."""
    session = FakeSession()
    endpoints = Endpoints(authorization="https://a.example/a", token="https://a.example/t")
    for issuer in (None, ISSUER):
        provider = replace(PROVIDER, issuer=issuer, endpoints=endpoints)
        assert await discovery(session).resolve(provider) == provider
    assert session.asked == []


@pytest.mark.parametrize("configured", [False, True])
@pytest.mark.parametrize("promised", [False, True])
async def test_a_promised_iss_is_required(*, configured: bool, promised: bool) -> None:
    """RFC 9207: what the metadata promises, the callback will insist on."""
    document = DOCUMENT | {"authorization_response_iss_parameter_supported": promised}
    provider = replace(PROVIDER, requires_iss=configured)
    resolved = await discovery(FakeSession(otherwise=reply(document))).resolve(provider)
    assert resolved.requires_iss is (configured or promised)


async def test_the_other_well_known_names_are_tried() -> None:
    """A server that publishes only OpenID's document is found."""
    url = metadata_urls(ISSUER)[-1]
    session = FakeSession(otherwise=NOT_FOUND, published={url: GOOD})
    assert (await discovery(session).resolve(PROVIDER)).endpoints.token == f"{ISSUER}/token"
    assert session.asked == list(metadata_urls(ISSUER))


@pytest.mark.parametrize(
    "answer", [NOT_FOUND, reply({}), reply(DOCUMENT, 302), reply({"issuer": "x"}), DOWN]
)
async def test_no_usable_metadata(answer: RawReply | NoReply) -> None:
    """Where nothing can be used, the error names the provider, the URLs, and what to do."""
    with pytest.raises(DiscoveryError) as failure:
        await discovery(FakeSession(otherwise=answer)).resolve(PROVIDER)
    assert "acme" in str(failure.value)
    assert metadata_urls(ISSUER)[0] in str(failure.value)
    assert "token_endpoint" in str(failure.value)


async def test_a_host_that_does_not_answer_is_asked_once() -> None:
    """All well-known names are on one host: after no reply the others are left alone."""
    session = FakeSession(otherwise=DOWN)
    with pytest.raises(DiscoveryError):
        await discovery(session).resolve(PROVIDER)
    assert len(session.asked) == 1


async def test_nothing_to_discover_from() -> None:
    """Without issuer and endpoints, the error says what to configure."""
    provider = replace(PROVIDER, issuer=None)
    with pytest.raises(DiscoveryError, match="authorization_endpoint"):
        await discovery(FakeSession()).resolve(provider)
    with pytest.raises(DiscoveryError, match="token_endpoint"):
        await discovery(FakeSession()).refresh_endpoint(provider)


async def test_metadata_without_authorization_endpoint() -> None:
    """A document that names only the token endpoint serves refreshes, not connecting."""
    document = {key: DOCUMENT[key] for key in ("issuer", "token_endpoint")}
    catalog = discovery(FakeSession(otherwise=reply(document)))
    with pytest.raises(DiscoveryError, match="authorization_endpoint"):
        await catalog.resolve(PROVIDER)
    assert await catalog.refresh_endpoint(PROVIDER) == f"{ISSUER}/token"


@pytest.mark.parametrize(
    ("endpoints", "url"),
    [
        (Endpoints(token="https://a.example/t"), "https://a.example/t"),
        (
            Endpoints(token="https://a.example/t", refresh="https://a.example/r"),
            "https://a.example/r",
        ),
        (Endpoints(refresh="https://a.example/r"), "https://a.example/r"),
    ],
)
async def test_a_configured_refresh_endpoint_needs_nobody(endpoints: Endpoints, url: str) -> None:
    """C2: a metadata outage does not touch a refresh whose endpoint is configured."""
    session = FakeSession(otherwise=DOWN)
    provider = replace(PROVIDER, endpoints=endpoints)
    assert await discovery(session).refresh_endpoint(provider) == url
    assert session.asked == []


async def test_an_outage_changes_nothing_that_is_known() -> None:
    """C2: once read, the endpoints stay good; the outage is told."""
    session = FakeSession()
    catalog = discovery(session)
    await catalog.resolve(PROVIDER)
    for answer in (DOWN, NOT_FOUND, reply(DOCUMENT | {"issuer": "https://evil.example"})):
        session.otherwise = answer
        assert list(await catalog.refresh()) == [ISSUER]
        assert await catalog.refresh_endpoint(PROVIDER) == f"{ISSUER}/token"


async def test_a_new_path_is_taken() -> None:
    """A refresh takes over a changed document on the same host."""
    session = FakeSession()
    catalog = discovery(session)
    await catalog.resolve(PROVIDER)
    session.otherwise = reply(DOCUMENT | {"token_endpoint": f"{ISSUER}/v2/token"})
    assert await catalog.refresh() == {}
    assert await catalog.refresh_endpoint(PROVIDER) == f"{ISSUER}/v2/token"


@pytest.mark.parametrize("name", ["token_endpoint", "authorization_endpoint"])
async def test_a_new_host_is_not_taken(name: str) -> None:
    """C2: an endpoint on another host waits for a person."""
    session = FakeSession()
    catalog = discovery(session)
    before = await catalog.resolve(PROVIDER)
    session.otherwise = reply(DOCUMENT | {name: "https://evil.example/x"})
    assert "another host" in str((await catalog.refresh())[ISSUER])
    assert await catalog.resolve(PROVIDER) == before


async def test_callers_share_one_fetch() -> None:
    """Many callers at once bring one request."""
    session = FakeSession(gate=asyncio.Event())
    catalog = discovery(session)
    callers = [asyncio.create_task(catalog.resolve(PROVIDER)) for _ in range(10)]
    await asyncio.sleep(0)
    assert session.gate is not None
    session.gate.set()
    assert len({resolved.endpoints for resolved in await asyncio.gather(*callers)}) == 1
    assert len(session.asked) == 1


async def test_callers_share_one_failure() -> None:
    """A dead server is not asked by each waiting caller, and is asked again after a while."""
    session, clock = FakeSession(otherwise=DOWN), FakeClock()
    catalog = discovery(session, clock)
    for _ in range(10):
        with pytest.raises(DiscoveryError):
            await catalog.resolve(PROVIDER)
    assert len(session.asked) == 1
    session.otherwise = GOOD
    clock.seconds += 11.0
    assert (await catalog.resolve(PROVIDER)).endpoints.token == f"{ISSUER}/token"


async def test_a_cancelled_caller_leaves_the_fetch_to_the_next() -> None:
    """Who goes away does not take the others along."""
    session = FakeSession(gate=asyncio.Event())
    catalog = discovery(session)
    first = asyncio.create_task(catalog.resolve(PROVIDER))
    second = asyncio.create_task(catalog.resolve(PROVIDER))
    await asyncio.sleep(0)
    first.cancel()
    assert session.gate is not None
    session.gate.set()
    assert (await second).endpoints.token == f"{ISSUER}/token"
    with pytest.raises(asyncio.CancelledError):
        await first


WITH_REVOCATION = DOCUMENT | {"revocation_endpoint": f"{ISSUER}/revoke"}


async def test_where_tokens_are_revoked_is_discovered() -> None:
    """The metadata fills what the configuration leaves open, and only that."""
    document = WITH_REVOCATION | {"introspection_endpoint": f"{ISSUER}/introspect"}
    catalog = discovery(FakeSession(otherwise=reply(document)))
    assert await catalog.revocation_endpoint(PROVIDER) == f"{ISSUER}/revoke"
    own = replace(PROVIDER, endpoints=Endpoints(introspection="https://own.example/i"))
    resolved = await catalog.resolve(own)
    assert resolved.endpoints.revocation == f"{ISSUER}/revoke"
    assert resolved.endpoints.introspection == "https://own.example/i"


async def test_a_configured_revocation_endpoint_needs_nobody() -> None:
    """An outage of the metadata does not stop a revocation whose endpoint is configured."""
    session = FakeSession(otherwise=DOWN)
    provider = replace(PROVIDER, endpoints=Endpoints(revocation="https://a.example/r"))
    assert await discovery(session).revocation_endpoint(provider) == "https://a.example/r"
    assert session.asked == []


async def test_no_revocation_endpoint() -> None:
    """A provider without one is told apart from one whose metadata cannot be read."""
    catalog = discovery(FakeSession())
    assert await catalog.revocation_endpoint(PROVIDER) is None
    assert await catalog.revocation_endpoint(replace(PROVIDER, issuer=None)) is None
    with pytest.raises(DiscoveryError):
        await discovery(FakeSession(otherwise=DOWN)).revocation_endpoint(PROVIDER)


@pytest.mark.parametrize(
    ("before", "after", "taken"),
    [
        (DOCUMENT, WITH_REVOCATION, True),
        (DOCUMENT, DOCUMENT | {"revocation_endpoint": "https://evil.example/r"}, False),
        (WITH_REVOCATION, DOCUMENT, False),
        (WITH_REVOCATION, WITH_REVOCATION | {"revocation_endpoint": f"{ISSUER}/v2"}, True),
        (
            WITH_REVOCATION,
            WITH_REVOCATION | {"revocation_endpoint": "https://evil.example/r"},
            False,
        ),
    ],
)
async def test_which_changes_are_taken(
    *, before: dict[str, object], after: dict[str, object], taken: bool
) -> None:
    """C2: an endpoint may appear at a known host; it neither moves to another nor vanishes."""
    session = FakeSession(otherwise=reply(before))
    catalog = discovery(session)
    await catalog.resolve(PROVIDER)
    session.otherwise = reply(after)
    assert (await catalog.refresh() == {}) is taken
    expected = (after if taken else before).get("revocation_endpoint")
    assert await catalog.revocation_endpoint(PROVIDER) == expected


async def test_an_issuer_with_a_field_in_it_is_not_asked_for() -> None:
    """Only a connection's provider, with its fields filled in, has metadata."""
    session = FakeSession()
    provider = replace(PROVIDER, issuer="https://{region}.acme.example")
    with pytest.raises(DiscoveryError, match="connection"):
        await discovery(session).resolve(provider)
    assert session.asked == []


async def test_the_documents_of_many_tenants_are_bounded() -> None:
    """The tenant that was not used for longest is forgotten, and found again when wanted."""

    @dataclass
    class Tenants(FakeSession):
        async def get(
            self, url: str, headers: Mapping[str, str], *, hard_timeout: float
        ) -> RawReply | NoReply:
            issuer = url.partition("/.well-known")[0]
            self.otherwise = reply({"issuer": issuer, "token_endpoint": f"{issuer}/token"})
            return await super().get(url, headers, hard_timeout=hard_timeout)

    session = Tenants()
    catalog = discovery(session)

    async def ask(number: int) -> None:
        issuer = f"https://t{number}.acme.example"
        assert await catalog.refresh_endpoint(replace(PROVIDER, issuer=issuer)) == f"{issuer}/token"

    for number in (*range(500), 0, 500):
        await ask(number)
    assert len(session.asked) == 501
    await ask(0)
    assert len(session.asked) == 501
    await ask(1)
    assert len(session.asked) == 502
