"""oidc-provider for tests: strict rotation, scripted login, events counted, faults on order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import ClientSession

from daemon.demo.authorization_server.child import Event
from daemon.demo.authorization_server.server import (
    AuthorizationServer,
    ServerSettings,
    confidential_client,
)
from daemon.domain.clock import system_entropy
from daemon.domain.provider import ClientAuthentication
from tests.support.oauth_flow import (
    Attempt,
    FlowClient,
    Reply,
    browser_session,
    click_through,
)
from tests.support.server_events import EventLog

_BASIC = ClientAuthentication.CLIENT_SECRET_BASIC
REDIRECT_URI = "http://localhost:7421/callback"
# In the checkout: installed once, whatever the user and the temporary directory of a run.
CACHE = Path(__file__).parents[2] / ".cache" / "authorization-server"


class OidcProvider:
    """A running oidc-provider and what a test wants of it.

    Every refresh rotates, and any reuse of a refresh token revokes its grant, unless ``rotate``
    is off. Methods without ``async`` block for a millisecond, :meth:`start` for some tenths of
    a second. ``redirect_uris`` are compared byte for byte: an ephemeral port must be known first.
    """

    def __init__(
        self,
        *,
        redirect_uris: Sequence[str] = (REDIRECT_URI,),
        access_token_lifetime: timedelta = timedelta(seconds=5),
        token_endpoint_auth_method: ClientAuthentication = _BASIC,
        rotate: bool = True,
        state_file: Path | None = None,
    ) -> None:
        client = replace(
            confidential_client("tokenward", redirect_uris[0], entropy=system_entropy),
            redirect_uris=tuple(redirect_uris),
            token_endpoint_auth_method=token_endpoint_auth_method,
        )
        if token_endpoint_auth_method is ClientAuthentication.NONE:
            client = replace(client, client_secret=None)
        settings = ServerSettings(
            clients=(client,),
            access_token_lifetime=access_token_lifetime,
            rotate=rotate,
            state_file=state_file,
        )
        self._log = EventLog()
        self._client = client
        self._server = AuthorizationServer(settings, CACHE, on_event=self._log.record)

    def start(self) -> None:
        """Start; after :meth:`stop`, again on the same port, with what ``state_file`` kept."""
        self._server.start()

    def stop(self) -> None:
        """End the server at once: it may be started again."""
        self._server.stop()

    @property
    def issuer(self) -> str:
        """Return the issuer identifier; discovery is below it."""
        return self._server.issuer

    @property
    def client_id(self) -> str:
        """Return the client's id."""
        return self._client.client_id

    @property
    def client_secret(self) -> str | None:
        """Return the client's secret; ``None`` for a public client."""
        return self._client.client_secret

    def provider(self, **more: Any) -> dict[str, Any]:
        """Return a provider entry of the configuration for this server, found by discovery."""
        return {
            "issuer": self.issuer,
            "client_id": self.client_id,
            "client_secret": self.client_secret,
            "scopes": ["openid", "offline_access"],
            "authorization_params": {"prompt": "consent"},
            **more,
        }

    @property
    def client(self) -> FlowClient:
        """Return a client of our own with the same registration, to compare with."""
        return FlowClient(
            client_id=self.client_id,
            client_secret=self.client_secret,
            redirect_uri=self._client.redirect_uris[0],
            authorization_endpoint=f"{self.issuer}/auth",
            token_endpoint=f"{self.issuer}/token",
        )

    async def login(
        self, authorize_url: str, *, session: ClientSession | None = None, account: str = "alice"
    ) -> str:
        """Log in and consent as a person would; return the callback URL without going there.

        ``session`` is the browser (:func:`tests.support.oauth_flow.browser_session`) where one
        is to be shared with other sites; else a new one is used.
        """
        answers = {"login": account, "password": "any"}
        if session is not None:
            return await click_through(session, authorize_url, answers)
        async with browser_session() as browser:
            return await click_through(browser, authorize_url, answers)

    async def connect(self, *scopes: str, account: str = "alice") -> Reply:
        """Run the whole code flow with our own client; return the token reply."""
        attempt = Attempt.begin()
        wanted = scopes or ("openid", "offline_access")
        url = self.client.authorization_url(attempt, *wanted, prompt="consent")
        return await self.client.exchange(attempt, await self.login(url, account=account))

    async def introspect(self, token: str) -> Reply:
        """Ask the server about a token (RFC 7662)."""
        url = f"{self.issuer}/token/introspection"
        return await self.client.post(url, token=token)

    async def is_active(self, token: str) -> bool:
        """Tell whether the server accepts a token now."""
        return bool((await self.introspect(token)).body["active"])

    async def revoke(self, token: str) -> Reply:
        """Revoke one token, as a client does (RFC 7009)."""
        url = f"{self.issuer}/token/revocation"
        return await self.client.post(url, token=token)

    def revoke_grants(self) -> int:
        """Withdraw every consent, as if each person had; return how many there were.

        Does not count as ``grant.revoked``: those are the server's own reactions to reuse.
        """
        return int(str(self._server.command("revoke_grants")))

    def events(self, *names: str) -> list[Event]:
        """Return what happened until now, with these names or all: see ``events.mjs``."""
        self._server.command("sync")
        return self._log.named(*names)

    def token_requests(self) -> Counter[str]:
        """Count refresh requests by digest of the refresh token: see :class:`EventLog`."""
        self._server.command("sync")
        return self._log.refresh_requests()

    def inject(self, **fault: object) -> None:
        """Spoil the next token requests: see ``faults.mjs`` for what can be asked for.

        For example ``count=2, action="answer", status=503, headers={"Retry-After": "1"}``,
        ``delay_ms=500``, ``action="hang"``, or ``phase="after", action="reset"``: the server
        rotates, and the reply is lost.
        """
        self._server.command("inject", **fault)

    def clear_faults(self) -> None:
        """Forget the faults that were not met."""
        self._server.command("clear_faults")

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()
