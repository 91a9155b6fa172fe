"""The whole daemon against the certified oidc-provider: strict rotation, tokens of 5 s."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.support.oauth_flow import browser_session
from tests.support.oidc_provider import OidcProvider
from tests.support.polling import eventually
from tests.support.postgres import Cluster
from tests.support.tokenward import Tokenward, connect

ENOUGH_REFRESHES = 5


def provider_settings(server: OidcProvider, **more: Any) -> dict[str, Any]:
    """Return a provider entry for the server, found by discovery."""
    return {
        "issuer": server.issuer,
        "client_id": server.client_id,
        "client_secret": server.client_secret,
        "scopes": ["openid", "offline_access"],
        "authorization_params": {"prompt": "consent"},
        **more,
    }


async def connect_acme(daemon: Tokenward, server: OidcProvider, connection: str) -> None:
    """Connect by scripted login."""
    created = await daemon.create("acme", id=connection)
    async with browser_session() as browser:
        status, page = await connect(browser, created["connect_url"], server.login)
    assert (status, "Authorization completed" in page) == (200, True), page


async def test_a_connection_stays_fresh_through_refreshes_and_a_restart(tmp_path: Path) -> None:
    """Connected once, every served token is good, over refreshes and a restart."""
    daemon = Tokenward(tmp_path)
    with OidcProvider(redirect_uris=[daemon.redirect_uri]) as server:
        daemon.settings["providers"] = {"acme": provider_settings(server)}
        async with daemon:
            await connect_acme(daemon, server, "acme-1")
            first = await read_until(daemon, server, "acme-1", generation=ENOUGH_REFRESHES)
            assert await daemon.stop() == 0
            await daemon.start()
            again = await read_until(daemon, server, "acme-1", generation=first + ENOUGH_REFRESHES)
            shown = await daemon.connection("acme-1")
            metrics = await daemon.metrics()
        assert again > first
        assert shown["status"] == "active"
        assert shown["last_error"] is None
        assert metrics['tokenward_refreshes_total{outcome="success",provider="acme"}'] >= 4
        assert server.events("grant.revoked") == []
        assert set(server.token_requests().values()) == {1}


async def read_until(
    daemon: Tokenward, server: OidcProvider, connection: str, *, generation: int
) -> int:
    """Read tokens until a generation, checking each new one at the server; return the last."""
    seen: set[str] = set()

    async def look() -> int | None:
        reply = await daemon.token(connection)
        assert reply.status == 200, reply.content
        body = reply.body
        if body["access_token"] not in seen:
            seen.add(body["access_token"])
            assert await server.is_active(body["access_token"])
        return body["generation"] if body["generation"] >= generation else None

    return await eventually(look, within=60)


async def test_three_replicas_never_send_one_refresh_token_twice(
    tmp_path: Path, postgres_cluster: Cluster, database_url: str
) -> None:
    """Three daemons on one database, hammered with forced refreshes, send each token once."""
    del postgres_cluster
    replicas = [Tokenward(tmp_path / name) for name in ("a", "b", "c")]
    redirect_uris = [replica.redirect_uri for replica in replicas]
    with OidcProvider(redirect_uris=redirect_uris) as server:
        for replica in replicas:
            replica.settings["database"] = {"url": database_url}
            replica.settings["encryption"] = {"keys": [{"id": "k1", "secret": "A" * 43 + "="}]}
            replica.settings["providers"] = {"acme": provider_settings(server, rate="1000/s")}
        try:
            await asyncio.gather(*(replica.start() for replica in replicas))
            names = [f"acme-{number}" for number in range(4)]
            await asyncio.gather(*(connect_acme(replicas[0], server, name) for name in names))
            await asyncio.gather(
                *(hammer(replica, name) for replica in replicas for name in names * 3)
            )
            for name in names:
                generations = {
                    (await replica.token(name)).body["generation"] for replica in replicas
                }
                assert max(generations) >= 8
                newest = (await replicas[1].token(name)).body["access_token"]
                assert await server.is_active(newest)
        finally:
            for replica in replicas:
                await replica.close()
        counts = server.token_requests()
        assert set(counts.values()) == {1}
        assert server.events("grant.revoked") == []
        assert len(server.events("grant.error")) == 0


async def hammer(replica: Tokenward, name: str) -> None:
    """Force refreshes in every way a caller has."""
    for round_number in range(8):
        generation = (await replica.token(name)).body["generation"]
        if round_number % 2:
            reply = await replica.token(name, f"?newer_than={generation}")
        else:
            reply = await replica.request("POST", f"/v1/connections/{name}/refresh")
        assert reply.status == 200, reply.content
