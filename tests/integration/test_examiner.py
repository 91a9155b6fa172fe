"""Test requests over real sockets: what leaves, what comes back, and what never leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from daemon.domain.clock import SystemClock
from daemon.domain.provider import Provider, TestRequest
from daemon.domain.templates import parse_template, parse_url_template
from daemon.oauth.api_session import ApiSession
from daemon.oauth.examination import Examined
from daemon.oauth.examiner import Examiner
from daemon.oauth.outbound import MAX_BODY, Outbound
from tests.support.raw_server import Answer, RawServer, replies

TOKEN = "access-token-canary"
JSON = "Content-Type: application/json"


@pytest.fixture
async def examiner() -> AsyncIterator[Examiner]:
    """An examiner with real sessions."""
    async with ApiSession() as api, Outbound() as outbound:
        yield Examiner(api=api, session=outbound, clock=SystemClock())


def provider_at(server: RawServer, *, is_private: bool = True, path: str = "/me") -> Provider:
    """Return a provider whose API is ``server``."""
    return Provider(
        name="acme",
        client_id="client",
        api_base_url=parse_url_template(server.url("/v1")),
        allowed_hosts=(f"127.0.0.1:{server.port}",),
        allow_private_hosts=is_private,
        test=TestRequest(path=parse_url_template(path)),
    )


async def ask(examiner: Examiner, provider: Provider) -> Examined:
    """Return what the test request came to."""
    examined = await examiner.examine(provider, TOKEN, fields={}, reply_values={})
    assert examined is not None
    return examined


async def test_a_token_is_tested_at_the_api(examiner: Examiner) -> None:
    """S11: GET with the bearer token; the reply's members are ``me``."""
    async with RawServer(replies(b'{"id": 17}', JSON)) as server:
        examined = await ask(examiner, provider_at(server))

    assert examined.result.ok
    assert examined.me == {"id": 17}
    (seen,) = server.seen
    assert (seen.method, seen.target) == ("GET", "/v1/me")
    assert seen.headers["authorization"] == f"Bearer {TOKEN}"
    assert "cookie" not in seen.headers


async def test_a_body_is_sent_with_its_length(examiner: Examiner) -> None:
    """POST with dummy values."""
    test = TestRequest(
        method="POST",
        path=parse_url_template("/ping"),
        headers={"X-Ping": parse_template("1")},
        body={"text": parse_template("hello")},
    )
    async with RawServer(replies(b"", status="204 No Content")) as server:
        examined = await ask(examiner, replace(provider_at(server), test=test))

    assert examined.result.ok
    (seen,) = server.seen
    assert (seen.method, seen.body) == ("POST", b'{"text": "hello"}')
    assert seen.headers["x-ping"] == "1"


async def test_a_private_address_is_refused_before_a_byte_leaves(examiner: Examiner) -> None:
    """S13: unless the provider says that its API may be there."""
    async with RawServer(replies(b"{}")) as server:
        examined = await ask(examiner, provider_at(server, is_private=False))

        assert examined.result.error is not None
        assert examined.result.error.code == "address_refused"
        assert server.connections == 0


async def test_a_redirect_is_not_followed(examiner: Examiner) -> None:
    """The token stays with the host that it was meant for."""
    async with RawServer(replies(b"{}")) as elsewhere:
        to = f"Location: {elsewhere.url('/me')}"
        async with RawServer(replies(b"", to, status="302 Found")) as server:
            examined = await ask(examiner, provider_at(server))

        assert examined.result.status == 302
        assert elsewhere.connections == 0


@pytest.mark.parametrize(
    ("answer", "code", "is_refused"),
    [
        (replies(b"no", status="401 Unauthorized"), "token_refused", True),
        (replies(b"no", status="500 Oh"), "http_status", False),
        (replies(b" " * (MAX_BODY + 1)), "unexpected_reply", False),
        (replies(b"nonsense", "Content-Encoding: gzip"), "unexpected_reply", False),
    ],
)
async def test_what_an_api_may_answer(
    examiner: Examiner,
    answer: Answer,
    code: str,
    is_refused: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """A result each time, never an exception, and never the body."""
    async with RawServer(answer) as server:
        examined = await ask(examiner, provider_at(server))

    assert examined.result.error is not None
    assert (examined.result.error.code, examined.is_refused) == (code, is_refused)
    assert "nonsense" not in repr(examined)


async def test_an_api_that_is_not_there_is_a_result(examiner: Examiner) -> None:
    """Nobody listens: the network's fault, not the token's."""
    async with RawServer(replies(b"")) as server:
        provider = provider_at(server)

    examined = await ask(examiner, provider)

    assert examined.result.error is not None
    assert examined.result.error.code == "network"
    assert not examined.is_refused
