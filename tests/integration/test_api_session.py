"""Whole requests to APIs: addresses, redirects, cookies and limits."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from daemon.domain.reply import Fault, NoReply, RawReply
from daemon.oauth.api_session import ApiRequest, ApiSession
from tests.support.raw_server import RawServer, certificates, replies, writes, writes_then_waits


def request(url: str, *, allow_private_hosts: bool = True, body: bytes = b"") -> ApiRequest:
    """Return a request with a token."""
    return ApiRequest(
        method="POST" if body else "GET",
        url=url,
        headers={"Authorization": "Bearer secret"},
        body=body,
        allow_private_hosts=allow_private_hosts,
    )


async def test_a_whole_reply() -> None:
    """Status, headers and body come back; no cookie is sent the next time."""
    async with RawServer(replies(b"{}", "Set-Cookie: a=1")) as api, ApiSession() as session:
        for _ in range(2):
            found = await session.send(request(api.url("/me?x=%20"), body=b"b"), hard_timeout=5)
            assert isinstance(found, RawReply)
            assert (found.status, found.body) == (200, b"{}")
        assert [seen.target for seen in api.seen] == ["/me?x=%20"] * 2
        assert all("cookie" not in seen.headers for seen in api.seen)
        assert api.seen[0].body == b"b"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_private_address_is_not_reached(host: str) -> None:
    """Literals and names alike: refused at the connect, nothing sent, and said so."""
    async with RawServer(replies(b"{}")) as api, ApiSession() as session:
        url = api.url("/", host=host)
        found = await session.send(request(url, allow_private_hosts=False), hard_timeout=5)
        assert found == NoReply(sent=False, fault=Fault.ADDRESS)
        assert api.connections == 0


async def test_a_connection_for_private_hosts_is_not_lent() -> None:
    """A kept connection to a private address serves only providers that may reach it."""
    async with RawServer(replies(b"{}", "Connection: keep-alive")) as api, ApiSession() as session:
        url = api.url("/")
        async with session.streaming(allow_private_hosts=True).get(url) as response:
            assert response.status == 200
        with pytest.raises(OSError, match="Cannot connect"):
            await session.streaming(allow_private_hosts=False).get(url)


async def test_a_redirect_is_a_reply() -> None:
    """A 3xx is not followed."""
    answer = replies(b"", "Location: /elsewhere", status="302 Found")
    async with RawServer(answer) as api, ApiSession() as session:
        found = await session.send(request(api.url("/")), hard_timeout=5)
        assert isinstance(found, RawReply)
        assert found.status == 302
        assert api.connections == 1


async def test_faults() -> None:
    """Silence, an early end and a body beyond 1 MiB are told apart."""
    big = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (1024 * 1024 + 1)
    for answer, timeout, fault in (
        (writes_then_waits(b""), 0.2, Fault.TIMEOUT),
        (writes(b""), 5.0, Fault.DISCONNECTED),
        (writes(big), 5.0, Fault.OVERSIZE),
    ):
        async with RawServer(answer) as api, ApiSession() as session:
            found = await session.send(request(api.url("/")), hard_timeout=timeout)
            assert found == NoReply(sent=True, fault=fault)


async def test_certificates_are_verified(tmp_path: Path) -> None:
    """A server that nobody vouches for gets nothing; a context that does not verify is refused."""
    made = certificates(str(tmp_path), host="127.0.0.1")
    async with RawServer(replies(b"{}"), tls=made.server) as api:
        async with ApiSession() as session:
            found = await session.send(request(api.url("/")), hard_timeout=5)
            assert found == NoReply(sent=False, fault=Fault.CERTIFICATE)
        async with ApiSession(ssl_context=made.client) as session:
            assert isinstance(await session.send(request(api.url("/")), hard_timeout=5), RawReply)
    with pytest.raises(ValueError, match="must verify"):
        ApiSession(ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
