"""An authorization server and its API that do what a test says: any account, any reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import count
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from aiohttp import web


@dataclass(slots=True)
class Person:
    """Somebody with an account. ``me`` is what the API says of them, ``status`` with which."""

    name: str
    me: object = None
    status: int = 200
    extra: Mapping[str, object] = field(default_factory=dict)


class ObligingProvider:
    """Endpoints on a free port of loopback. Whoever opens ``/authorize`` is ``self.visitor``.

    Every token holds ``marker``, so that a search finds what was let out. A refresh token is spent
    by its use. ``before_reply`` is awaited between a grant and its reply.
    """

    marker = "Pl4ntedT0ken"

    def __init__(self) -> None:
        self.people: dict[str, Person] = {}
        self.visitor = ""
        self.callback: dict[str, str] = {}
        self.revoked: list[str] = []
        self.revocation_status = 200
        self.exchanges = 0
        self.refreshes = 0
        self.grants: dict[str, str] = {}
        self.before_reply: Callable[[str], Any] | None = None
        self._numbers = count(1)
        self._runner: web.AppRunner | None = None
        self._port = 0

    def add(self, name: str, me: object = None, **more: Any) -> Person:
        """Add somebody; the API says ``{"id": name, "name": name}`` unless told otherwise."""
        person = Person(name, {"id": name, "name": name} if me is None else me, **more)
        self.people[name] = person
        return person

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_get("/authorize", self._authorize)
        app.router.add_post("/token", self._token)
        app.router.add_post("/revoke", self._revoke)
        app.router.add_get("/me", self._me)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def base_url(self) -> str:
        """Return where it listens."""
        return f"http://127.0.0.1:{self._port}"

    def provider(self, **more: Any) -> dict[str, Any]:
        """Return a provider entry."""
        return {
            "authorization_endpoint": f"{self.base_url}/authorize",
            "token_endpoint": f"{self.base_url}/token",
            "revocation_endpoint": f"{self.base_url}/revoke",
            "client_id": "tokenward",
            "client_secret": "Pl4ntedS3cret",
            "scopes": ["read"],
            "rate": "1000/s",
            "api_base_url": self.base_url,
            "allow_private_hosts": True,
            "test": {"path": "/me"},
            "label": "{me.name}",
            "account_id": "me.id",
            **more,
        }

    async def login(self, url: str, *, session: Any) -> str:
        """Say yes as the visitor, or as who ``as`` in the URL names; return the callback URL."""
        async with session.get(url, allow_redirects=False) as answer:
            return str(answer.headers["Location"])

    def person_of(self, token: str) -> Person | None:
        """Return whose token this is."""
        parts = token.split(".")
        return self.people.get(parts[1]) if parts[0] == self.marker else None

    def alive(self) -> set[str]:
        """Return the access tokens of the grants that could still be refreshed."""
        return set(self.grants.values())

    async def _authorize(self, request: web.Request) -> web.Response:
        who = request.query.get("as", self.visitor)
        query = {
            "code": f"{self.marker}.{who}.{next(self._numbers)}.code",
            "state": request.query["state"],
            **self.callback,
        }
        raise web.HTTPFound(f"{request.query['redirect_uri']}?{urlencode(query)}")

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        if form["grant_type"] == "authorization_code":
            self.exchanges += 1
            given = str(form["code"])
        else:
            self.refreshes += 1
            given = str(form["refresh_token"])
        person = self.person_of(given)
        is_refresh = form["grant_type"] == "refresh_token"
        if person is None or (is_refresh and self.grants.pop(given, None) is None):
            return web.json_response({"error": "invalid_grant"}, status=400)
        number = next(self._numbers)
        access_token = f"{self.marker}.{person.name}.{number}.at"
        refresh_token = f"{self.marker}.{person.name}.{number}.rt"
        self.grants[refresh_token] = access_token
        if self.before_reply is not None:
            await self.before_reply(str(form["grant_type"]))
        return web.json_response(
            {
                "access_token": access_token,
                "refresh_token": refresh_token,
                "token_type": "Bearer",
                "expires_in": 3600,
                **person.extra,
            }
        )

    async def _revoke(self, request: web.Request) -> web.Response:
        form = await request.post()
        if self.revocation_status == HTTPStatus.OK:
            self.revoked.append(str(form["token"]))
            self.grants.pop(str(form["token"]), None)
        return web.Response(status=self.revocation_status)

    async def _me(self, request: web.Request) -> web.Response:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        person = self.person_of(token)
        if person is None:
            return web.Response(status=401)
        if isinstance(person.me, bytes):
            return web.Response(
                body=person.me, status=person.status, content_type="application/json"
            )
        return web.json_response(person.me, status=person.status)
