"""A reply that was received is never lost: killed between the reply and the database's commit."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.support.oauth_flow import browser_session
from tests.support.oidc_provider import OidcProvider
from tests.support.polling import eventually
from tests.support.tokenward import Tokenward, connect
from tests.support.wire import Wire

KEY = "A" * 43 + "="
# Nothing becomes due by itself while the tests look.
HOUR = timedelta(hours=1)


def settings_for(server: OidcProvider, wire_url: str) -> dict[str, Any]:
    """Return settings with the database behind a wire that can be cut."""
    return {
        "database": {"url": wire_url},
        "encryption": {"keys": [{"id": "k1", "secret": KEY}]},
        "providers": {
            "acme": {
                "issuer": server.issuer,
                "client_id": server.client_id,
                "client_secret": server.client_secret,
                "scopes": ["openid", "offline_access"],
                "authorization_params": {"prompt": "consent"},
            }
        },
    }


async def journalled(daemon: Tokenward) -> bool:
    """Tell whether a reply is on the disk and not in the database."""
    return (await daemon.metrics())["tokenward_journal_entries"] == 1


async def killed_holding_a_reply(
    daemon: Tokenward, server: OidcProvider, wire: Wire, grant_type: str
) -> None:
    """Cut the database once the request has arrived; kill when the reply is in the journal."""

    async def arrived() -> bool:
        received = server.events("token_request.received")
        return any(event.members.get("grant_type") == grant_type for event in received)

    await eventually(arrived, what="the token request")
    await wire.cut()
    await eventually(lambda: journalled(daemon), what="the reply in the journal")
    daemon.signal(signal.SIGKILL)
    assert await daemon.ended() == -signal.SIGKILL
    await wire.mend()


async def test_a_refresh_reply_survives_a_kill_while_the_database_is_away(
    tmp_path: Path, database_url: str
) -> None:
    """Received, journalled, killed: the next start stores it, and no token is sent twice."""
    daemon = Tokenward(tmp_path)
    async with Wire(database_url) as wire:
        with OidcProvider(
            redirect_uris=[daemon.redirect_uri], access_token_lifetime=HOUR
        ) as server:
            daemon.settings.update(settings_for(server, wire.url))
            async with daemon:
                created = await daemon.create("acme", id="acme-1")
                async with browser_session() as browser:
                    await connect(browser, created["connect_url"], server.login)
                server.inject(count=1, grant_type="refresh_token", delay_ms=700)
                asking = asyncio.create_task(
                    daemon.request("POST", "/v1/connections/acme-1/refresh")
                )
                await killed_holding_a_reply(daemon, server, wire, "refresh_token")
                await asyncio.gather(asking, return_exceptions=True)

                await daemon.start()
                shown = await daemon.connection("acme-1")
                assert (shown["generation"], shown["status"]) == (2, "active")
                token = (await daemon.token("acme-1")).body["access_token"]
                assert await server.is_active(token)
                forced = await daemon.request("POST", "/v1/connections/acme-1/refresh")
                assert (forced.status, forced.body["generation"]) == (200, 3)
                assert (await daemon.metrics())["tokenward_journal_entries"] == 0
            assert len(daemon.logged("journalled_reply_recovered")) == 1
            assert set(server.token_requests().values()) == {1}
            assert server.events("grant.revoked") == []


async def test_an_exchange_reply_survives_a_kill_while_the_database_is_away(
    tmp_path: Path, database_url: str
) -> None:
    """The person need not come back: the connection is active after the next start."""
    daemon = Tokenward(tmp_path)
    async with Wire(database_url) as wire:
        with OidcProvider(
            redirect_uris=[daemon.redirect_uri], access_token_lifetime=HOUR
        ) as server:
            daemon.settings.update(settings_for(server, wire.url))
            async with daemon:
                created = await daemon.create("acme", id="acme-1")
                server.inject(count=1, grant_type="authorization_code", delay_ms=700)
                async with browser_session() as browser:
                    going = asyncio.create_task(
                        connect(browser, created["connect_url"], server.login)
                    )
                    await killed_holding_a_reply(daemon, server, wire, "authorization_code")
                    await asyncio.gather(going, return_exceptions=True)

                await daemon.start()
                shown = await daemon.connection("acme-1")
                assert (shown["generation"], shown["status"]) == (1, "active")
                token = (await daemon.token("acme-1")).body["access_token"]
                assert await server.is_active(token)
            assert len(daemon.logged("journalled_reply_recovered")) == 1
