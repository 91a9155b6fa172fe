"""Discovery over real sockets: where the documents lie, and servers that are away."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from daemon.catalog.discovery import Discovery
from daemon.domain.clock import SystemClock
from daemon.domain.errors import DiscoveryError
from daemon.domain.provider import Provider
from daemon.oauth.outbound import Outbound
from tests.support.raw_server import RawServer, replies


class Publisher:
    """A server that publishes one document at one path."""

    def __init__(self) -> None:
        self.path = ""
        self.document: dict[str, object] = {}
        self.asked: list[str] = []
        self.port = 0

    @property
    def origin(self) -> str:
        """Return scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    def publish(self, path: str, issuer: str) -> Provider:
        """Publish metadata of ``issuer`` at ``path``; return a provider that trusts the issuer."""
        self.path = path
        self.document = {
            "issuer": issuer,
            "authorization_endpoint": f"{self.origin}/authorize",
            "token_endpoint": f"{self.origin}/token",
            "authorization_response_iss_parameter_supported": True,
        }
        return Provider(name="acme", client_id="client", issuer=issuer)

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Answer with the document, or 404."""
        self.asked.append(request.path_qs)
        if request.path_qs != self.path:
            raise web.HTTPNotFound
        return web.json_response(self.document)


@pytest.fixture
async def publisher() -> AsyncIterator[Publisher]:
    """Return a server that has published nothing yet."""
    publisher = Publisher()
    runner = web.ServerRunner(web.Server(publisher.answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    publisher.port = runner.addresses[0][1]
    yield publisher
    await runner.cleanup()


@pytest.fixture
async def discovery() -> AsyncIterator[Discovery]:
    """Return a discovery on real sockets."""
    async with Outbound() as session:
        yield Discovery(session=session, clock=SystemClock())


@pytest.mark.parametrize(
    ("issuer_path", "path"),
    [
        ("", "/.well-known/oauth-authorization-server"),
        ("", "/.well-known/openid-configuration"),
        ("/", "/.well-known/openid-configuration"),
        ("/tenant", "/.well-known/oauth-authorization-server/tenant"),
        ("/tenant", "/tenant/.well-known/openid-configuration"),
        ("/tenant", "/.well-known/openid-configuration/tenant"),
    ],
)
async def test_documents_are_found(
    publisher: Publisher, discovery: Discovery, issuer_path: str, path: str
) -> None:
    """RFC 8414 and OpenID: wherever the document lies, its endpoints are used."""
    resolved = await discovery.resolve(publisher.publish(path, publisher.origin + issuer_path))
    assert resolved.endpoints.token == f"{publisher.origin}/token"
    assert resolved.endpoints.authorization == f"{publisher.origin}/authorize"
    assert resolved.requires_iss


async def test_another_issuers_document_is_refused(
    publisher: Publisher, discovery: Discovery
) -> None:
    """C1: a document that speaks for somebody else does not count."""
    provider = publisher.publish("/.well-known/openid-configuration", publisher.origin)
    publisher.document["issuer"] = f"{publisher.origin}/"
    with pytest.raises(DiscoveryError, match="issuer"):
        await discovery.resolve(provider)


async def test_a_redirect_is_no_document(discovery: Discovery) -> None:
    """Metadata is read where the issuer says it is, or not at all."""
    async with RawServer(replies(b"{}")) as elsewhere:
        moved = replies(b"", f"Location: {elsewhere.url()}", status="302 Found")
        async with RawServer(moved) as server:
            provider = Provider(name="acme", client_id="client", issuer=server.url(""))
            with pytest.raises(DiscoveryError, match="302"):
                await discovery.resolve(provider)
    assert elsewhere.connections == 0


async def test_what_is_known_outlives_its_server(discovery: Discovery) -> None:
    """C2: with the server gone, the endpoints stay, and the outage is told."""
    async with RawServer(replies(b"{}")) as server:
        issuer = server.url("")
        document = {"issuer": issuer, "token_endpoint": f"{issuer}/token"}
        server.answer = replies(json.dumps(document).encode())
        provider = Provider(name="acme", client_id="client", issuer=issuer)
        assert await discovery.refresh_endpoint(provider) == f"{issuer}/token"
    assert list(await discovery.refresh()) == [issuer]
    assert await discovery.refresh_endpoint(provider) == f"{issuer}/token"
