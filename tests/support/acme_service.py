"""An authorization server and its API on one port, whose answers a test lines up beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlencode, urlsplit

from aiohttp import ClientSession, web

from tests.support.oauth_flow import browser_session


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that arrived at the API."""

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)


class AcmeService:
    """Whoever authorizes is ``account``. Refresh tokens rotate; a used one is ``invalid_grant``.

    ``token_faults`` and ``revocation_statuses`` are used up one by one before the good answers.
    ``lifetime`` is sent as ``expires_in``; ``None`` leaves it out.
    """

    secret = "acme-secret-canary"

    def __init__(self) -> None:
        self.account = "1"
        self.lifetime: int | None = 3600
        self.denies = False
        self.access: dict[str, str] = {}
        self.refresh: dict[str, str] = {}
        self.authorized: list[dict[str, str]] = []
        self.token_requests: list[dict[str, str]] = []
        self.revocations: list[tuple[str, str, int]] = []
        self.token_faults: list[tuple[int, dict[str, str]]] = []
        self.revocation_statuses: list[int] = []
        self.seen: list[Seen] = []
        self._codes: dict[str, str] = {}
        self._numbers = count(1)
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        """Listen."""
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_get("/authorize", self._authorize)
        app.router.add_post("/token", self._token)
        app.router.add_post("/revoke", self._revoke)
        app.router.add_route("*", "/{path:.*}", self._api)
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

    @property
    def url(self) -> str:
        """Return where it listens."""
        if self._runner is None:
            raise AssertionError("not started")
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def provider(self, **more: Any) -> dict[str, Any]:
        """Return a provider entry; ``None`` leaves a key out."""
        entry = {
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "revocation_endpoint": f"{self.url}/revoke",
            "client_id": "acme-client",
            "client_secret": self.secret,
            "scopes": ["read", "write"],
            "api_base_url": self.url,
            "allow_private_hosts": True,
            "test": {"method": "GET", "path": "/me"},
            "label": "{me.name} ({me.email})",
            "account_id": "me.id",
            **more,
        }
        return {key: value for key, value in entry.items() if value is not None}

    def grant(self, account: str) -> dict[str, object]:
        """Return a token reply for an account; its tokens are good here."""
        number = next(self._numbers)
        access_token, refresh_token = f"acme-at-{number}-canary", f"acme-rt-{number}-canary"
        self.access[access_token] = self.refresh[refresh_token] = account
        reply: dict[str, object] = {
            "access_token": access_token,
            "refresh_token": refresh_token,
            "token_type": "Bearer",
        }
        return reply if self.lifetime is None else {**reply, "expires_in": self.lifetime}

    def imported(self, account: str) -> dict[str, object]:
        """Return the ``tokens`` member that brings a grant of an account."""
        reply = self.grant(account)
        return {
            "refresh_token": reply["refresh_token"],
            "access_token": reply["access_token"],
            "expires_at": "2126-01-01T00:00:00Z",
        }

    def end_access(self, account: str) -> None:
        """Let the API refuse the access tokens of an account from now on."""
        self.access = {token: who for token, who in self.access.items() if who != account}

    def end_grant(self, account: str) -> None:
        """Refuse refresh tokens, too."""
        self.end_access(account)
        self.refresh = {token: who for token, who in self.refresh.items() if who != account}

    @property
    def secrets(self) -> list[str]:
        """Return what must be found nowhere."""
        return [self.secret, "acme-at-", "acme-rt-"]

    async def _authorize(self, request: web.Request) -> web.Response:
        query = dict(request.query)
        self.authorized.append(query)
        answer = {"state": query["state"]}
        if self.denies:
            answer["error"] = "access_denied"
        else:
            answer["code"] = f"acme-code-{next(self._numbers)}"
            self._codes[answer["code"]] = self.account
        raise web.HTTPFound(f"{query['redirect_uri']}?{urlencode(answer)}")

    async def _token(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.token_requests.append(form)
        if self.token_faults:
            status, body = self.token_faults.pop(0)
            return web.json_response(body, status=status)
        is_code = form["grant_type"] == "authorization_code"
        spent = self._codes if is_code else self.refresh
        account = spent.pop(form["code" if is_code else "refresh_token"], None)
        if account is None:
            return web.json_response({"error": "invalid_grant"}, status=400)
        return web.json_response(self.grant(account))

    async def _revoke(self, request: web.Request) -> web.Response:
        form = await request.post()
        status = self.revocation_statuses.pop(0) if self.revocation_statuses else 200
        hint = str(form.get("token_type_hint", ""))
        self.revocations.append((str(form["token"]), hint, status))
        return web.Response(status=status)

    async def _api(self, request: web.Request) -> web.Response:
        self.seen.append(Seen(request.method, request.raw_path, dict(request.headers)))
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        account = self.access.get(token)
        if account is None:
            return web.Response(status=401)
        if request.path == "/me":
            name = {"id": account, "name": f"Name {account}", "email": f"{account}@acme.example"}
            return web.json_response(name)
        return web.json_response({"method": request.method, "length": len(await request.read())})


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """How a person's way ended: status and text of the last answer, and where it sends them."""

    status: int
    text: str
    location: str | None


async def walk(connect_url: str, form: Mapping[str, str] | None = None) -> Walk:
    """Go through a connect URL; the provider asks nothing. Our own last page is opened."""
    async with browser_session() as browser:
        async with browser.post(connect_url, data=form or {}, allow_redirects=False) as begun:
            if begun.status != 303:
                return Walk(status=begun.status, text=await begun.text(), location=None)
            location = begun.headers["Location"]
        async with browser.get(location, allow_redirects=False) as answered:
            callback = answered.headers["Location"]
        return await _last(browser, callback)


async def _last(browser: ClientSession, callback: str) -> Walk:
    async with browser.get(callback, allow_redirects=False) as answer:
        text, location = await answer.text(), answer.headers.get("Location")
    if location is not None and location.startswith("/"):
        parts = urlsplit(callback)
        async with browser.get(f"{parts.scheme}://{parts.netloc}{location}") as page:
            text = await page.text()
    return Walk(status=answer.status, text=text, location=location)


def query_of(url: str) -> dict[str, str]:
    """Return the parameters in a URL's query."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
