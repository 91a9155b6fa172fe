"""A strict authorization server that keeps exact books, fast enough for thousands of refreshes.

Every use of a refresh token rotates it; a spent one that comes again ends its grant at once, the
newest tokens included. It says who sent what: give each replica a token endpoint of its own.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

import orjson


@dataclass(slots=True)
class Grant:
    """One person's consent and the tokens of it that are good now."""

    number: int
    access_token: str = field(default="", repr=False)
    refresh_token: str = field(default="", repr=False)
    rotations: int = 0
    is_alive: bool = True
    code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """A spent refresh token that was sent again, and by whom."""

    grant: int
    token: str
    sender: str


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    form: dict[str, str]


class StrictServer:
    """Token, revocation and authorization endpoint on a free port of loopback.

    ``delay`` is asked before each token reply for the seconds it takes, after the rotation.
    The authorization page asks nobody: it says yes. ``listening`` is a socket to serve instead,
    which may be in another network namespace.
    """

    def __init__(
        self,
        *,
        expires_in: int = 3600,
        delay: Callable[[], float] = lambda: 0.0,
        listening: socket.socket | None = None,
    ) -> None:
        self._listening = listening
        self.expires_in = expires_in
        self.delay = delay
        self.grants: list[Grant] = []
        self.sends: Counter[str] = Counter()
        self.senders: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.revoked: set[str] = set()
        self.reuses: list[Reuse] = []
        self.rotations = 0
        self.refused = 0
        self.under_way = 0
        self._numbers = count(1)
        self._by_token: dict[str, Grant] = {}
        self._codes: dict[str, tuple[Grant, str]] = {}
        self._server: asyncio.Server | None = None
        self._answering = asyncio.Event()
        self._answering.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        listening = self._listening or socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._server = await asyncio.start_server(self._accept, sock=listening, backlog=1024)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def url(self, path: str) -> str:
        """Return the URL of a path."""
        if self._server is None:
            raise AssertionError("not started")
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}{path}"

    def provider(self, sender: str = "daemon", **more: Any) -> dict[str, Any]:
        """Return a provider entry; requests through it count for ``sender``."""
        return {
            "authorization_endpoint": self.url("/authorize"),
            "token_endpoint": self.url(f"/token/{sender}"),
            "revocation_endpoint": self.url("/revoke"),
            "client_id": "tokenward",
            "client_secret": "a secret that nobody checks",
            "scopes": ["read"],
            "rate": "100000/s",
            "concurrency": 1000,
            **more,
        }

    def grant(self) -> Grant:
        """Grant something as if somebody had connected, for an import."""
        made = Grant(len(self.grants) + 1)
        self.grants.append(made)
        self._renew(made)
        return made

    def grant_of(self, access_token: str) -> Grant | None:
        """Return the grant that an access token was given for, good or not."""
        return self._by_token.get(access_token)

    def is_good(self, access_token: str) -> bool:
        """Tell whether an access token is the newest of a living grant."""
        grant = self._by_token.get(access_token)
        return grant is not None and grant.is_alive and grant.access_token == access_token

    def sent_twice(self) -> dict[str, int]:
        """Return the refresh tokens that arrived more than once."""
        return {token: times for token, times in self.sends.items() if times > 1}

    def hold(self) -> None:
        """Keep token replies back, after the rotation, until :meth:`release`."""
        self._answering.clear()

    def release(self) -> None:
        """Let token replies go."""
        self._answering.set()

    def _renew(self, grant: Grant) -> None:
        number = next(self._numbers)
        grant.access_token = f"access-{grant.number}-{number}"
        grant.refresh_token = f"refresh-{grant.number}-{number}"
        self._by_token[grant.access_token] = self._by_token[grant.refresh_token] = grant

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("a connection is served by a task")
        self._tasks.add(task)
        self.under_way += 1
        try:
            request = await _read(reader)
            status, headers, body = self._answer(request)
            if request.path.startswith("/token"):
                await self._answering.wait()
                await asyncio.sleep(self.delay())
            lines = [
                f"HTTP/1.1 {status} Whatever",
                *headers,
                f"Content-Length: {len(body)}",
                "Connection: close",
            ]
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            await writer.drain()
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            self.under_way -= 1
            self._tasks.discard(task)
            with suppress(OSError):
                writer.close()

    def _answer(self, request: _Request) -> tuple[int, list[str], bytes]:
        place, _, sender = request.path.removeprefix("/").partition("/")
        match place:
            case "authorize":
                return self._authorize(request.form)
            case "revoke":
                return self._revoke(request.form)
            case "token" if request.form.get("grant_type") == "refresh_token":
                return self._refresh(request.form["refresh_token"], sender)
            case "token":
                return self._exchange(request.form)
            case _:
                return _json(404, {})

    def _authorize(self, query: dict[str, str]) -> tuple[int, list[str], bytes]:
        grant = Grant(len(self.grants) + 1)
        code = f"code-{next(self._numbers)}"
        grant.code = code
        self._codes[code] = (grant, query.get("code_challenge", ""))
        back = urlencode({"code": code, "state": query["state"]})
        return 302, [f"Location: {query['redirect_uri']}?{back}"], b""

    def _exchange(self, form: dict[str, str]) -> tuple[int, list[str], bytes]:
        code = form.get("code", "")
        self.codes[code] += 1
        grant, challenge = self._codes.get(code, (None, ""))
        if grant is None or self.codes[code] > 1 or _challenge(form) != challenge:
            self.refused += 1
            return _json(400, {"error": "invalid_grant"})
        grant.number = len(self.grants) + 1
        self.grants.append(grant)
        self._renew(grant)
        return self._tokens(grant)

    def _refresh(self, token: str, sender: str) -> tuple[int, list[str], bytes]:
        self.sends[token] += 1
        self.senders[sender] += 1
        grant = self._by_token.get(token)
        if grant is None or not grant.is_alive or grant.refresh_token != token:
            self.refused += 1
            if grant is not None and grant.refresh_token != token:
                self.reuses.append(Reuse(grant=grant.number, token=token, sender=sender))
                grant.is_alive = False
            return _json(400, {"error": "invalid_grant"})
        self.rotations += 1
        grant.rotations += 1
        self._renew(grant)
        return self._tokens(grant)

    def _revoke(self, form: dict[str, str]) -> tuple[int, list[str], bytes]:
        token = form.get("token", "")
        self.revoked.add(token)
        grant = self._by_token.get(token)
        # Revoking a refresh token, old or new, ends the grant; an access token only itself.
        if grant is not None and token.startswith("refresh"):
            grant.is_alive = False
        return _json(200, {})

    def _tokens(self, grant: Grant) -> tuple[int, list[str], bytes]:
        return _json(
            200,
            {
                "access_token": grant.access_token,
                "refresh_token": grant.refresh_token,
                "token_type": "Bearer",
                "expires_in": self.expires_in,
            },
        )


def _json(status: int, members: dict[str, object]) -> tuple[int, list[str], bytes]:
    return status, ["Content-Type: application/json"], orjson.dumps(members)


def _challenge(form: dict[str, str]) -> str:
    """Return the S256 challenge of the verifier that came with a code (RFC 7636 4.6)."""
    digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


async def _read(reader: asyncio.StreamReader) -> _Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    parts = urlsplit(target)
    return _Request(method, parts.path, dict(parse_qsl(parts.query or body.decode())))
