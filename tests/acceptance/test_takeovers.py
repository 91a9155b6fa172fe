"""Whoever tries to get into a connection that is another's: person, caller, or an old reply."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.dump import dump
from tests.support.oauth_flow import browser_session
from tests.support.obliging_provider import ObligingProvider
from tests.support.polling import eventually
from tests.support.tokenward import Tokenward, connect

ALL = ["token", "proxy", "read", "manage"]


@pytest.fixture
async def provider() -> AsyncIterator[ObligingProvider]:
    """A provider at which everybody may be anybody."""
    async with ObligingProvider() as provider:
        yield provider


def caller(name: str, patterns: str, permissions: list[str] | None = None) -> dict[str, Any]:
    """Return a caller's entry; its key is :func:`key_of` its name."""
    return {
        "name": name,
        "key_sha256": hashlib.sha256(key_of(name).encode()).hexdigest(),
        "connections": [patterns],
        "permissions": permissions or ALL,
    }


def key_of(name: str) -> str:
    """Return a caller's key."""
    return f"key-of-{name}-{'x' * 32}"


async def authorize(url: str, provider: ObligingProvider, who: str) -> tuple[int, str]:
    """Go through a connect URL as ``who``."""
    provider.visitor = who
    async with browser_session() as browser:
        return await connect(browser, url, provider.login)


async def reconnect(
    daemon: Tokenward, provider: ObligingProvider, name: str, who: str, *, key: str | None = None
) -> tuple[int, str]:
    """Ask for a link to a connection and go through it as ``who``."""
    link = await daemon.request("POST", f"/v1/connections/{name}/authorize", key=key)
    assert link.status == 200, link.content
    return await authorize(link.body["connect_url"], provider, who)


async def served(daemon: Tokenward, name: str) -> str:
    """Return whose token is served."""
    token: str = (await daemon.token(name)).body["access_token"]
    return token.split(".")[1]


async def test_nobody_gets_in_without_a_name(daemon: Tokenward, provider: ObligingProvider) -> None:
    """A17: a reconnect whose account the provider does not tell is refused, and changes nothing."""
    provider.add("alice")
    provider.add("mallory", {"error": "insufficient_scope"}, status=403)
    provider.add("nameless", {"name": "nameless"})
    daemon.settings["providers"] = {"acme": provider.provider()}
    async with daemon:
        created = await daemon.create("acme", id="c-1")
        assert (await authorize(created["connect_url"], provider, "alice"))[0] == 200
        for who in ("mallory", "nameless"):
            status, page = await reconnect(daemon, provider, "c-1", who)
            assert (status, "account_unknown" in page) == (400, True), page
            shown = await daemon.connection("c-1")
            assert (shown["account_id"], shown["label"]) == ("alice", "alice")
            assert await served(daemon, "c-1") == "alice"


async def test_a_token_of_somebody_else_is_found(
    daemon: Tokenward, provider: ObligingProvider
) -> None:
    """Kept because the API was away: the first test that works tells, and renames nothing."""
    provider.add("alice")
    mallory = provider.add("mallory", status=503)
    daemon.settings["providers"] = {"acme": provider.provider()}
    async with daemon:
        created = await daemon.create("acme", id="c-1")
        assert (await authorize(created["connect_url"], provider, "alice"))[0] == 200
        assert (await reconnect(daemon, provider, "c-1", "mallory"))[0] == 200
        mallory.status = 200
        report = (await daemon.request("POST", "/v1/connections/c-1/test")).body
        assert (report["ok"], report["error"]["code"]) == (False, "other_account")
        shown = await daemon.connection("c-1")
        assert (shown["account_id"], shown["label"]) == ("alice", "alice")


async def test_what_was_refused_stays_out_after_a_crash(
    daemon: Tokenward, provider: ObligingProvider
) -> None:
    """A17: the journal still has the reply, and a restart does not store it."""
    provider.add("alice")
    provider.add("mallory")
    daemon.settings["providers"] = {"acme": provider.provider()}
    async with daemon:
        created = await daemon.create("acme", id="c-1")
        assert (await authorize(created["connect_url"], provider, "alice"))[0] == 200
        status, page = await reconnect(daemon, provider, "c-1", "mallory")
        assert (status, "other_account" in page) == (400, True)
        daemon.signal(signal.SIGKILL)
        await daemon.ended()
        await daemon.start()
        assert await served(daemon, "c-1") == "alice"
        assert (await daemon.connection("c-1"))["generation"] == 1


async def test_a_link_of_one_caller_leads_into_no_connection_of_another(
    daemon: Tokenward, provider: ObligingProvider
) -> None:
    """Not even where somebody who sees both made the second: nothing is merged, nobody named."""
    provider.add("alice")
    daemon.settings["callers"] = [caller("a", "a-*"), caller("b", "b-*"), caller("root", "*")]
    daemon.settings["providers"] = {"acme": provider.provider()}

    async def create(name: str, by: str, **members: object) -> str:
        body = {"provider": "acme", "id": name, **members}
        made = await daemon.request("POST", "/v1/connections", json=body, key=key_of(by))
        assert made.status == 201, made.content
        return str(made.body["connect_url"])

    async with daemon:
        url = await create("a-1", "a", metadata={"plan": "mine"})
        assert (await authorize(url, provider, "alice"))[0] == 200
        before = await daemon.request("GET", "/v1/connections/a-1", key=key_of("a"))
        await create("b-1", "root", metadata={"plan": "theirs"})
        status, page = await reconnect(daemon, provider, "b-1", "alice", key=key_of("b"))
        assert (status, "connected_elsewhere" in page, "a-1" in page) == (400, True, False)
        after = await daemon.request("GET", "/v1/connections/a-1", key=key_of("a"))
        assert after.body == before.body
        assert (await daemon.request("GET", "/v1/connections/b-1", key=key_of("b"))).status == 200


async def test_a_stream_ends_with_its_callers_rights(
    daemon: Tokenward, provider: ObligingProvider
) -> None:
    """Whoever is taken out of the configuration hears nothing more of what happens."""
    root = caller("root", "*")
    daemon.settings["callers"] = [root, caller("a", "a-*", ["read"])]
    daemon.settings["providers"] = {"acme": provider.provider()}
    headers = {"Authorization": f"Bearer {key_of('a')}"}
    async with (
        daemon,
        daemon.session.get(f"{daemon.api_url}/v1/events", headers=headers) as stream,
    ):
        assert stream.status == 200
        daemon.settings["callers"] = [root]
        assert await daemon.reload()
        body = {"provider": "acme", "id": "a-1"}
        made = await daemon.request("POST", "/v1/connections", json=body, key=key_of("root"))
        assert made.status == 201
        async with asyncio.timeout(10):
            assert b"a-1" not in await stream.content.read()
        again = await daemon.request("GET", "/v1/events", key=key_of("a"))
        assert again.status == 401


async def test_disconnecting_amid_everything_else(
    daemon: Tokenward, provider: ObligingProvider, database_url: str
) -> None:
    """R4, PO9: no request ends as an internal error, and no grant stays alive that nobody holds."""
    daemon.settings["providers"] = {"acme": provider.provider(concurrency=100)}
    steps = iter(range(10_000))

    async def linger(_: str) -> None:
        # Deterministic, and different each time: replies overtake each other.
        await asyncio.sleep(next(steps) * 7 % 11 / 150)

    provider.before_reply = linger

    async def one(number: int) -> list[int]:
        me, path = f"p{number}", f"/v1/connections/h-{number}"
        provider.add(me)
        created = await daemon.create("acme", id=f"h-{number}")
        assert await _pass(created["connect_url"], provider, me) == 200
        newer = await daemon.create("acme", id=f"g-{number}")

        async def again() -> int:
            link = await daemon.request("POST", f"{path}/authorize")
            if link.status != 200:
                return link.status
            return await _pass(link.body["connect_url"], provider, me)

        async def ask(method: str, path: str, **more: Any) -> int:
            return (await daemon.request(method, path, **more)).status

        purge = "?purge=true" if number % 3 == 0 else ""
        asked = [
            ask("POST", f"{path}/refresh"),
            again(),
            ask("PATCH", path, json={"metadata": {"a": "1"}}),
            ask("DELETE", path + purge),
            ask("POST", f"{path}/refresh"),
            _pass(newer["connect_url"], provider, me),
            ask("DELETE", path),
            ask("POST", f"{path}/test"),
        ]
        turned = asked[number % 8 :] + asked[: number % 8]
        return list(await asyncio.gather(*turned))

    async with daemon:
        answers = await asyncio.gather(*(one(number) for number in range(16)))
        assert all(status < 500 for each in answers for status in each), answers

        async def all_revoked() -> bool:
            return not (await dump(database_url))["revocations"]

        await eventually(all_revoked, within=40, what="the end of all revocations")
        tokens = {}
        for shown in (await daemon.request("GET", "/v1/connections")).body["connections"]:
            reply = await daemon.token(shown["id"])
            assert (reply.status == 200) == (shown["status"] == "active"), shown
            if reply.status == 200:
                tokens[reply.body["access_token"]] = shown["id"]
        assert provider.alive() == set(tokens)


async def _pass(url: str, provider: ObligingProvider, who: str) -> int:
    """Go through a connect URL as ``who`` while others do the same; return the last status."""
    async with browser_session() as browser:
        async with browser.post(url, allow_redirects=False) as begun:
            if begun.status != 303:
                return begun.status
            location = begun.headers["Location"]
        callback = await provider.login(f"{location}&as={who}", session=browser)
        async with browser.get(callback) as last:
            return last.status
