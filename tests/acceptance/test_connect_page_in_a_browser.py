"""The connect page's form in a real browser: fields, their errors, and on to a templated host."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiohttp import web

from daemon.domain.fields import Field
from daemon.domain.provider import Endpoints
from daemon.sidecar.public import PublicParts, create_public_app
from tests.support.authorization import ACME, Flow
from tests.support.axe_core import axe_script, judge
from tests.support.chromium import Chromium, find_chromium
from tests.support.polling import eventually

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)
FIELDS = {
    "region": Field(
        name="region", title="Region", help="Where your account lives.", enum=("us", "eu")
    ),
    "team": Field(name="team", title="Team", pattern=re.compile("[a-z]+"), required=True),
    "note": Field(name="note", title="Note"),
}


@dataclass
class Site:
    """The public listener, and a provider whose host depends on a field."""

    flow: Flow
    base: str


@pytest.fixture
async def browser() -> AsyncIterator[Chromium]:
    """A browser of a person who was never here."""
    assert CHROMIUM is not None
    async with Chromium(CHROMIUM) as chromium:
        yield chromium


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A listener on a free port, and a provider at ``{region}.localhost``."""
    async with _served(_provider()) as place:
        port = place.rpartition(":")[2]
        with socket.create_server(("127.0.0.1", 0)) as server:
            base = f"http://localhost:{server.getsockname()[1]}"
            flow = Flow(public_url=base)
            flow.providers["acme"] = replace(
                ACME,
                issuer=None,
                endpoints=Endpoints(
                    authorization=f"http://{{region}}.localhost:{port}/authorize",
                    token=f"http://{{region}}.localhost:{port}/token",
                ),
                fields=FIELDS,
            )
            async with _served(_public(flow, base), server):
                yield Site(flow, base)


async def test_a_person_fills_in_the_fields(site: Site, browser: Chromium, tmp_path: Path) -> None:
    """What is wrong is said and has the focus, then the browser goes to the host that was chosen.

    Chromium holds the redirect against the page's form-action, whatever host it leads to (S21).
    """
    script = axe_script()
    await browser.open(await site.flow.connect_url())
    assert "Region (required)" in await browser.until_text("Team (required)")
    found = await judge(browser, script, "connect", tmp_path)
    await browser.click("button")
    await browser.until_text("Team is required.")
    found += await judge(browser, script, "connect-wrong", tmp_path)
    assert found == []
    await focused(browser, "role", "alert")

    await browser.click(".problems a")
    await focused(browser, "name", "region")
    await browser.evaluate("document.querySelector('select').value = 'eu'")
    await browser.type("#field-team", "tools")
    await browser.click("button")
    await browser.until_text("this is eu.localhost")
    ours = [one for one in browser.complaints if one.startswith(site.base)]
    assert [one for one in ours if "422" not in one] == []
    (pending,) = site.flow.store.pending.values()
    assert pending.fields == {"region": "eu", "team": "tools"}


async def focused(browser: Chromium, attribute: str, value: str) -> None:
    """Wait until an element has the focus."""

    async def look() -> bool:
        seen = await browser.evaluate(f"document.activeElement.getAttribute('{attribute}')")
        return bool(seen == value)

    await eventually(look, what=f"the focus on {attribute}={value}")


def _provider() -> web.Application:
    async def authorize(request: web.Request) -> web.Response:
        return web.Response(text=f"this is {request.host}")

    app = web.Application()
    app.router.add_get("/authorize", authorize)
    return app


def _public(flow: Flow, base: str) -> web.Application:
    return create_public_app(
        PublicParts(
            public_url=base,
            store=flow.store,
            authorizer=flow.authorizer,
            redirection=flow.redirection,
            failures=flow.failures,
            providers=flow.providers.get,
            return_urls=lambda: (),
            clock=flow.clock,
            entropy=flow.entropy,
        )
    )


@asynccontextmanager
async def _served(app: web.Application, server: socket.socket | None = None) -> AsyncIterator[str]:
    """Serve an application; yield the origin."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    taken = server or socket.create_server(("127.0.0.1", 0))
    try:
        await web.SockSite(runner, taken).start()
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
    finally:
        await runner.cleanup()
