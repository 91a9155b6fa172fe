"""Spans of the real process, as a real OTLP receiver gets them: a whole life, and no secret."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.oauth_flow import browser_session, query_of
from tests.support.polling import eventually
from tests.support.proxy_stage import echo, upstream
from tests.support.token_server import TokenServer
from tests.support.tokenward import Tokenward

CANARY = "CANARY5ecret"
_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Receiver:
    """What a collector got."""

    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    async def take(self, request: web.Request) -> web.Response:
        """Take spans."""
        self.bodies.append(await request.read())
        self.headers.append(dict(request.headers))
        return web.Response(content_type="application/x-protobuf")

    def resources(self) -> list[dict[str, str]]:
        """Return who sent."""
        return [
            {pair.key: pair.value.string_value for pair in spans.resource.attributes}
            for spans in self._resource_spans()
        ]

    def spans(self) -> list[Any]:
        """Return all spans."""
        return [
            span
            for spans in self._resource_spans()
            for scope in spans.scope_spans
            for span in scope.spans
        ]

    def _resource_spans(self) -> list[Any]:
        found: list[Any] = []
        for body in self.bodies:
            found += ExportTraceServiceRequest.FromString(body).resource_spans
        return found


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """Run a receiver of OTLP over HTTP."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/v1/traces", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield receiver
    finally:
        await runner.cleanup()


async def live(daemon: Tokenward, key: str) -> None:
    """Connect, read, refresh, and send a request through the proxy."""
    created = await daemon.create("acme", id="acme-1")
    async with browser_session() as browser:
        async with browser.post(created["connect_url"], allow_redirects=False) as begun:
            state = query_of(begun.headers["Location"])["state"]
        callback = f"{daemon.redirect_uri}?code={CANARY}-code&state={state}"
        async with browser.get(callback) as last:
            assert last.status == 200
    assert (await daemon.token("acme-1", "?min_ttl=3000")).status == 200
    assert (await daemon.request("POST", "/v1/connections/acme-1/refresh")).status == 200
    answer = await daemon.request(
        "GET",
        f"/v1/connections/acme-1/proxy/{CANARY}-path?q={CANARY}-query",
        headers={"traceparent": _PARENT, "X-Key": f"{CANARY}-header"},
        key=key,
    )
    assert answer.status == 200


async def test_a_life_in_spans(daemon: Tokenward, tmp_path: Path) -> None:
    """Exchange, read, refresh and proxy arrive, named as configured, with nothing secret."""
    key = f"{CANARY}-caller-key-0123456789"
    (tmp_path / "key").write_text(key)
    async with (
        receiving() as receiver,
        TokenServer(prefix=CANARY) as server,
        upstream(echo) as api,
    ):
        acme = server.provider(
            api_base_url=api.url("/base"),
            allow_private_hosts=True,
            client_secret=f"{CANARY}-secret",
        )
        daemon.settings |= {
            "tracing": {"enabled": True},
            "providers": {"acme": acme},
            "callers": [
                {
                    "name": "all",
                    "key": {"file": str(tmp_path / "key")},
                    "connections": ["*"],
                    "permissions": ["token", "proxy", "read", "manage"],
                }
            ],
        }
        daemon.launcher = (
            "/usr/bin/env",
            f"OTEL_EXPORTER_OTLP_ENDPOINT={receiver.url}",
            "OTEL_EXPORTER_OTLP_HEADERS=x-tenant=ours",
            "OTEL_SERVICE_NAME=refresher",
            "OTEL_BSP_SCHEDULE_DELAY=100",
        )
        daemon.state_dir.mkdir(parents=True, mode=0o700)
        (daemon.state_dir / "api.key").write_text(key)
        async with daemon:
            await live(daemon, key)

            async def has_arrived() -> bool:
                return any("proxy" in span.name for span in receiver.spans())

            await eventually(has_arrived, what="the spans")
            assert await daemon.stop() == 0
        names = [span.name for span in receiver.spans()]
        assert {"exchange", "refresh", "claim", "commit", "keep", "POST"} <= set(names)
        assert "GET /v1/connections/{id}/token" in names
        assert "GET /v1/connections/{id}/proxy/{path}" in names
        assert receiver.resources()[0]["service.name"] == "refresher"
        assert receiver.headers[0]["x-tenant"] == "ours"
        (proxied,) = [span for span in receiver.spans() if "proxy" in span.name]
        assert proxied.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
        everything = b"".join(receiver.bodies)
        assert CANARY.encode() not in everything
        assert b"imported" not in everything


async def test_a_collector_that_is_away(daemon: Tokenward) -> None:
    """Costs nothing but its spans: tokens are served, and a stop does not wait for long."""
    async with TokenServer() as server:
        daemon.settings |= {
            "tracing": {"enabled": True},
            "providers": {"acme": server.provider()},
        }
        daemon.launcher = ("/usr/bin/env", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1")
        async with daemon:
            await daemon.create("acme", id="acme-1", tokens={"refresh_token": "imported"})
            assert (await daemon.token("acme-1")).status == 200
            assert await daemon.stop(within=8) == 0
