"""django-oauth-toolkit for tests: rotation with or without grace, scripted login, an API."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import ClientSession

from daemon.demo.authorization_server.child import Event, LineChild
from daemon.demo.authorization_server.server import confidential_client
from daemon.domain.clock import system_entropy
from tests.support.oauth_flow import (
    Attempt,
    FlowClient,
    Reply,
    browser_session,
    click_through,
)
from tests.support.oidc_provider import REDIRECT_URI
from tests.support.server_events import EventLog

_PROGRAM = Path(__file__).with_name("server.py")
_PASSWORD = "correct horse battery staple"


class DjangoToolkit:
    """A running django-oauth-toolkit and what a test wants of it.

    It has no issuer and no discovery: endpoints are configured by hand. Within ``grace`` a used
    refresh token brings its successor once more; after it, with ``reuse_protection``, its use
    revokes the whole family. Its users are alice and bob.
    """

    def __init__(
        self,
        *,
        redirect_uris: Sequence[str] = (REDIRECT_URI,),
        access_token_lifetime: timedelta = timedelta(seconds=5),
        rotate: bool = True,
        grace: timedelta = timedelta(0),
        reuse_protection: bool = False,
    ) -> None:
        client = confidential_client("tokenward", redirect_uris[0], entropy=system_entropy)
        self.client_id = client.client_id
        self.client_secret = str(client.client_secret)
        self._redirect_uris = tuple(redirect_uris)
        self._behaviour = {
            "access_token_seconds": int(access_token_lifetime.total_seconds()),
            "rotate": rotate,
            "grace_seconds": int(grace.total_seconds()),
            "reuse_protection": reuse_protection,
        }
        self._log = EventLog()
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._port = 0
        self._child = LineChild(
            "django-oauth-toolkit server",
            [sys.executable, str(_PROGRAM)],
            on_event=self._log.record,
        )

    def start(self) -> None:
        """Start; after :meth:`stop`, again on the same port and with the same data."""
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="django-toolkit-")
        listening = self._child.start(
            {
                "port": self._port,
                "database": str(Path(self._directory.name) / "db.sqlite3"),
                "client_id": self.client_id,
                "client_secret": self.client_secret,
                "redirect_uris": self._redirect_uris,
                "password": _PASSWORD,
                **self._behaviour,
            }
        )
        self._port = int(str(listening.members["port"]))

    def stop(self) -> None:
        """End the server; its data stay until :meth:`close`."""
        self._child.stop()

    def close(self) -> None:
        """End the server and remove its data."""
        self.stop()
        if self._directory is not None:
            self._directory.cleanup()
        self._directory = None

    @property
    def base_url(self) -> str:
        """Return the server's origin."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def authorization_endpoint(self) -> str:
        """Return the authorization endpoint."""
        return f"{self.base_url}/o/authorize/"

    @property
    def token_endpoint(self) -> str:
        """Return the token endpoint."""
        return f"{self.base_url}/o/token/"

    @property
    def revocation_endpoint(self) -> str:
        """Return the revocation endpoint."""
        return f"{self.base_url}/o/revoke_token/"

    @property
    def introspection_endpoint(self) -> str:
        """Return the introspection endpoint."""
        return f"{self.base_url}/o/introspect/"

    @property
    def client(self) -> FlowClient:
        """Return a client of our own with the same registration, to compare with."""
        return FlowClient(
            client_id=self.client_id,
            client_secret=self.client_secret,
            redirect_uri=self._redirect_uris[0],
            authorization_endpoint=self.authorization_endpoint,
            token_endpoint=self.token_endpoint,
        )

    async def login(
        self, authorize_url: str, *, session: ClientSession | None = None, user: str = "alice"
    ) -> str:
        """Log in as ``user`` and allow; return the callback URL without going there."""
        answers = {"username": user, "password": _PASSWORD}
        if session is not None:
            return await click_through(session, authorize_url, answers)
        async with browser_session() as browser:
            return await click_through(browser, authorize_url, answers)

    async def connect(self, *scopes: str) -> Reply:
        """Run the whole code flow with our own client; return the token reply."""
        attempt = Attempt.begin()
        url = self.client.authorization_url(attempt, *(scopes or ("read",)))
        return await self.client.exchange(attempt, await self.login(url))

    async def introspect(self, token: str) -> Reply:
        """Ask the server about a token (RFC 7662)."""
        return await self.client.post(self.introspection_endpoint, token=token)

    async def is_active(self, token: str) -> bool:
        """Tell whether the server accepts a token now."""
        return bool((await self.introspect(token)).body["active"])

    async def me(self, token: str) -> Reply:
        """Call the API with a token: 200 with ``name`` and ``email``, or 401."""
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            ClientSession(headers=headers) as session,
            session.get(f"{self.base_url}/me") as response,
        ):
            is_json = response.content_type == "application/json"
            return Reply(response.status, await response.json() if is_json else {})

    def revoke_grants(self) -> int:
        """Revoke every refresh token, as if the user had; return how many were live."""
        return int(str(self._child.command("revoke_grants")))

    def expire_access_tokens(self) -> int:
        """End every access token before its time; return how many were live."""
        return int(str(self._child.command("expire_access_tokens")))

    def events(self, *names: str) -> list[Event]:
        """Return the token requests until now: ``token_request.received`` and ``.ended``."""
        self._child.command("sync")
        return self._log.named(*names)

    def token_requests(self) -> Counter[str]:
        """Count refresh requests by digest of the refresh token: see :class:`EventLog`."""
        self._child.command("sync")
        return self._log.refresh_requests()

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
        """Stop and remove the data."""
        self.close()
