"""The token endpoint against servers that misbehave, over real sockets and real TLS.

What decides between "not sent" and "in doubt" is the connector: so nothing here replaces it.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import json
import resource
import socket
import ssl
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop
from pydantic import SecretStr

from daemon.domain.clock import SystemClock
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.domain.reply import Fault, NoReply, RawReply
from daemon.oauth.outbound import MAX_BODY, Outbound
from daemon.oauth.token_endpoint import TokenEndpoint
from daemon.oauth.token_request import Refresh
from tests.support.raw_server import (
    Answer,
    Certificates,
    RawServer,
    certificates,
    repeats,
    replies,
    writes,
    writes_then_resets,
    writes_then_waits,
)

PROVIDER = Provider(name="acme", client_id="client", client_secrets=(SecretStr("canary-secret"),))
REFRESH = Refresh(refresh_token="canary-rt")
GRANTED = b'{"access_token": "at-1", "token_type": "Bearer", "expires_in": 60}'
HEAD = b"HTTP/1.1 200 OK\r\n"
# Long enough for anything on loopback that ends by itself, and no test waits for it.
AMPLE = 20.0
SHORT = 0.2


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    """Return a session that trusts what the machine trusts."""
    async with Outbound() as session:
        yield session


async def post(outbound: Outbound, url: str, *, hard_timeout: float = AMPLE) -> RawReply | NoReply:
    """Send a small form."""
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept-Encoding": "identity"}
    return await outbound.post(url, headers, b"refresh_token=canary-rt", hard_timeout=hard_timeout)


async def ask(
    outbound: Outbound, url: str, *, provider: Provider = PROVIDER, hard_timeout: float = AMPLE
) -> Outcome:
    """Refresh at ``url``."""
    endpoint = TokenEndpoint(session=outbound, clock=SystemClock())
    return await endpoint.request(provider, url, REFRESH, hard_timeout=hard_timeout)


async def test_a_refresh(outbound: Outbound) -> None:
    """A request arrives as the standard says, and its reply is granted."""
    async with RawServer(replies(GRANTED, "Content-Type: application/json")) as server:
        outcome = await ask(outbound, server.url("/token?tenant=a%2Fb&x=%20"))
    assert outcome.kind is OutcomeKind.OK
    [seen] = server.seen
    assert (seen.method, seen.target) == ("POST", "/token?tenant=a%2Fb&x=%20")
    assert seen.body == b"grant_type=refresh_token&refresh_token=canary-rt"
    assert seen.headers["connection"] == "close"
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["content-type"] == "application/x-www-form-urlencoded"
    assert seen.headers["user-agent"].startswith("tokenward/")
    assert "cookie" not in seen.headers


async def test_each_request_has_its_own_connection_and_no_cookies(outbound: Outbound) -> None:
    """Nothing of one request is carried to the next: no connection, no cookie."""
    answer = replies(GRANTED, "Set-Cookie: session=1", "Connection: keep-alive")
    async with RawServer(answer) as server:
        for _ in range(2):
            assert (await ask(outbound, server.url())).kind is OutcomeKind.OK
    assert server.connections == 2
    assert all("cookie" not in seen.headers for seen in server.seen)


async def test_the_environment_has_no_say(
    outbound: Outbound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a proxy nor a netrc of the environment touches a token request."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login wrong password wrong\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with RawServer(replies(GRANTED)) as server:
        assert isinstance(await post(outbound, server.url()), RawReply)
    assert "authorization" not in server.seen[0].headers


async def test_the_next_client_secret_is_tried(outbound: Outbound) -> None:
    """A definite invalid_client brings the next secret of the list."""
    provider = replace(PROVIDER, client_secrets=(SecretStr("a"), SecretStr("b")))
    async with RawServer(replies(b'{"error": "invalid_client"}', status="401 No")) as server:
        outcome = await ask(outbound, server.url(), provider=provider)
    assert outcome.kind is OutcomeKind.MISCONFIGURED
    assert len({seen.headers["authorization"] for seen in server.seen}) == 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_never_followed(outbound: Outbound, status: int) -> None:
    """T25: neither secret nor token reaches where a redirect points."""
    async with RawServer(replies(GRANTED)) as elsewhere:
        moved = replies(b"", f"Location: {elsewhere.url()}", status=f"{status} Moved")
        async with RawServer(moved) as server:
            outcome = await ask(outbound, server.url())
    assert outcome.kind is OutcomeKind.IN_DOUBT
    assert elsewhere.connections == 0


@pytest.mark.parametrize(
    "answer",
    [
        # T23
        pytest.param(writes_then_resets(b""), id="reset after the request"),
        pytest.param(writes(b""), id="closed after the request"),
        pytest.param(writes_then_resets(b"HTTP/1.1 20"), id="reset in the status line"),
        pytest.param(
            writes_then_resets(HEAD + b"Content-Length: 66\r\n\r\n{"), id="reset in the body"
        ),
        pytest.param(
            writes(HEAD + b"Content-Length: 1000\r\n\r\n" + GRANTED), id="shorter than told"
        ),
        pytest.param(writes(HEAD + b"Content-Length: 20\r\n\r\n" + GRANTED), id="longer than told"),
        pytest.param(
            writes(HEAD + b"Transfer-Encoding: chunked\r\n\r\n42\r\n" + GRANTED),
            id="chunks without end",
        ),
        pytest.param(
            writes(HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"), id="nonsense chunk"
        ),
        pytest.param(writes(HEAD + b"\r\n" + GRANTED[:-1]), id="close-delimited and cut"),
        pytest.param(
            writes(HEAD + b"\r\naccess_token=at-1&refresh_token=rt"), id="close-delimited form"
        ),
        pytest.param(
            writes(HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + GRANTED),
            id="two lengths",
        ),
        # T22
        pytest.param(writes(b"\x15\x03\x01\x00\x02\x02\x16"), id="not http"),
        pytest.param(writes(b"HTTP/9.9 abc\r\n\r\n"), id="nonsense status line"),
        pytest.param(
            writes(HEAD + b"".join(b"X-%d: y\r\n" % n for n in range(10_000)) + b"\r\n"),
            id="10,000 headers",
        ),
        pytest.param(writes(HEAD + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n"), id="header of 1 MB"),
        pytest.param(repeats(HEAD + b"X: ", b"y" * 65_536), id="header without end"),
        # T21
        pytest.param(repeats(HEAD + b"\r\n", b"y" * 65_536), id="body without end"),
        pytest.param(replies(b" " * MAX_BODY + GRANTED), id="body over the cap"),
        pytest.param(replies(GRANTED, "Content-Encoding: br"), id="brotli"),
        pytest.param(replies(GRANTED, "Content-Encoding: zstd"), id="zstd"),
        pytest.param(
            replies(gzip.compress(gzip.compress(GRANTED)), "Content-Encoding: gzip, gzip"),
            id="gzip twice",
        ),
        pytest.param(
            replies(
                gzip.compress(gzip.compress(GRANTED)),
                "Content-Encoding: gzip",
                "Content-Encoding: gzip",
            ),
            id="gzip twice in two lines",
        ),
        pytest.param(replies(GRANTED, "Content-Encoding: gzip"), id="gzip that is none"),
        pytest.param(replies(gzip.compress(GRANTED)[:-9], "Content-Encoding: gzip"), id="gzip cut"),
    ],
)
async def test_what_came_is_no_whole_reply(outbound: Outbound, answer: Answer) -> None:
    """T21-T23: once the request has left, a reply that is broken in any way is in doubt."""
    async with RawServer(answer) as server:
        outcome = await ask(outbound, server.url())
    assert outcome.kind is OutcomeKind.IN_DOUBT
    assert outcome.reason in {FailureReason.NETWORK, FailureReason.MALFORMED_RESPONSE}
    assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(writes_then_waits(b""), id="silence"),
        pytest.param(writes_then_waits(HEAD + b"Content-"), id="stuck in the headers"),
        pytest.param(writes_then_waits(HEAD + b"\r\n{"), id="stuck in the body"),
        pytest.param(repeats(HEAD + b"Content-Length: 99999\r\n\r\n", b" ", pause=0.01), id="drip"),
        pytest.param(
            repeats(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100, pause=0.001), id="1xx flood"
        ),
    ],
)
async def test_a_slow_reply_ends_at_the_hard_timeout(outbound: Outbound, answer: Answer) -> None:
    """T22: however a server spends the time, the hard timeout ends it, in doubt."""
    async with RawServer(answer) as server:
        outcome = await ask(outbound, server.url(), hard_timeout=SHORT)
    assert (outcome.kind, outcome.reason) == (OutcomeKind.IN_DOUBT, FailureReason.TIMEOUT)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(writes(HEAD + b"\r\n" + GRANTED), id="close-delimited"),
        pytest.param(
            writes(HEAD + b"Transfer-Encoding: chunked\r\n\r\n42\r\n" + GRANTED + b"\r\n0\r\n\r\n"),
            id="chunked",
        ),
        pytest.param(
            writes(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"\r\n" + GRANTED), id="100 first"
        ),
        pytest.param(replies(gzip.compress(GRANTED), "Content-Encoding: GZIP"), id="gzip"),
        pytest.param(replies(zlib.compress(GRANTED), "Content-Encoding: deflate"), id="deflate"),
        pytest.param(
            replies(zlib.compress(GRANTED, wbits=-15), "Content-Encoding: deflate"),
            id="raw deflate",
        ),
        pytest.param(replies(GRANTED, "Content-Encoding: identity"), id="identity"),
        pytest.param(replies(GRANTED + b" " * (MAX_BODY - len(GRANTED))), id="as large as the cap"),
    ],
)
async def test_odd_but_whole_replies_are_read(outbound: Outbound, answer: Answer) -> None:
    """A whole reply counts however it is framed or coded, asked for or not."""
    async with RawServer(answer) as server:
        assert (await ask(outbound, server.url())).kind is OutcomeKind.OK


async def test_a_gzip_bomb_ends_at_the_cap(outbound: Outbound) -> None:
    """T21: 300 MB in 290 KB cost no more memory than the cap allows."""
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(300)) + packer.flush()
    async with RawServer(replies(bomb, "Content-Encoding: gzip")) as server:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reply = await post(outbound, server.url())
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert reply == NoReply(sent=True, fault=Fault.OVERSIZE)
    assert grown < 8 * 1024


async def test_a_refused_connection_is_not_sent(outbound: Outbound) -> None:
    """T24: nobody listens, so nothing was sent."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        outcome = await ask(outbound, f"http://127.0.0.1:{port}/token")
    assert (outcome.kind, outcome.reason) == (OutcomeKind.NOT_SENT, FailureReason.NETWORK)


async def test_an_unknown_name_is_not_sent(outbound: Outbound) -> None:
    """T24: a name that does not exist (RFC 6761 6.4) gets nothing."""
    reply = await post(outbound, "https://acme.invalid/token")
    assert reply == NoReply(sent=False, fault=Fault.NAME)


@pytest.mark.parametrize(
    "url", ["", "token", "ftp://127.0.0.1/", "http://", "http://[::1/", "http://127.0.0.1:x/"]
)
async def test_an_unusable_url_is_not_sent(outbound: Outbound, url: str) -> None:
    """A URL that is none is told as such, not raised."""
    assert await post(outbound, url) == NoReply(sent=False, fault=Fault.URL)


async def test_a_handshake_without_end_is_not_sent(outbound: Outbound) -> None:
    """A server that accepts and never finishes TLS has received no byte of the request."""
    async with RawServer(writes_then_waits(b""), before_request=True) as server:
        url = f"https://127.0.0.1:{server.port}/token"
        reply = await post(outbound, url, hard_timeout=SHORT)
    assert reply == NoReply(sent=False, fault=Fault.CONNECT)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(writes(b"HTTP/1.1 400 Bad Request\r\n\r\n"), id="plain http"),
        pytest.param(writes(b"\x15\x03\x01\x00\x02\x02\x28"), id="alert"),
        pytest.param(writes(b""), id="closed"),
        pytest.param(writes_then_resets(b""), id="reset"),
    ],
)
async def test_a_failed_handshake_is_not_sent(outbound: Outbound, answer: Answer) -> None:
    """T24: however the handshake fails, nothing was sent."""
    async with RawServer(answer, before_request=True) as server:
        outcome = await ask(outbound, f"https://127.0.0.1:{server.port}/token")
    assert (outcome.kind, outcome.reason) == (OutcomeKind.NOT_SENT, FailureReason.NETWORK)


@pytest.fixture
def trusted(tmp_path: Path) -> Certificates:
    """Return a certificate for 127.0.0.1 and a client context that trusts it."""
    return certificates(str(tmp_path))


async def test_tls_with_a_trusted_certificate(trusted: Certificates) -> None:
    """B2: with a certificate that verifies, the request goes through."""
    async with (
        RawServer(replies(GRANTED), tls=trusted.server) as server,
        Outbound(ssl_context=trusted.client) as outbound,
    ):
        assert (await ask(outbound, server.url())).kind is OutcomeKind.OK


async def test_tls_closed_after_the_request_is_in_doubt(trusted: Certificates) -> None:
    """Once the handshake is done and the request has left, TLS proves nothing more."""
    async with (
        RawServer(writes_then_resets(HEAD), tls=trusted.server) as server,
        Outbound(ssl_context=trusted.client) as outbound,
    ):
        assert (await ask(outbound, server.url())).kind is OutcomeKind.IN_DOUBT


@pytest.mark.parametrize(
    ("host", "not_after", "trusts"),
    [
        pytest.param("127.0.0.1", None, False, id="unknown issuer"),
        pytest.param("acme.example", None, True, id="wrong name"),
        pytest.param("127.0.0.1", dt.datetime(2021, 1, 1, tzinfo=dt.UTC), True, id="expired"),
    ],
)
async def test_a_bad_certificate_is_not_sent(
    tmp_path: Path, host: str, not_after: dt.datetime | None, *, trusts: bool
) -> None:
    """B2: self-signed, wrong name, expired: not one byte of the request leaves."""
    end = not_after or dt.datetime(2120, 1, 1, tzinfo=dt.UTC)
    made = certificates(str(tmp_path), host=host, not_after=end)
    async with (
        RawServer(replies(GRANTED), tls=made.server) as server,
        Outbound(ssl_context=made.client if trusts else None) as outbound,
    ):
        reply = await post(outbound, server.url())
    assert reply == NoReply(sent=False, fault=Fault.CERTIFICATE)
    assert server.seen == []


async def test_an_old_tls_version_is_not_sent(trusted: Certificates) -> None:
    """B2: below TLS 1.2 nothing is sent."""
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        trusted.server.maximum_version = ssl.TLSVersion.TLSv1_1
    async with (
        RawServer(replies(GRANTED), tls=trusted.server) as server,
        Outbound(ssl_context=trusted.client) as outbound,
    ):
        reply = await post(outbound, server.url())
    assert isinstance(reply, NoReply)
    assert not reply.sent
    assert server.seen == []


def test_verification_cannot_be_turned_off() -> None:
    """B2: a context that does not verify is refused at the door."""
    careless = ssl.create_default_context()
    careless.check_hostname = False
    with pytest.raises(ValueError, match="verify"):
        Outbound(ssl_context=careless)
    careless.verify_mode = ssl.CERT_NONE
    with pytest.raises(ValueError, match="verify"):
        Outbound(ssl_context=careless)


async def test_too_late_means_not_a_byte(outbound: Outbound) -> None:
    """may_send is asked when the connection stands; no keeps every byte back."""
    received = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.set_result(await reader.read())
        writer.close()

    async def no() -> bool:
        return False

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reply = await outbound.post(
            f"http://127.0.0.1:{port}/", {}, b"x", hard_timeout=AMPLE, may_send=no
        )
        assert await received == b""
    assert reply == NoReply(sent=False, fault=Fault.LATE)


async def test_cancellation_goes_through(outbound: Outbound) -> None:
    """A cancelled request is cancelled, its connection closed."""
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"canary-rt")
        arrived.set()
        await reader.read()
        gone.set()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        task = asyncio.create_task(ask(outbound, f"http://127.0.0.1:{port}/token"))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()


async def test_repeated_headers_are_joined(outbound: Outbound) -> None:
    """Names are lower-cased, values of one name joined, and no octet is lost or refused."""
    answer = replies(b"{}", "Retry-After: 1", "RETRY-AFTER: 2", "X-Odd: \xff")
    async with RawServer(answer) as server:
        reply = await post(outbound, server.url())
    assert isinstance(reply, RawReply)
    assert reply.headers["retry-after"] == "1, 2"
    assert reply.headers["x-odd"] == "\xff"
    assert json.loads(reply.body) == {}


async def test_a_document_is_fetched_once(outbound: Outbound) -> None:
    """GET has the same limits, and a dropped connection is not tried again behind our back."""
    async with RawServer(writes(b"")) as server:
        reply = await outbound.get(server.url("/x"), {"Accept": "a/b"}, hard_timeout=AMPLE)
    assert reply == NoReply(sent=True, fault=Fault.DISCONNECTED)
    [seen] = server.seen
    assert (seen.method, seen.headers["accept"]) == ("GET", "a/b")
    assert seen.headers["user-agent"].startswith("tokenward/")


@pytest.mark.parametrize(
    ("answer", "scheme", "expected"),
    [
        pytest.param(writes(b""), "http", (True, Fault.DISCONNECTED), id="closed"),
        pytest.param(writes_then_resets(HEAD), "http", (True, Fault.DISCONNECTED), id="reset"),
        pytest.param(writes_then_waits(HEAD), "http", (True, Fault.TIMEOUT), id="silence"),
        pytest.param(writes(b"nonsense"), "http", (True, Fault.MALFORMED), id="not http"),
        pytest.param(writes(b"nonsense"), "https", (False, Fault.TLS), id="not tls"),
        pytest.param(writes_then_waits(b""), "https", (False, Fault.CONNECT), id="no handshake"),
        pytest.param(writes_then_resets(b""), "https", (False, Fault.CONNECT), id="tls reset"),
    ],
)
def test_uvloop_tells_the_same(answer: Answer, scheme: str, expected: tuple[bool, Fault]) -> None:
    """The daemon's usual event loop, whose errors are its own, comes to the same findings."""

    async def run() -> RawReply | NoReply:
        before_request = scheme == "https"
        async with (
            RawServer(answer, before_request=before_request) as server,
            Outbound() as session,
        ):
            return await post(session, f"{scheme}://127.0.0.1:{server.port}/", hard_timeout=SHORT)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        reply = runner.run(run())
    sent, fault = expected
    assert reply == NoReply(sent=sent, fault=fault)
