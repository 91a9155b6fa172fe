"""What a refresh, an exchange of messages and a proxied request tell as spans, by real flows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from daemon.domain.clock import SystemClock
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.provider import ClientAuthentication, Provider
from daemon.domain.reply import RawReply
from daemon.domain.tracing import Tracer
from daemon.oauth.outbound import Outbound
from daemon.oauth.token_endpoint import TokenEndpoint
from daemon.oauth.token_request import Refresh
from daemon.telemetry.opentelemetry import tracer_of
from tests.support.proxy_stage import Upstream, echo, provider, proxying, upstream
from tests.support.refreshing import Replica
from tests.support.token_server import TokenServer

_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Where spans end."""
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Tracer:
    """A tracer whose spans end in ``exporter``."""
    traces = TracerProvider()
    traces.add_span_processor(SimpleSpanProcessor(exporter))
    return tracer_of(traces, clock=SystemClock())


def tree(exporter: InMemorySpanExporter) -> dict[str, list[str]]:
    """Return the names of spans by that of the one above them, in the order of their beginning."""
    ended = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
    names = {span.context.span_id: span.name for span in ended}
    found: dict[str, list[str]] = {}
    for span in ended:
        above = "" if span.parent is None else names.get(span.parent.span_id, "elsewhere")
        found.setdefault(above, []).append(span.name)
    return found


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """Return the spans of one name."""
    return [span for span in exporter.get_finished_spans() if span.name == name]


def attributes(exporter: InMemorySpanExporter, name: str) -> dict[str, Any]:
    """Return the attributes of the first span of a name."""
    return dict(named(exporter, name)[0].attributes or {})


async def test_a_refresh(exporter: InMemorySpanExporter, tracer: Tracer) -> None:
    """Claimed and committed below it; it says how it ended, and nothing secret."""
    here = Replica(tracer=tracer)
    row = here.add()
    await _finished(here, here.refresher.refresh(here.wanted()))
    assert tree(exporter) == {"": ["refresh"], "refresh": ["claim", "commit"]}
    assert attributes(exporter, "refresh") == {
        "tokenward.provider": "acme",
        "tokenward.connection": "acme-1",
        "tokenward.generation": 1,
        "tokenward.outcome": "ok",
    }
    assert attributes(exporter, "commit") == {"tokenward.outcome": "stored"}
    text = "".join(span.to_json() for span in exporter.get_finished_spans())
    for token in (row.tokens.access_token, row.tokens.refresh_token, "new access", "new refresh"):
        assert token
        assert token not in text


async def test_a_refresh_that_fails(exporter: InMemorySpanExporter, tracer: Tracer) -> None:
    """The reason is a word of ours, and never a provider's text."""
    here = Replica(tracer=tracer)
    here.add()
    here.sender.outcomes = [
        Outcome(
            kind=OutcomeKind.REFUSED,
            reason=FailureReason.SERVER_ERROR,
            error="CANARY",
            description="CANARY",
        )
    ]
    await _finished(here, here.refresher.refresh(here.wanted()))
    (span,) = named(exporter, "refresh")
    assert (span.attributes or {})["error.type"] == "server_error"
    assert not span.status.is_ok
    assert "CANARY" not in span.to_json()


async def _finished(here: Replica, work: Coroutine[None, None, object]) -> None:
    """Run ``work`` while time passes."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await here.clock.run(1)
    await task


async def test_a_token_request(exporter: InMemorySpanExporter, tracer: Tracer) -> None:
    """To a real endpoint: method, host and status; the reply is kept after it."""
    kept: list[RawReply] = []

    async def keep(reply: RawReply) -> None:
        kept.append(reply)

    async with TokenServer() as server, Outbound() as session:
        endpoint = TokenEndpoint(session=session, clock=SystemClock(), tracer=tracer)
        acme = Provider(
            name="acme",
            client_id="me",
            token_endpoint_auth_method=ClientAuthentication.NONE,
        )
        message, url = Refresh(refresh_token="CANARY-refresh"), server.url("/token?tenant=CANARY")
        with tracer.span("refresh", withheld=["elsewhere.example"]):
            await endpoint.request(acme, url, message, hard_timeout=5, received=keep)
    assert tree(exporter) == {"": ["refresh"], "refresh": ["POST", "keep"]}
    assert attributes(exporter, "POST") == {
        "http.request.method": "POST",
        "server.address": "127.0.0.1",
        "tokenward.provider": "acme",
        "http.response.status_code": 200,
    }
    assert kept
    assert "CANARY" not in "".join(one.to_json() for one in exporter.get_finished_spans())


async def test_a_token_endpoint_that_is_away(
    exporter: InMemorySpanExporter, tracer: Tracer
) -> None:
    """What went wrong is one word."""
    async with Outbound() as session:
        endpoint = TokenEndpoint(session=session, clock=SystemClock(), tracer=tracer)
        acme = Provider(name="acme", client_id="me")
        message = Refresh(refresh_token="CANARY")
        await endpoint.request(acme, "http://127.0.0.1:1/token", message, hard_timeout=5)
    (span,) = named(exporter, "POST")
    assert (span.attributes or {})["error.type"] == "connect"
    assert not span.status.is_ok


@pytest.fixture
async def api() -> AsyncIterator[Upstream]:
    """An API that says what it got."""
    async with upstream(echo) as api:
        yield api


async def test_a_proxied_request(
    exporter: InMemorySpanExporter, tracer: Tracer, api: Upstream
) -> None:
    """Below the caller's span; the API gets the context of the span that is about its request."""
    async with proxying(provider(api.url("/base")), tracer=tracer) as stage:
        headers = {"traceparent": _PARENT, "tracestate": "vendor=1"}
        async with stage.ask("/CANARY-path?q=CANARY-query", headers=headers) as answer:
            got = dict((await answer.json())["headers"])
    name = "GET /v1/connections/{id}/proxy/{path}"
    assert tree(exporter) == {"elsewhere": [name], name: ["GET"]}
    (server,), (client,) = named(exporter, name), named(exporter, "GET")
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    assert format(client.context.trace_id, "032x") == trace_id
    lower = {key.lower(): value for key, value in got.items()}
    assert lower["traceparent"] == f"00-{trace_id}-{client.context.span_id:016x}-01"
    assert lower["tracestate"] == "vendor=1"
    assert dict(server.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/v1/connections/{id}/proxy/{path}",
        "http.response.status_code": 200,
        "tokenward.provider": "acme",
        "tokenward.connection": "acme-1",
    }
    assert dict(client.attributes or {}) == {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "tokenward.provider": "acme",
        "http.response.status_code": 200,
    }
    text = "".join(one.to_json() for one in exporter.get_finished_spans())
    assert "CANARY" not in text
    assert "canary" not in text


async def test_a_retry_is_told_whole(exporter: InMemorySpanExporter, tracer: Tracer) -> None:
    """After a 401: the refresh and the second request are below the caller's request."""

    async def once_unauthorized(request: web.BaseRequest) -> web.StreamResponse:
        is_old = "new" not in request.headers["Authorization"]
        return web.Response(status=401 if is_old else 200)

    async with (
        upstream(once_unauthorized) as api,
        proxying(provider(api.url("/base")), tracer=tracer) as stage,
        stage.ask("/") as answer,
    ):
        assert answer.status == 200
    name = "GET /v1/connections/{id}/proxy/{path}"
    assert tree(exporter)[name] == ["GET", "refresh", "GET"]
    first, second = named(exporter, "GET")
    assert (first.attributes or {})["error.type"] == "401"
    assert (second.attributes or {})["http.response.status_code"] == 200


async def test_a_stranger_is_told_nothing_of(
    exporter: InMemorySpanExporter, tracer: Tracer, api: Upstream
) -> None:
    """A refused request names no connection and no provider, and is no error of ours."""
    async with proxying(provider(api.url("/base")), tracer=tracer) as stage:
        headers = {"Authorization": "Bearer CANARY-wrong-key"}
        async with stage.ask("/", headers=headers) as answer:
            assert answer.status == 401
    (span,) = exporter.get_finished_spans()
    assert "tokenward.connection" not in (span.attributes or {})
    assert "error.type" not in (span.attributes or {})
    assert "CANARY" not in span.to_json()


async def test_without_tracing_a_callers_trace_passes(api: Upstream) -> None:
    """Its own headers go on as they came."""
    async with (
        proxying(replace(provider(api.url("/base")))) as stage,
        stage.ask(headers={"traceparent": _PARENT}) as answer,
    ):
        got = {key.lower(): value for key, value in (await answer.json())["headers"]}
    assert got["traceparent"] == _PARENT
