"""The whole daemon against django-oauth-toolkit: no discovery, rotation with reuse protection."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.support.django_toolkit.provider import DjangoToolkit
from tests.support.oauth_flow import browser_session
from tests.support.polling import eventually
from tests.support.tokenward import Tokenward, connect

ENOUGH_GENERATIONS = 5
LIFETIME = timedelta(seconds=3)


def provider_settings(server: DjangoToolkit) -> dict[str, Any]:
    """Return a provider entry with endpoints by hand."""
    return {
        "authorization_endpoint": server.authorization_endpoint,
        "token_endpoint": server.token_endpoint,
        "client_id": server.client_id,
        "client_secret": server.client_secret,
        "scopes": ["read"],
    }


async def test_django_accepts_every_token_served(daemon: Tokenward) -> None:
    """Connected by login, the API accepts each token served over several proactive refreshes."""
    with DjangoToolkit(
        redirect_uris=[daemon.redirect_uri], access_token_lifetime=LIFETIME, reuse_protection=True
    ) as server:
        daemon.settings["providers"] = {"django": provider_settings(server)}
        async with daemon:
            created = await daemon.create("django", id="django-1")
            async with browser_session() as browser:
                status, page = await connect(browser, created["connect_url"], server.login)
            assert (status, "Authorization completed" in page) == (200, True), page
            await read_through_refreshes(daemon, server, "django-1")
            shown = await daemon.connection("django-1")
        assert (shown["status"], shown["last_error"]) == ("active", None)
        sends = server.token_requests()
        assert len(sends) >= ENOUGH_GENERATIONS - 1
        assert set(sends.values()) == {1}
        statuses = {event.members["status"] for event in server.events("token_request.ended")}
        assert statuses == {200}


async def read_through_refreshes(daemon: Tokenward, server: DjangoToolkit, connection: str) -> None:
    """Use every token at the API until it has accepted several generations.

    This server ends an access token as it begins to answer the refresh that replaces it: whoever
    meets that moment asks with ``newer_than``, as after any 401.
    """
    accepted: set[int] = set()

    async def look() -> bool:
        served = (await daemon.token(connection)).body
        assert "warning" not in served
        if (await server.me(served["access_token"])).status == 200:
            accepted.add(served["generation"])
        else:
            query = f"?newer_than={served['generation']}"
            newer = (await daemon.token(connection, query)).body
            assert (await server.me(newer["access_token"])).status == 200
            accepted.add(newer["generation"])
        return len(accepted) >= ENOUGH_GENERATIONS

    await eventually(look, within=60)
