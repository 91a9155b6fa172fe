"""The history of contract 4, three ways: over HTTP, as a stream, and at a webhook."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import orjson
import pytest
from aiohttp import ClientTimeout, web
from standardwebhooks import Webhook

from tests.support.acme_service import AcmeService, walk
from tests.support.polling import eventually
from tests.support.tokenward import Tokenward

# As many bytes as the documents ask for. Libraries read the same text with and without the prefix.
_BARE = base64.b64encode(bytes(range(32))).decode()
_WHOLE_LIFE = [
    "connection.created",
    "connection.authorized",
    "token.refreshed",
    "token.refresh_failed",
    "token.refreshed",
    "connection.recovered",
    "connection.tested",
    "connection.authorization_failed",
    "token.refresh_failed",
    "connection.reauthorization_required",
    "connection.authorized",
    "connection.disconnected",
]


class Receiver:
    """A webhook's receiver: ``statuses`` are answered first, then 204."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.received: list[tuple[Mapping[str, str], bytes, int]] = []
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Return where it listens."""
        if self._runner is None:
            raise AssertionError("not started")
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/hook"

    @property
    def taken(self) -> list[dict[str, Any]]:
        """Return the events that were taken, each once."""
        bodies = [orjson.loads(body) for _, body, status in self.received if status == 204]
        return list({body["id"]: body for body in bodies}.values())

    async def __aenter__(self) -> Self:
        """Listen."""
        app = web.Application()
        app.router.add_post("/hook", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        status = self.statuses.pop(0) if self.statuses else 204
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append((headers, await request.read(), status))
        return web.Response(status=status)


@asynccontextmanager
async def listening(daemon: Tokenward, *, after: str | None = None) -> AsyncIterator[list[str]]:
    """Read ``GET /v1/events`` in the background; the lines as they come."""
    lines: list[str] = []
    opened = asyncio.Event()
    headers = {"Authorization": f"Bearer {daemon.key}"}
    if after is not None:
        headers["Last-Event-ID"] = after

    async def read() -> None:
        url, forever = f"{daemon.api_url}/v1/events", ClientTimeout(total=None)
        async with daemon.session.get(url, headers=headers, timeout=forever) as stream:
            assert stream.headers["Content-Type"].startswith("text/event-stream")
            opened.set()
            async for line in stream.content:
                lines.append(line.decode().rstrip("\n"))  # noqa: PERF401 - others look meanwhile

    task = asyncio.create_task(read())
    try:
        async with asyncio.timeout(10):
            await opened.wait()
        yield lines
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def told(lines: list[str]) -> list[dict[str, Any]]:
    """Return the events of a stream whose frames are complete."""
    blocks = "\n".join(lines).split("\n\n")
    events = []
    for block in blocks:
        members = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in members:
            event = orjson.loads(members["data"])
            assert members["id"] == event["id"]
            assert members["event"] == event["type"]
            events.append(event)
    return events


async def live(daemon: Tokenward, acme: AcmeService) -> None:
    """Lead a connection through its life."""
    one = "/v1/connections/life"
    made = await daemon.create("acme", id="life")
    assert (await walk(made["connect_url"])).status == 303
    assert (await daemon.request("POST", f"{one}/refresh")).status == 200
    acme.token_faults = [(503, {"error": "temporarily_unavailable"})]
    assert (await daemon.request("POST", f"{one}/refresh")).status == 503
    warned = (await daemon.token("life")).body
    assert "warning" in warned
    assert (await daemon.request("POST", f"{one}/refresh")).status == 200
    assert (await daemon.request("POST", f"{one}/test")).body["ok"]
    acme.denies = True
    again = await daemon.request("POST", f"{one}/authorize")
    denied = await walk(again.body["connect_url"])
    assert (denied.status, "access_denied" in denied.text) == (400, True)
    acme.denies = False
    acme.token_faults = [(400, {"error": "invalid_grant"})]
    dead = await daemon.request("POST", f"{one}/refresh")
    assert (dead.status, dead.body["code"]) == (409, "reauthorization_required")
    again = await daemon.request("POST", f"{one}/authorize")
    assert (await walk(again.body["connect_url"])).status == 303
    revocation = (await daemon.request("DELETE", one)).body["revocation"]
    # On a busy machine the provider's answer may come after the five seconds that are waited.
    assert revocation in {"revoked", "queued"}


@pytest.mark.parametrize("secret", [f"whsec_{_BARE}", _BARE])
async def test_a_whole_life_is_told(daemon: Tokenward, secret: str) -> None:
    """The same bodies in the same order: history, stream, and a signed webhook after a 500."""
    async with AcmeService() as acme, Receiver() as receiver:
        receiver.statuses = [500]
        daemon.settings["providers"] = {"acme": acme.provider()}
        # No other key: a URL that names a loopback address says enough.
        daemon.settings["events"] = {"webhook": {"url": receiver.url, "secret": secret}}
        async with daemon, listening(daemon) as lines:
            await live(daemon, acme)
            page = await daemon.request("GET", "/v1/connections/life/events?limit=1000")
            assert set(page.body) == {"events", "next_cursor"}
            history = page.body["events"][::-1]
            assert [event["type"] for event in history] == _WHOLE_LIFE
            members = {"id", "at", "connection", "provider", "type", "detail"}
            assert all(set(event) == members for event in history)

            async def streamed() -> bool:
                return bool(told(lines) == history)

            async def delivered() -> bool:
                return len(receiver.taken) == len(history)

            await eventually(streamed, within=5, what="the stream")
            await eventually(delivered, within=30, what="all deliveries")
            by_id = {event["id"]: event for event in history}
            assert all(by_id[event["id"]] == event for event in receiver.taken)
            for headers, body, _ in receiver.received:
                Webhook(secret).verify(body, dict(headers))
            refused = next(body for _, body, status in receiver.received if status == 500)
            assert [body for _, body, _ in receiver.received].count(refused) == 2

            async with listening(daemon, after=history[4]["id"]) as rest:

                async def resumed() -> bool:
                    return bool(told(rest) == history[5:])

                await eventually(resumed, within=5, what="the rest of the stream")
            counted = await daemon.metrics()
            series = "tokenward_webhook_deliveries_total"
            assert counted[f'{series}{{outcome="delivered"}}'] == len(history)
            assert counted[f'{series}{{outcome="failed"}}'] == 1
        everything = orjson.dumps(receiver.taken).decode() + "\n".join(lines) + daemon.log()
        assert not [one for one in [*acme.secrets, "acme-code-", _BARE] if one in everything]
