"""A process that refreshes and one that only serves, on one database (``run --role``)."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio
from aiohttp import ClientError

from daemon.domain.clock import SystemClock
from daemon.persistence import migrations
from tests.support.polling import eventually
from tests.support.postgres import Cluster
from tests.support.strict_server import StrictServer
from tests.support.tokenward import ROOT, Reply, Tokenward

pytestmark = pytest.mark.asyncio(loop_scope="module")

_KEY = "key-of-an-application-0123456789"
_ENCRYPTION = {"keys": [{"id": "k", "secret": "A" * 43 + "="}]}


@dataclass(frozen=True, slots=True)
class Roles:
    """One process of each role, and their provider, which knows who asks it."""

    refresher: Tokenward
    serving: Tokenward
    provider: StrictServer

    async def connect(self, name: str, **tokens: object) -> None:
        """Import a grant where refreshing is done; return when it is served elsewhere."""
        grant = self.provider.grant()
        tokens = {
            "refresh_token": grant.refresh_token,
            "access_token": grant.access_token,
            "expires_at": "2030-01-01T00:00:00Z",
            **tokens,
        }
        await self.refresher.create("acme", id=name, tokens=tokens)
        assert (await self.read(name)).status == 200

    async def read(self, name: str, query: str = "") -> Reply:
        """Read a token as the application does, from the process beside it."""
        return await self.serving.request("GET", f"/v1/connections/{name}/token{query}", key=_KEY)

    async def at_once(self, name: str, query: str, *, callers: int = 20) -> list[Reply]:
        """Read a token as many callers do at the same moment."""
        return list(await asyncio.gather(*(self.read(name, query) for _ in range(callers))))

    async def sessions(self) -> int:
        """Return how many connections to the database the serving process has."""
        connection = await asyncpg.connect(self.serving.settings["database"]["url"])
        try:
            count = "SELECT count(*) - 1 FROM pg_stat_activity WHERE usename = current_user"
            return int(await connection.fetchval(count))
        finally:
            await connection.close()

    @property
    def sent(self) -> int:
        """Return how many token requests were sent; the process that serves has sent none."""
        assert set(self.provider.senders) <= {"refresher"}
        return self.provider.senders["refresher"]


# What the README gives to the database's role of a process that only serves.
_GRANTS = re.search(r"```sql\n(GRANT .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
_LOGIN = """
DO $$BEGIN EXECUTE format('CREATE ROLE tokenward_serve LOGIN PASSWORD %L',
(SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres')); END$$
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def roles(
    tmp_path_factory: pytest.TempPathFactory, postgres_cluster: Cluster
) -> AsyncIterator[Roles]:
    """One process that refreshes, and one that serves.

    The serving one has callers of its own, no client secret, a disk that it does not use, and a
    role in the database that may change next to nothing.
    """
    directory, database_url = tmp_path_factory.mktemp("roles"), postgres_cluster.create_database()
    async with StrictServer() as provider:
        refresher = Tokenward(
            directory / "refresher",
            {
                "database": {"url": database_url},
                "encryption": _ENCRYPTION,
                "providers": {"acme": provider.provider("refresher")},
            },
        )
        refresher.arguments = ("--role", "refresh")
        async with refresher:
            url = _with_little_power(postgres_cluster, database_url)
            async with _serving(directory / "serving", url, provider) as serving:
                yield Roles(refresher, serving, provider)
    postgres_cluster.drop_database(database_url)


def _serving(directory: Path, database_url: str, provider: StrictServer) -> Tokenward:
    caller = {
        "name": "application",
        "key_sha256": hashlib.sha256(_KEY.encode()).hexdigest(),
        "connections": ["*"],
        "permissions": ["token", "proxy", "read", "manage"],
    }
    entry = provider.provider("serving", client_secret={"file": "/run/secrets/not-here"})
    daemon = Tokenward(
        directory,
        {
            "database": {"url": database_url},
            "encryption": _ENCRYPTION,
            "callers": [caller],
            "providers": {"acme": entry},
        },
    )
    daemon.settings["listen"]["api"]["quitquitquit"] = True
    daemon.arguments = ("--role", "serve")
    return daemon


def _with_little_power(cluster: Cluster, database_url: str) -> str:
    """Make the role of the README in a database; return the URL with which it connects."""
    assert _GRANTS is not None
    name = urlsplit(database_url).path.lstrip("/")
    cluster.execute(_LOGIN)
    cluster.execute(_GRANTS[1], database=name)
    return cluster.server.url(name, role="tokenward_serve")


async def test_who_serves_waits_for_a_schema(tmp_path: Path, database_url: str) -> None:
    """It makes none itself: it says what it waits for, and starts when somebody has made it."""
    async with StrictServer() as provider, AsyncExitStack() as stack:
        serving = _serving(tmp_path, database_url, provider)
        stack.push_async_exit(serving)
        serving.spawn()

        async def is_waiting() -> bool:
            assert not await serving.has_started()
            with suppress(ClientError):
                async with serving.session.get(f"{serving.ops_url}/startup") as answer:
                    return "schema is older" in await answer.text()
            return False

        await eventually(is_waiting, within=60, what="the wait for the schema")
        owner = await asyncpg.connect(database_url)
        try:
            await migrations.migrate(owner, migrations.bundled(), clock=SystemClock())
        finally:
            await owner.close()
        await eventually(serving.has_started, within=60, what="the start")


async def test_a_token_is_refreshed_here_and_served_there(roles: Roles) -> None:
    """What one process refreshes the other serves within a second, and has asked nobody."""
    await roles.connect("acme-1")
    sent, took = roles.sent, []
    for generation in range(2, 5):
        forced = await roles.refresher.request("POST", "/v1/connections/acme-1/refresh")
        assert forced.status == 200
        began = time.monotonic()

        async def is_served(generation: int = generation) -> bool:
            return bool((await roles.read("acme-1")).body["generation"] == generation)

        await eventually(is_served, within=10, what="the new token")
        took.append(time.monotonic() - began)
    # The best of three: a busy machine may hold up any of them.
    assert min(took) < 1
    assert roles.provider.is_good((await roles.read("acme-1")).body["access_token"])
    assert roles.sent == sent + 3


async def test_what_a_caller_needs_now_is_refreshed_once(roles: Roles) -> None:
    """Many callers with ``newer_than`` or ``min_ttl`` cause one request, at the other process."""
    await roles.connect("acme-2")
    sent, began = roles.sent, time.monotonic()
    replies = await roles.at_once("acme-2", "?newer_than=1")
    took = time.monotonic() - began

    assert {(reply.status, reply.body["generation"]) for reply in replies} == {(200, 2)}
    assert roles.sent == sent + 1
    assert took < 5

    soon = (SystemClock().now() + timedelta(seconds=30)).isoformat()
    await roles.connect("acme-3", expires_at=soon)

    async def has_enough_life() -> bool:
        # In its first moments the token is as new as any that could be had.
        answers = await roles.at_once("acme-3", "?min_ttl=29")
        return {reply.body["generation"] for reply in answers} == {2}

    await eventually(has_enough_life, what="a token that lives long enough")
    assert roles.sent == sent + 2
    assert (await roles.serving.metrics())[
        'tokenward_token_requests_total{outcome="refreshed",provider="acme"}'
    ] > 0


async def test_without_a_refresher_good_tokens_are_served(roles: Roles) -> None:
    """With a warning where more is wanted; an expired one is 503, until a refresher is back."""
    await roles.connect("acme-4")
    sent, roles.provider.expires_in = roles.sent, 10
    assert (await roles.read("acme-4", "?newer_than=1")).status == 200
    await roles.refresher.stop()
    plain = await roles.read("acme-4")
    assert (plain.status, plain.body["generation"]) == (200, 2)

    async def is_warned() -> bool:
        # The first moments count as the newest that could be had.
        wanted = await roles.read("acme-4", "?min_ttl=9")
        return "No process that refreshes" in wanted.body.get("warning", "")

    await eventually(is_warned, what="the warning")

    async def is_refused() -> Reply | None:
        reply = await roles.read("acme-4")
        return None if reply.status == 200 else reply

    refused = await eventually(is_refused, what="the end of the token")
    assert (refused.status, refused.body["code"]) == (503, "token_unavailable")
    assert "No process that refreshes" in refused.body["detail"]
    assert int(refused.headers["Retry-After"]) >= 1
    roles.provider.expires_in = 3600
    await roles.refresher.start()
    assert (await roles.read("acme-4")).status == 200
    assert roles.sent == sent + 2


async def test_a_serving_process_changes_nothing(roles: Roles) -> None:
    """Whatever changes something is 501 there; it reads, writes no file, has no public listener."""
    await roles.connect("acme-5")
    serving, one = roles.serving, "/v1/connections/acme-5"
    for method, path in (
        ("POST", "/v1/connections"),
        ("PATCH", one),
        ("DELETE", one),
        ("POST", f"{one}/authorize"),
        ("POST", f"{one}/refresh"),
        ("POST", f"{one}/test"),
        ("GET", "/"),
        ("GET", "/login"),
        ("GET", "/connections/acme-5"),
    ):
        reply = await serving.request(method, path, key=_KEY)
        assert (reply.status, reply.body["code"]) == (501, "not_in_this_role"), (method, path)
    for path in ("/v1/connections", one, f"{one}/events", "/v1/providers", "/openapi.json"):
        assert (await serving.request("GET", path, key=_KEY)).status == 200, path
    assert (await serving.request("POST", "/v1/nothing", key=_KEY)).status == 404
    assert (await serving.request("POST", f"{one}/refresh", key="wrong" * 8)).status == 401
    with pytest.raises(ClientError):
        await serving.session.get(f"{serving.public_url}/callback")
    assert not serving.state_dir.exists()
    assert 2 <= await roles.sessions() <= 5
    metrics = await serving.metrics()
    assert (metrics['tokenward_role{role="serve"}'], metrics['tokenward_role{role="all"}']) == (
        1,
        0,
    )
    assert (await roles.refresher.metrics())['tokenward_role{role="refresh"}'] == 1
    began = time.monotonic()
    assert (await serving.request("POST", "/quitquitquit", key=_KEY)).status == 202
    assert await serving.ended() == 0
    assert time.monotonic() - began < 5
