"""Two replicas on one database keep the contract's promises together."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.acme_service import AcmeService, walk
from tests.support.polling import eventually
from tests.support.postgres import Cluster
from tests.support.tokenward import Reply, Tokenward

_KEY = "key-of-both-replicas-0123456789"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two running daemons and their provider."""

    one: Tokenward
    other: Tokenward
    acme: AcmeService

    async def imported(self, name: str, provider: str = "acme") -> None:
        """Import a connection at one; return when the other serves it."""
        tokens = self.acme.imported(name)
        body = {"provider": provider, "id": name, "tokens": tokens}
        assert (await self.ask(self.one, "POST", "", json=body)).status == 201
        assert (await self.ask(self.other, "GET", f"/{name}/token")).status == 200

    async def ask(self, daemon: Tokenward, method: str, below: str, **more: object) -> Reply:
        """Ask one of the two."""
        return await daemon.request(method, f"/v1/connections{below}", key=_KEY, **more)


@pytest.fixture
async def pair(tmp_path: Path, postgres_cluster: Cluster, database_url: str) -> AsyncIterator[Pair]:
    """Two replicas that share database, encryption key and configuration."""
    del postgres_cluster
    everything = ["token", "proxy", "read", "manage"]
    caller = {"name": "all", "key": _KEY, "connections": ["*"], "permissions": everything}
    async with AcmeService() as acme:
        region = {"region": {"title": "Region", "enum": ["us", "eu"], "default": "us"}}
        settings = {
            "database": {"url": database_url},
            "encryption": {
                "keys": [{"id": "k", "secret": base64.b64encode(bytes(range(32))).decode()}]
            },
            "callers": [caller],
            "providers": {
                "acme": acme.provider(),
                "regional": acme.provider(
                    fields=region, request={"headers": {"X-Region": "{region}"}}
                ),
            },
        }
        async with (
            Tokenward(tmp_path / "one", settings) as one,
            Tokenward(tmp_path / "other", settings) as other,
        ):
            yield Pair(one, other, acme)


async def test_after_a_disconnect_the_other_serves_nothing(pair: Pair) -> None:
    """Neither token nor proxy, within a second of the answer to DELETE (S9)."""

    async def last_served(name: str, below: str) -> float:
        last = 0.0
        while True:
            reply = await pair.ask(pair.other, "GET", f"/{name}/{below}")
            if reply.status == 409:
                return last
            assert reply.status == 200
            last = time.monotonic()

    for number in range(5):
        name = f"d{number}"
        await pair.imported(name)
        async with asyncio.TaskGroup() as readers:
            token = readers.create_task(last_served(name, "token"))
            proxied = readers.create_task(last_served(name, "proxy/me"))
            assert (await pair.ask(pair.one, "DELETE", f"/{name}")).status == 200
            ended_at = time.monotonic()
        assert max(token.result(), proxied.result()) < ended_at + 1.0


async def test_one_account_at_both_at_once(pair: Pair) -> None:
    """One connection is left; both serve its newest token, and the other id says where it went."""
    for number in range(3):
        pair.acme.account = f"account-{number}"
        names = [f"s{number}-one", f"s{number}-other"]
        made = [
            (await pair.ask(daemon, "POST", "", json={"provider": "acme", "id": name})).body
            for daemon, name in zip((pair.one, pair.other), names, strict=True)
        ]
        ends = await asyncio.gather(*(walk(each["connect_url"]) for each in made))
        assert [end.status for end in ends] == [303, 303]
        listed = await pair.ask(pair.one, "GET", f"?q=account-{number}")
        (survivor,) = (each["id"] for each in listed.body["connections"])
        (gone,) = set(names) - {survivor}
        assert any(survivor in end.text for end in ends)
        missing = await pair.ask(pair.other, "GET", f"/{gone}")
        assert (missing.status, missing.body["merged_into"]) == (404, survivor)

        async def agreed(survivor: str = survivor) -> bool:
            tokens = [
                (await pair.ask(daemon, "GET", f"/{survivor}/token")).body["access_token"]
                for daemon in (pair.one, pair.other)
            ]
            return len(set(tokens)) == 1 and tokens[0] in pair.acme.access

        await eventually(agreed, within=1, what="the same token at both")


async def test_a_change_at_one_holds_at_the_other(pair: Pair) -> None:
    """Patched fields reach the other's proxy in about a second; one refresh serves both."""
    await pair.imported("r", provider="regional")

    async def sent(region: str) -> bool:
        assert (await pair.ask(pair.other, "GET", "/r/proxy/me")).status == 200
        return pair.acme.seen[-1].headers["X-Region"] == region

    assert await sent("us")
    changed = await pair.ask(pair.one, "PATCH", "/r", json={"fields": {"region": "eu"}})
    assert changed.status == 200
    await eventually(lambda: sent("eu"), within=2, what="the new field at the other")
    asked = len(pair.acme.token_requests)
    refreshed = await asyncio.gather(
        *(pair.ask(daemon, "POST", "/r/refresh") for daemon in (pair.one, pair.other) * 3)
    )
    assert {reply.status for reply in refreshed} == {200}
    assert {reply.body["generation"] for reply in refreshed} == {2}
    assert len(pair.acme.token_requests) == asked + 1
