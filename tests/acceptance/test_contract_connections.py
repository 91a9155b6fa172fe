"""Contract 4 to 6 as a stranger would check it: members, codes, counts, by the page alone."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
from aiohttp import ClientSession

from tests.support.acme_service import AcmeService, query_of, walk
from tests.support.polling import eventually
from tests.support.tokenward import Reply, Tokenward

_CONNECTION = {
    *("id", "provider", "grant", "status", "label", "account_id", "fields", "scopes"),
    *("requested_scopes", "metadata", "generation", "expires_at", "refresh_at"),
    *("has_refresh_token", "last_refreshed_at", "last_used_at", "last_tested_at", "last_error"),
    *("created_at", "updated_at"),
}
_TOKEN = {
    *("access_token", "token_type", "expires_at", "expires_in", "scope", "generation"),
    "connection",
}


@pytest.fixture
async def acme(daemon: Tokenward) -> AsyncIterator[AcmeService]:
    """A provider, and others like it that lack one thing."""
    async with AcmeService() as service:
        bare = {"test": None, "label": None, "account_id": None, "revocation_endpoint": None}
        daemon.settings["providers"] = {
            "acme": service.provider(),
            "bare": service.provider(**bare),
            "closed": service.provider(**bare, allow_private_hosts=None),
            "asking": service.provider(
                fields={"shop": {"title": "Shop"}},
                authorization_endpoint=f"{service.url}/authorize?shop={{shop}}",
            ),
            "queried": service.provider(
                **bare, request={"query": {"v": "3"}, "headers": {"X-Api-Version": "2"}}
            ),
            "lasting": service.provider(default_lifetime="never"),
        }
        yield service


def assert_problem(reply: Reply, status: int, code: str) -> None:
    """Check a problem's shape (RFC 9457, contract 4)."""
    assert (reply.status, reply.headers["Content-Type"]) == (status, "application/problem+json")
    body = reply.body
    assert (body["code"], body["status"]) == (code, status), body
    assert body["type"] == f"urn:tokenward:problem:{code}"
    assert body["title"]
    assert body["detail"]


async def test_every_route_of_a_connection_that_is_not_there(
    daemon: Tokenward, acme: AcmeService
) -> None:
    """404 unknown_connection everywhere; before an authorization 409; after the end 409."""
    async with daemon:
        await daemon.create("acme", id="waiting")
        await daemon.create("acme", id="gone", tokens=acme.imported("1"))
        assert (await daemon.request("DELETE", "/v1/connections/gone")).status == 200
        needing = [
            ("GET", "/token"),
            ("GET", f"/request?url={acme.url}/me"),
            ("GET", "/proxy/me"),
            ("POST", "/refresh"),
            ("POST", "/test"),
        ]
        others = [("GET", ""), ("DELETE", ""), ("GET", "/events"), ("POST", "/authorize")]
        for method, below in [*needing, *others]:
            reply = await daemon.request(method, f"/v1/connections/nobody{below}")
            assert_problem(reply, 404, "unknown_connection")
        for method, below in needing:
            waiting = await daemon.request(method, f"/v1/connections/waiting{below}")
            assert_problem(waiting, 409, "not_authorized_yet")
            gone = await daemon.request(method, f"/v1/connections/gone{below}")
            assert_problem(gone, 409, "disconnected")


async def test_from_creation_to_purge(daemon: Tokenward, acme: AcmeService) -> None:
    """Each route's answer has the members of the contract, and each action its count."""
    async with daemon:
        made = await daemon.request("POST", "/v1/connections", json={"provider": "acme"})
        assert made.status == 201
        assert set(made.body) == {*_CONNECTION, "connect_url"}
        name = made.body["id"]
        assert re.fullmatch("con_[0-9A-Za-z]{22}", name)
        ended = await walk(made.body["connect_url"])
        assert (ended.status, "Authorization completed" in ended.text) == (303, True)
        asked = acme.authorized[0]
        assert asked["scope"] == "read write"
        assert asked["redirect_uri"] == daemon.redirect_uri
        assert asked["code_challenge_method"] == "S256"

        one = f"/v1/connections/{name}"
        token = await daemon.token(name)
        assert (token.status, set(token.body)) == (200, _TOKEN)
        assert token.headers["Cache-Control"] == "no-store"
        assert 3590 < token.body["expires_in"] <= 3600
        datetime.fromisoformat(token.body["expires_at"])
        shown = await daemon.connection(name)
        assert set(shown) == _CONNECTION
        assert (shown["status"], shown["label"]) == ("active", "Name 1 (1@acme.example)")
        assert (shown["account_id"], shown["has_refresh_token"]) == ("1", True)
        assert shown["last_used_at"] is not None

        newest = await daemon.token(name, "?newer_than=1")
        assert newest.body["generation"] == 2
        clamped = [await daemon.token(name, "?min_ttl=86400") for _ in range(3)]
        assert all("warning" in reply.body for reply in clamped)
        assert len(acme.token_requests) == 2

        tested = await daemon.request("POST", f"{one}/test")
        assert set(tested.body) == {"ok", "status", "account_id", "label", "checked_at", "error"}
        renewed = await daemon.request("POST", f"{one}/authorize")
        assert set(renewed.body) == {"connect_url", "expires_at"}
        ended_one = await daemon.request("DELETE", one)
        assert set(ended_one.body) == {"connection", "revocation"}
        assert ended_one.body["revocation"] == "revoked"
        assert [hint for _, hint, _ in acme.revocations] == ["refresh_token", "access_token"]
        assert (await daemon.request("DELETE", one)).status == 200
        purged = await daemon.request("DELETE", f"{one}?purge=true")
        assert purged.status == 200
        for below in ("", "/events"):
            assert_problem(await daemon.request("GET", one + below), 404, "unknown_connection")
        counted = await daemon.metrics()
        for series, value in {
            'authorizations_total{outcome="completed",provider="acme"}': 1,
            'refreshes_total{outcome="success",provider="acme"}': 1,
            'connection_tests_total{outcome="ok",provider="acme"}': 2,
            'revocations_total{initiator="caller",provider="acme",result="revoked"}': 1,
            'token_requests_total{outcome="refreshed",provider="acme"}': 1,
        }.items():
            assert counted[f"tokenward_{series}"] >= value, series
        assert not [secret for secret in acme.secrets if secret in daemon.log()]


async def test_a_failed_revocation_is_tried_again(daemon: Tokenward, acme: AcmeService) -> None:
    """503 is answered with queued, and told again within seconds; no endpoint is unsupported."""
    acme.revocation_statuses = [503]
    async with daemon:
        await daemon.create("acme", id="later", tokens=acme.imported("1"))
        ended = await daemon.request("DELETE", "/v1/connections/later")
        assert ended.body["revocation"] == "queued"

        async def revoked() -> bool:
            return [status for _, _, status in acme.revocations] == [503, 200, 200]

        await eventually(revoked, within=30, what="the second try")
        await daemon.create("bare", id="never", tokens=acme.imported("2"))
        never = await daemon.request("DELETE", "/v1/connections/never")
        assert never.body["revocation"] == "unsupported"


async def test_a_revocation_at_the_provider_is_detected(
    daemon: Tokenward, acme: AcmeService
) -> None:
    """API and token endpoint refuse: told, counted, and the dead token is served no more."""
    async with daemon:
        for name in ("expiring", "lasting"):
            acme.account = name
            acme.lifetime = None if name == "lasting" else 3600
            provider = "lasting" if name == "lasting" else "acme"
            made = await daemon.create(provider, id=name)
            assert (await walk(made["connect_url"])).status == 303
            acme.end_grant(name)
            tested = await daemon.request("POST", f"/v1/connections/{name}/test")
            assert (tested.status, tested.body["ok"]) == (200, False)
            assert (await daemon.connection(name))["status"] == "reauthorization_required"
            assert_problem(await daemon.token(name), 409, "reauthorization_required")
            history = await daemon.request("GET", f"/v1/connections/{name}/events")
            types = [event["type"] for event in history.body["events"]]
            assert "connection.revoked_at_provider" in types
            assert "connection.reauthorization_required" in types
            series = f'initiator="provider",provider="{provider}",result="detected"'
            counted = await daemon.metrics()
            assert counted[f"tokenward_revocations_total{{{series}}}"] == 1


async def test_tokens_that_never_expire(daemon: Tokenward, acme: AcmeService) -> None:
    """No expiry is null, satisfies every min_ttl, and plans no refresh."""
    acme.lifetime = None
    async with daemon:
        made = await daemon.create("lasting", id="lasting")
        assert (await walk(made["connect_url"])).status == 303
        token = (await daemon.token("lasting", "?min_ttl=1000000")).body
        assert (token["expires_at"], token["expires_in"]) == (None, None)
        assert "warning" not in token
        shown = await daemon.connection("lasting")
        assert (shown["expires_at"], shown["refresh_at"]) == (None, None)


async def test_where_a_token_may_go(daemon: Tokenward, acme: AcmeService) -> None:
    """A private host is refused at the request, not at the start; other hosts everywhere."""
    async with daemon:
        for provider in ("closed", "queried"):
            await daemon.create(provider, id=provider, tokens=acme.imported(provider))
        closed = await daemon.request("GET", "/v1/connections/closed/proxy/me")
        assert_problem(closed, 403, "host_not_allowed")
        for path in (
            "/v1/connections/queried/request?url=https://evil.example/",
            "/v1/connections/queried/proxy/me",
        ):
            target = {"Tokenward-Target": "https://evil.example"}
            reply = await daemon.request("GET", path, headers=target)
            assert_problem(reply, 403, "host_not_allowed")
        assert acme.seen == []
        looks = await daemon.request(
            "GET", "/v1/connections/queried/request", params={"url": f"{acme.url}/x?v=1&a=b"}
        )
        assert set(looks.body) == {"url", "headers", "query", "body"}
        # Each thing once: whoever adds query to url sends no parameter twice.
        assert looks.body["url"] == f"{acme.url}/x?a=b"
        assert looks.body["query"] == {"v": "3"}
        assert looks.body["headers"]["X-Api-Version"] == "2"
        assert looks.body["headers"]["Authorization"].startswith("Bearer acme-at-")


async def test_a_field_is_asked_where_a_url_needs_it(daemon: Tokenward, acme: AcmeService) -> None:
    """Without required: true the configuration loads; the page asks, POST may give it."""
    async with daemon:
        made = await daemon.create("asking", id="asking")
        refused = await walk(made["connect_url"], {})
        assert (refused.status, "Shop" in refused.text) == (422, True)
        assert (await walk(made["connect_url"], {"shop": "s1"})).status == 303
        assert acme.authorized[-1]["shop"] == "s1"
        acme.account = "2"
        given = await daemon.create("asking", id="given", fields={"shop": "s2"})
        async with ClientSession() as browser:
            url = f"{given['connect_url']}?go=1"
            async with browser.get(url, allow_redirects=False) as begun:
                assert begun.status == 303
                assert query_of(begun.headers["Location"])["shop"] == "s2"
        assert (await daemon.connection("asking"))["fields"] == {"shop": "s1"}


async def test_bad_members_are_all_named(daemon: Tokenward, acme: AcmeService) -> None:
    """422 lists each bad member, whatever else is wrong."""
    del acme
    body: dict[str, Any] = {
        "provider": "nobody",
        "id": "bad id",
        "return_url": "https://evil.example/",
        "surplus": True,
        **dict.fromkeys(("fields", "scopes", "metadata", "tokens"), 5),
    }
    async with daemon:
        reply = await daemon.request("POST", "/v1/connections", json=body)
        assert_problem(reply, 422, "invalid_request")
        assert {error["member"] for error in reply.body["errors"]} == set(body)


async def test_paging_and_filters(daemon: Tokenward, acme: AcmeService) -> None:
    """Pages of every size hold each connection once, and what is removed does not disturb them."""
    async with daemon:
        for number in range(45):
            await daemon.create(
                "acme" if number % 3 else "bare",
                id=f"n{number:02}",
                metadata={"team": str(number % 4), "a.b": "x y"},
            )

        async def walked(query: str, limit: int) -> list[str]:
            found: list[str] = []
            cursor = ""
            while True:
                path = f"/v1/connections?limit={limit}&{query}{cursor}"
                page = (await daemon.request("GET", path)).body
                assert set(page) == {"connections", "next_cursor"}
                found += [one["id"] for one in page["connections"]]
                if page["next_cursor"] is None:
                    return found
                cursor = f"&cursor={page['next_cursor']}"

        everything = [f"n{number:02}" for number in range(44, -1, -1)]
        for limit in (1000, 44, 7):
            assert await walked("", limit) == everything
        assert len(await walked("provider=bare", 4)) == 15
        assert len(await walked("status=pending&metadata.team=3", 4)) == 11
        assert await walked("metadata.a.b=x%20y&metadata.team=9", 4) == []
        assert await walked("q=N04", 4) == ["n04"]
        assert await walked("q=%25", 4) == []
        first = (await daemon.request("GET", "/v1/connections?limit=5")).body
        await daemon.request("DELETE", "/v1/connections/n40?purge=true")
        after = await daemon.request("GET", f"/v1/connections?cursor={first['next_cursor']}")
        assert after.body["connections"][0]["id"] == "n39"
    assert acme.token_requests == []


async def test_the_drop_in_answers_as_rfc_6749(daemon: Tokenward, acme: AcmeService) -> None:
    """Basic, post, both grants: 5.1; a wrong key is 401 invalid_client; all else 400 (5.2)."""
    async with daemon:
        await daemon.create("acme", id="c", tokens=acme.imported("1"))
        await daemon.create("acme", id="waiting")
        url = f"{daemon.api_url}/v1/connections/{{}}/oauth2/token"
        key = daemon.key

        async def ask(name: str, form: dict[str, str], **more: Any) -> tuple[int, dict[str, Any]]:
            async with daemon.session.post(url.format(name), data=form, **more) as answer:
                return answer.status, await answer.json()

        machine, refresh = {"grant_type": "client_credentials"}, {"grant_type": "refresh_token"}
        post = {"client_id": "any", "client_secret": key}
        for form in ({**machine, **post}, {**refresh, "refresh_token": "any", **post}):
            status, body = await ask("c", form)
            assert (status, body["token_type"]) == (200, "Bearer")
            assert body["access_token"] in acme.access
            assert "refresh_token" not in body
        for name, form, wanted in (
            ("c", {**machine, "client_secret": "wrong"}, (401, "invalid_client")),
            ("c", machine, (401, "invalid_client")),
            ("c", {"grant_type": "password", **post}, (400, "unsupported_grant_type")),
            ("c", post, (400, "invalid_request")),
            ("nobody", {**machine, **post}, (400, "invalid_grant")),
            ("waiting", {**machine, **post}, (400, "invalid_grant")),
        ):
            status, body = await ask(name, form)
            assert (status, body["error"]) == wanted
