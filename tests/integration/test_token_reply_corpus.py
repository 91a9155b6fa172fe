"""Every kind of token reply that the fault catalogue knows, as data, through a real local server.

The cases are in ``tests/corpora/token_replies.json``: groups of replies with one expectation. A
case that the field teaches is a line there. A body is ``body``, ``body_b64``, or ``before``, a
piece that is repeated, and ``then``.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import jmespath
import pytest
from pydantic import SecretStr

from daemon.domain.clock import SystemClock
from daemon.domain.outcome import Outcome
from daemon.domain.provider import Provider
from daemon.oauth.outbound import Outbound
from daemon.oauth.token_endpoint import TokenEndpoint
from daemon.oauth.token_request import Refresh
from tests.support.raw_server import RawServer, writes

CORPUS = Path(__file__).parents[1] / "corpora" / "token_replies.json"
PROVIDER = Provider(
    name="acme", client_id="client", client_secrets=(SecretStr("a-secret"),), scopes=("read",)
)
FEWEST_CASES = 400


def _cases() -> Iterator[Any]:
    for group in json.loads(CORPUS.read_bytes()):
        for case in group["cases"]:
            yield pytest.param(case, group["expect"], id=f"{group['row']}-{case['id']}")


def octets(case: Mapping[str, Any]) -> bytes:
    """Return a case's reply as it goes over the wire."""
    if "body_b64" in case:
        body = base64.b64decode(case["body_b64"])
    else:
        piece, count = case.get("repeat", ["", 0])
        text = case.get("body", case.get("before", "")) + piece * count + case.get("then", "")
        # A lone surrogate has no UTF-8: it stays the escape that it was.
        body = text.encode("utf-8", "backslashreplace")
    status = case["status"]
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Odd"
    lines = [f"HTTP/1.1 {status} {phrase}", *case.get("headers", [])]
    if status not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join([*lines, "Connection: close", "", ""])
    return head.encode() + body


def provider_of(case: Mapping[str, Any]) -> Provider:
    """Return the provider whose reply it is."""
    quirks = case.get("provider", {}).get("token_response", {})
    selectors = {name: jmespath.compile(text) for name, text in quirks.items()}
    return replace(PROVIDER, token_response=selectors)


@pytest.fixture(scope="module")
def ssl_context() -> ssl.SSLContext:
    """Made once: reading the machine's certificates takes longer than a case."""
    return ssl.create_default_context()


@pytest.fixture
async def outbound(ssl_context: ssl.SSLContext) -> AsyncIterator[Outbound]:
    """A session."""
    async with Outbound(ssl_context=ssl_context) as session:
        yield session


def test_there_are_enough_cases() -> None:
    """The corpus does not shrink unnoticed."""
    assert sum(1 for _ in _cases()) >= FEWEST_CASES


@pytest.mark.parametrize(("case", "expect"), list(_cases()))
async def test_reply(
    case: Mapping[str, Any], expect: Mapping[str, Any], outbound: Outbound
) -> None:
    """A reply is what its row of the catalogue says: its class, its tokens, its waiting time."""
    async with RawServer(writes(octets(case))) as server:
        endpoint = TokenEndpoint(session=outbound, clock=SystemClock())
        outcome = await endpoint.request(
            provider_of(case),
            server.url("/token"),
            Refresh(refresh_token="rt-sent"),
            hard_timeout=30.0,
        )
    assert server.connections == 1
    seen = described(outcome)
    assert {name: seen[name] for name in expect if name != "warns"} == {
        name: value for name, value in expect.items() if name != "warns"
    }
    if "warns" in expect:
        assert expect["warns"] in outcome.warnings
    # What a provider writes never becomes our words.
    assert outcome.description.isascii()
    assert (outcome.error or "").isprintable()
    assert "<" not in outcome.description


def described(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome in the words of the corpus."""
    granted = outcome.granted
    return {
        "kind": outcome.kind.value,
        "reason": outcome.reason and outcome.reason.value,
        "retry_after": outcome.retry_after,
        "salvaged": outcome.salvaged_refresh_token,
        "access_token": granted and granted.access_token,
        "refresh_token": granted and granted.refresh_token,
        "expires_in": granted and granted.expires_in,
        "scopes": granted and (None if granted.scopes is None else list(granted.scopes)),
    }
