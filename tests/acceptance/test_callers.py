"""Who may ask for what, on the real listeners: keys, patterns, sockets, headers, routes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.support.polling import eventually
from tests.support.token_server import TokenServer
from tests.support.tokenward import Reply, Tokenward, unix_session

BILLING, REPORTS, WATCHER, ADMIN = (letter * 40 for letter in "brwa")
CALLERS = [
    {
        "name": "billing",
        "key_sha256": hashlib.sha256(BILLING.encode()).hexdigest(),
        "connections": ["acme-*"],
        "permissions": ["token", "read"],
    },
    {"name": "reports", "key": REPORTS, "connections": ["other-?"], "permissions": ["token"]},
    {"name": "watcher", "key": WATCHER, "connections": ["*"], "permissions": ["read"]},
    {
        "name": "admin",
        "key": ADMIN,
        "connections": ["*"],
        "permissions": ["token", "read", "manage"],
    },
]


async def with_connections(daemon: Tokenward, *names: str, key: str | None = None) -> None:
    """Import connections that have a token."""
    for name in names:
        body = {
            "provider": "acme",
            "id": name,
            "tokens": {"refresh_token": f"of {name}".encode().hex()},
        }
        reply = await daemon.request("POST", "/v1/connections", json=body, key=key)
        assert reply.status == 201, reply.content

        async def has_token(name: str = name) -> bool:
            read = await daemon.request("GET", f"/v1/connections/{name}/token", key=key)
            return read.status == 200

        await eventually(has_token, what=f"a token of {name}")


async def test_patterns_and_permissions(daemon: Tokenward) -> None:
    """A caller gets what is its own; what is not looks the same as what does not exist."""
    async with TokenServer() as server:
        daemon.settings["callers"] = CALLERS
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            await with_connections(daemon, "acme-1", "other-1", key=ADMIN)

            async def ask(key: str, path: str, method: str = "GET") -> tuple[int, str]:
                reply = await daemon.request(method, path, key=key)
                return reply.status, reply.body.get("code", "")

            one, token = "/v1/connections/{}", "/v1/connections/{}/token"
            unknown, denied = (404, "unknown_connection"), (403, "permission_denied")
            assert await ask(BILLING, token.format("acme-1")) == (200, "")
            assert await ask(BILLING, one.format("acme-1")) == (200, "")
            assert await ask(BILLING, token.format("other-1")) == unknown
            assert await ask(BILLING, one.format("other-1")) == unknown
            assert await ask(BILLING, one.format("acme-1") + "/refresh", "POST") == denied
            assert await ask(BILLING, one.format("acme-1") + "/authorize", "POST") == denied
            assert await ask(REPORTS, token.format("other-1")) == (200, "")
            assert await ask(REPORTS, one.format("other-1")) == denied
            assert await ask(REPORTS, token.format("other-12")) == unknown
            assert await ask(WATCHER, token.format("acme-1")) == denied
            assert await ask(WATCHER, token.format("nothing")) == denied
            assert await ask(ADMIN, one.format("acme-1") + "/refresh", "POST") == (200, "")
            listed = await daemon.request("GET", "/v1/connections", key=BILLING)
            assert [found["id"] for found in listed.body["connections"]] == ["acme-1"]
            # A foreign one, one that nobody has, and one that would be its own if it existed.
            for suffix in ("", "/token", "/token?min_ttl=5"):
                shapes = [
                    shape(await daemon.request("GET", one.format(name) + suffix, key=BILLING), name)
                    for name in ("other-1", "other-2", "acme-22")
                ]
                assert shapes[0] == shapes[1] == shapes[2]
            body = {"provider": "acme", "id": "mine"}
            created = await daemon.request("POST", "/v1/connections", json=body, key=BILLING)
            assert (created.status, created.body["code"]) == denied
            # No key of the first start where callers are configured.
            assert not (daemon.state_dir / "api.key").exists()


def shape(reply: Reply, connection: str) -> tuple[int, dict[str, str], bytes]:
    """Return an answer without what differs at each request."""
    headers = {name: value for name, value in reply.headers.items() if name != "Date"}
    return reply.status, headers, reply.content.replace(connection.encode(), b"ID")


CREDENTIALS: Mapping[str, Mapping[str, str]] = {
    "nothing": {},
    "a wrong key": {"Authorization": "Bearer wrong"},
    "another scheme": {"Authorization": "Basic dXNlcjprZXk="},
    "no key": {"Authorization": "Bearer"},
}


async def test_no_credential(daemon: Tokenward) -> None:
    """Without a known key every route answers 401, whether or not its connection exists."""
    paths = (
        "/v1/connections/acme-1/token",
        "/v1/connections/acme-2/token",
        "/v1/connections",
        "/v1/providers",
    )
    async with TokenServer() as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            await with_connections(daemon, "acme-1")
            answers = set()
            for headers, path in product(CREDENTIALS.values(), paths):
                async with daemon.session.get(daemon.api_url + path, headers=headers) as answer:
                    challenge = answer.headers["WWW-Authenticate"].partition(" ")[0]
                    answers.add((answer.status, challenge, (await answer.json())["code"]))
        assert answers == {(401, "Bearer", "unauthenticated")}


MISDIRECTED, CROSS_ORIGIN, FINE = (421, "misdirected_request"), (403, "cross_origin"), (200, "")
GUARDED = [
    ("Host", "evil.example", MISDIRECTED),
    ("Host", "localhost.evil.example:7420", MISDIRECTED),
    ("Host", "127.0.0.1.nip.example", MISDIRECTED),
    ("Origin", "https://evil.example", CROSS_ORIGIN),
    ("Origin", "null", CROSS_ORIGIN),
    ("Sec-Fetch-Site", "cross-site", CROSS_ORIGIN),
    ("Sec-Fetch-Site", "same-site", CROSS_ORIGIN),
    ("Sec-Fetch-Site", "none", FINE),
    ("Host", "localhost", FINE),
    ("Host", "[::1]:7420", FINE),
]


async def test_browsers_are_kept_out(daemon: Tokenward) -> None:
    """A foreign Host is misdirected, a page of another origin refused, even with the key."""
    async with TokenServer() as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            await with_connections(daemon, "acme-1")
            answers = {}
            for path, (name, value, _) in product(
                ("/v1/connections/acme-1/token", "/v1/connections", "/v1/providers"), GUARDED
            ):
                reply = await daemon.request("GET", path, headers={name: value})
                answers[path, name, value] = (reply.status, reply.body.get("code", ""))
                assert not [name for name in reply.headers if name.startswith("Access-Control")]
        expected = {(name, value): answer for name, value, answer in GUARDED}
        assert answers == {key: expected[key[1:]] for key in answers}


async def test_a_preflight_is_refused(daemon: Tokenward) -> None:
    """No answer ever carries a CORS header, a preflight's least of all."""
    async with daemon:
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
        url = f"{daemon.api_url}/v1/connections"
        async with daemon.session.options(url, headers=asked) as answer:
            assert answer.status == 403
            assert not [name for name in answer.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize("allowed", [True, False], ids=["allowed uid", "no allowed uid"])
async def test_the_unix_socket(daemon: Tokenward, tmp_path: Path, *, allowed: bool) -> None:
    """Through the socket an allowed uid needs no key, everybody else does, as over TCP."""
    socket = tmp_path / "api.sock"
    api: dict[str, Any] = daemon.settings["listen"]["api"]
    api["unix_socket"] = str(socket)
    api["allowed_uids"] = [os.geteuid()] if allowed else []
    async with TokenServer() as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon, unix_session(socket) as session:
            await with_connections(daemon, "acme-1")
            assert socket.stat().st_mode & 0o777 == 0o600
            url = "http://localhost/v1/connections/acme-1/token"
            async with session.get(url) as answer:
                assert answer.status == (200 if allowed else 401)
            async with session.get(
                url, headers={"Authorization": f"Bearer {daemon.key}"}
            ) as answer:
                assert answer.status == 200
            # A wrong key is not forgiven.
            async with session.get(url, headers={"Authorization": "Bearer wrong"}) as answer:
                assert answer.status == 401
        assert not socket.exists()


async def test_only_the_unix_socket(daemon: Tokenward, tmp_path: Path) -> None:
    """With address null there is no api listener on TCP."""
    socket = tmp_path / "api.sock"
    daemon.settings["listen"]["api"] = {
        "address": None,
        "unix_socket": str(socket),
        "allowed_uids": [os.geteuid()],
    }
    async with daemon, unix_session(socket) as session:
        async with session.get("http://localhost/v1/providers") as answer:
            assert answer.status == 200
        assert not await opens(daemon, daemon.api_url)
        assert await opens(daemon, daemon.ops_url)


async def opens(daemon: Tokenward, url: str) -> bool:
    """Tell whether anything listens at a URL."""
    try:
        async with daemon.session.get(url):
            return True
    except OSError:
        return False


API = ("/v1/connections", "/v1/providers", "/v1/connections/acme-1/token", "/v1/connections/acme-1")
PUBLIC = ("/callback", "/connect/completed")
OWN_ANSWERS = {"/callback": 400}
OPS = ("/metrics", "/startup", "/readiness", "/liveness")


async def test_each_route_is_on_its_own_listener(daemon: Tokenward) -> None:
    """What one listener serves is not found on the others, whoever asks."""
    async with TokenServer() as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            await with_connections(daemon, "acme-1")
            listeners = {daemon.api_url: API, daemon.public_url: PUBLIC, daemon.ops_url: OPS}
            headers = {"Authorization": f"Bearer {daemon.key}"}
            answers = {}
            for url, path in product(listeners, (*API, *PUBLIC, *OPS)):
                async with daemon.session.get(url + path, headers=headers) as answer:
                    answers[url, path] = answer.status
        assert answers == {
            (url, path): OWN_ANSWERS.get(path, 200) if path in paths else 404
            for (url, paths), path in product(listeners.items(), (*API, *PUBLIC, *OPS))
        }
