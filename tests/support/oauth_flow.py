"""An OAuth client and a browser in a few lines, for talking to real authorization servers."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

from aiohttp import ClientSession, CookieJar, encode_basic_auth

from daemon.domain.clock import Entropy, system_entropy

# More pages than any login has: a loop is a bug of the script, not a reason to hang.
_MOST_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowClient:
    """A registered client, able to run the code flow with PKCE (RFC 6749 4.1, RFC 7636).

    With a secret it authenticates by client_secret_basic, without one by none.
    """

    client_id: str
    client_secret: str | None = field(repr=False)
    redirect_uri: str
    authorization_endpoint: str
    token_endpoint: str

    def authorization_url(self, attempt: Attempt, *scopes: str, **extra: str) -> str:
        """Return where to send the browser."""
        query = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "scope": " ".join(scopes),
            "state": attempt.state,
            "code_challenge": attempt.challenge,
            "code_challenge_method": "S256",
            **extra,
        }
        return f"{self.authorization_endpoint}?{urlencode(query)}"

    async def exchange(self, attempt: Attempt, callback_url: str) -> Reply:
        """Exchange the code of a callback URL for tokens."""
        return await self.token_request(
            grant_type="authorization_code",
            code=query_of(callback_url)["code"],
            redirect_uri=self.redirect_uri,
            code_verifier=attempt.verifier,
        )

    async def refresh(self, refresh_token: str) -> Reply:
        """Send a refresh token (RFC 6749 section 6)."""
        return await self.token_request(grant_type="refresh_token", refresh_token=refresh_token)

    async def token_request(self, **form: str) -> Reply:
        """Send a token request; cancel it to give up."""
        return await self.post(self.token_endpoint, **form)

    async def post(self, url: str, **form: str) -> Reply:
        """Send a form as this client and read the JSON reply; an empty one is ``{}``."""
        headers = {}
        if self.client_secret is None:
            form["client_id"] = self.client_id
        else:
            # Nothing in our secrets needs the encoding of RFC 6749 2.3.1.
            headers["Authorization"] = encode_basic_auth(self.client_id, self.client_secret)
        async with (
            ClientSession(headers=headers) as session,
            session.post(url, data=form, allow_redirects=False) as response,
        ):
            body = await response.json(content_type=None) if await response.read() else {}
            return Reply(response.status, body or {})


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run through the code flow."""

    state: str
    verifier: str = field(repr=False)

    @classmethod
    def begin(cls, entropy: Entropy = system_entropy) -> Attempt:
        """Return an attempt with new values."""
        return cls(_base64url(entropy(16)), _base64url(entropy(32)))

    @property
    def challenge(self) -> str:
        """Return the S256 challenge."""
        return _base64url(hashlib.sha256(self.verifier.encode()).digest())


@dataclass(frozen=True, slots=True)
class Reply:
    """A JSON reply."""

    status: int
    body: Mapping[str, Any] = field(repr=False)

    @property
    def access_token(self) -> str:
        """Return the access token of a successful reply."""
        return str(self.body["access_token"])

    @property
    def refresh_token(self) -> str:
        """Return the refresh token of a successful reply."""
        return str(self.body["refresh_token"])


def browser_session() -> ClientSession:
    """Return a session that keeps cookies of IP addresses too, as browsers do."""
    return ClientSession(cookie_jar=CookieJar(unsafe=True))


async def click_through(browser: ClientSession, url: str, answers: Mapping[str, str]) -> str:
    """Follow redirects and submit every form with ``answers`` until another origin is named.

    Returns the URL there without going to it: for an authorization URL, the callback URL.
    """
    home = _origin(url)
    method, form = "GET", None
    for _ in range(_MOST_STEPS):
        async with browser.request(method, url, data=form, allow_redirects=False) as response:
            page = await response.text()
            if response.status in {301, 302, 303, 307}:
                url, method, form = urljoin(url, response.headers["Location"]), "GET", None
                if _origin(url) != home:
                    return url
                continue
            if response.status != 200:
                raise AssertionError(f"{response.status} at {_without_query(url)}: {page[:500]}")
            action, fields = form_of(page)
            url, method = urljoin(url, action), "POST"
            form = {name: answers.get(name, value) for name, value in fields.items()}
    raise AssertionError(f"no end after {_MOST_STEPS} pages, now at {_without_query(url)}")


def form_of(page: str) -> tuple[str, dict[str, str]]:
    """Return the action and the named inputs of a page's first form."""
    parser = _FormParser()
    parser.feed(page)
    if parser.action is None:
        raise AssertionError(f"no form in {page[:500]}")
    return parser.action, parser.fields


def query_of(url: str) -> dict[str, str]:
    """Return the query of a URL, one value for each name."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


class _FormParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the first form's action and every named input."""
        values = dict(attrs)
        if tag == "form" and self.action is None:
            self.action = values.get("action") or ""
        name = values.get("name")
        if tag == "input" and name:
            self.fields[name] = values.get("value") or ""


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _without_query(url: str) -> str:
    return url.partition("?")[0]


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode("ascii").rstrip("=")
