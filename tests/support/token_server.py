"""A token endpoint whose every reply a test decides, to the byte where it wants to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import count
from typing import Any
from urllib.parse import parse_qsl

import orjson

from tests.support.raw_server import Answer, RawServer, Wire, replies

JSON = "Content-Type: application/json"


class TokenServer(RawServer):
    """Grants ``{prefix}access-1`` and ``{prefix}refresh-1``, then the next pair, and so on.

    ``answer`` may be replaced between requests; ``grant`` puts things right again. ``members``
    are those of a granting reply, ``None`` leaves one out; tokens are numbered from 1.
    """

    def __init__(self, *, prefix: str = "", **members: object) -> None:
        super().__init__(self.grant)
        self.prefix = prefix
        self.members: dict[str, object] = {"token_type": "Bearer", "expires_in": 3600, **members}
        self._numbers = count(1)

    async def grant(self, wire: Wire) -> None:
        """Answer with the next pair of tokens."""
        number = next(self._numbers)
        tokens = {
            "access_token": f"{self.prefix}access-{number}",
            "refresh_token": f"{self.prefix}refresh-{number}",
        }
        await says(200, {**tokens, **self.members})(wire)

    @property
    def forms(self) -> list[dict[str, str]]:
        """Return the token requests so far."""
        return [dict(parse_qsl(seen.body.decode())) for seen in self.seen]

    def sends(self) -> Counter[str]:
        """Count the refresh requests by refresh token."""
        return Counter(
            form["refresh_token"] for form in self.forms if form["grant_type"] == "refresh_token"
        )

    def provider(self, **more: Any) -> dict[str, Any]:
        """Return a provider entry for this server; nobody is expected at its authorization page."""
        return {
            "authorization_endpoint": self.url("/authorize"),
            "token_endpoint": self.url(),
            "client_id": "tokenward",
            "client_secret": "a secret that nobody checks",
            "scopes": ["read"],
            **more,
        }


def says(status: int, members: Mapping[str, object], *headers: str) -> Answer:
    """Return an answer in JSON; members that are ``None`` are left out."""
    body = {name: value for name, value in members.items() if value is not None}
    return replies(orjson.dumps(body), JSON, *headers, status=f"{status} Whatever")


def refuses(error: str, *headers: str, status: int = 400) -> Answer:
    """Return an error of RFC 6749 5.2."""
    return says(status, {"error": error}, *headers)
