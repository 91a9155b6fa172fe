"""The rows of the requirement documents, S1 to S26, with two real authorization servers.

oidc-provider (discovery, strict rotation) and django-oauth-toolkit (endpoints by hand, an API
behind its tokens). Each test's docstring begins with the rows it walks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from aiohttp import ClientSession

from tests.support.django_toolkit.provider import DjangoToolkit
from tests.support.dump import dump
from tests.support.oauth_flow import browser_session
from tests.support.oidc_provider import OidcProvider
from tests.support.polling import eventually
from tests.support.tokenward import Reply, Tokenward

# Long enough that nothing is refreshed unless a test wants it.
LONG = timedelta(minutes=10)


@pytest.fixture
def django(daemon: Tokenward) -> Iterator[DjangoToolkit]:
    """A django-oauth-toolkit that knows the daemon."""
    with DjangoToolkit(redirect_uris=[daemon.redirect_uri], access_token_lifetime=LONG) as server:
        yield server


@pytest.fixture
def oidc(daemon: Tokenward) -> Iterator[OidcProvider]:
    """An oidc-provider that knows the daemon."""
    with OidcProvider(redirect_uris=[daemon.redirect_uri], access_token_lifetime=LONG) as server:
        yield server


def django_entry(server: DjangoToolkit, **more: Any) -> dict[str, Any]:
    """A provider entry with everything that the documents ask for."""
    return {
        "authorization_endpoint": server.authorization_endpoint,
        "token_endpoint": server.token_endpoint,
        "revocation_endpoint": server.revocation_endpoint,
        "client_id": server.client_id,
        "client_secret": server.client_secret,
        "scopes": ["read"],
        "api_base_url": server.base_url,
        "allow_private_hosts": True,
        "test": {"path": "/me", "expect": "id"},
        "label": "{me.name} ({me.email})",
        "account_id": "me.id",
        **more,
    }


def oidc_entry(server: OidcProvider, **more: Any) -> dict[str, Any]:
    """A provider entry found by discovery, with the userinfo endpoint as its test."""
    return server.provider(
        api_base_url=server.issuer,
        allow_private_hosts=True,
        test={"path": "/me"},
        label="{me.sub}",
        account_id="me.sub",
        **more,
    )


async def go_through(
    connect_url: str,
    login: Any,
    *,
    typed: Mapping[str, str] | None = None,
    **who: str,
) -> tuple[int, str]:
    """Open a connect URL, press Connect, log in; return status and text of the last page."""
    async with browser_session() as browser:
        async with browser.get(connect_url) as page:
            assert page.status == 200, await page.text()
        async with browser.post(connect_url, data=typed, allow_redirects=False) as begun:
            assert begun.status == 303, await begun.text()
            location = begun.headers["Location"]
        callback = await login(location, session=browser, **who)
        async with browser.get(callback) as last:
            return last.status, await last.text()


async def connected(
    daemon: Tokenward, login: Any, provider: str, connection: str, **members: object
) -> dict[str, Any]:
    """Create a connection, authorize it, and return its body."""
    created = await daemon.create(provider, id=connection, **members)
    status, page = await go_through(created["connect_url"], login)
    assert (status, "Authorization completed" in page) == (200, True), page
    return await daemon.connection(connection)


async def authorization_url(daemon: Tokenward, provider: str, **members: object) -> str:
    """Return where the browser is sent when Connect is pressed."""
    created = await daemon.create(provider, **members)
    async with (
        browser_session() as browser,
        browser.post(created["connect_url"], allow_redirects=False) as begun,
    ):
        assert begun.status == 303, await begun.text()
        return begun.headers["Location"]


async def events_of(daemon: Tokenward, connection: str) -> list[dict[str, Any]]:
    """Return a connection's history, newest first."""
    reply = await daemon.request("GET", f"/v1/connections/{connection}/events")
    assert reply.status == 200, reply.content
    found: list[dict[str, Any]] = reply.body["events"]
    return found


async def test_fields_choose_the_urls(daemon: Tokenward, django: DjangoToolkit) -> None:
    """S1, S21: a field is a part of every URL, kept with the connection, and changed by PATCH."""
    templated = {
        "authorization_endpoint": f"{django.base_url}/{{area}}/authorize/",
        "token_endpoint": f"{django.base_url}/{{area}}/token/",
        "revocation_endpoint": f"{django.base_url}/{{area}}/revoke_token/",
        "fields": {"area": {"title": "Area", "enum": ["o", "elsewhere"], "default": "o"}},
    }
    daemon.settings["providers"] = {"django": django_entry(django) | templated}
    async with daemon:
        shown = await connected(daemon, django.login, "django", "f-1", fields={"area": "o"})
        assert shown["fields"] == {"area": "o"}
        assert shown["label"] == "alice (alice@example.com)"
        refreshed = await daemon.request("POST", "/v1/connections/f-1/refresh")
        assert (refreshed.status, refreshed.body["generation"]) == (200, 2), refreshed.content
        changed = await daemon.request(
            "PATCH", "/v1/connections/f-1", json={"fields": {"area": "elsewhere"}}
        )
        assert changed.body["fields"] == {"area": "elsewhere"}
        failed = await daemon.request("POST", "/v1/connections/f-1/refresh")
        assert failed.status == 503
        url = await authorization_url(daemon, "django", fields={"area": "elsewhere"})
        assert urlsplit(url).path == "/elsewhere/authorize/"
        wrong = {"provider": "django", "fields": {"area": "../x", "other": "1"}}
        refused = await daemon.request("POST", "/v1/connections", json=wrong)
        assert refused.status == 422
        named = {error["member"] for error in refused.body["errors"]}
        assert named == {"fields.area", "fields.other"}


async def test_the_redirect_uri_is_exact(daemon: Tokenward, oidc: OidcProvider) -> None:
    """S2, S4, S19, S22, S24: one redirect URI, always a fresh state, and PKCE with S256."""
    daemon.settings["providers"] = {"oidc": oidc_entry(oidc)}
    async with daemon:
        urls = [await authorization_url(daemon, "oidc") for _ in range(2)]
        provider = (await daemon.request("GET", "/v1/providers/oidc")).body
    queries = [dict(parse_qsl(urlsplit(url).query)) for url in urls]
    for query in queries:
        assert query["redirect_uri"] == daemon.redirect_uri == provider["redirect_uri"]
        assert query["response_type"] == "code"
        assert query["client_id"] == oidc.client_id
        assert query["code_challenge_method"] == "S256"
        assert len(query["state"]) >= 22
    assert queries[0]["state"] != queries[1]["state"]
    assert queries[0]["code_challenge"] != queries[1]["code_challenge"]


async def test_secrets_stay_inside(
    daemon: Tokenward, django: DjangoToolkit, database_url: str
) -> None:
    """S3, S17: no client secret and no token in an answer, the log, the metrics or the database."""
    daemon.settings["providers"] = {"django": django_entry(django)}
    async with daemon:
        await connected(daemon, django.login, "django", "s-1")
        token = (await daemon.token("s-1")).body["access_token"]
        answers = [
            (await daemon.request("GET", path)).content.decode()
            for path in (
                "/v1/connections",
                "/v1/connections/s-1",
                "/v1/connections/s-1/events",
                "/v1/providers",
                "/v1/providers/django",
                "/openapi.json",
            )
        ]
        async with daemon.session.get(f"{daemon.ops_url}/metrics") as metrics:
            answers.append(await metrics.text())
        answers += [daemon.log(), str(await dump(database_url))]
    for text in answers:
        assert token not in text
        assert django.client_secret not in text


async def test_scopes_asked_and_granted(daemon: Tokenward, oidc: OidcProvider) -> None:
    """S5: scopes are joined as the provider wants, chosen by connection, and kept as granted."""
    comma = oidc_entry(oidc, scope_separator=",", scopes=["a", "b"])
    daemon.settings["providers"] = {"oidc": oidc_entry(oidc), "comma": comma}
    daemon.settings["providers"]["comma"]["client_id"] = "another"
    async with daemon:
        url = await authorization_url(daemon, "comma")
        assert parse_qs(urlsplit(url).query)["scope"] == ["a,b"]
        wanted = ["openid", "offline_access", "email"]
        shown = await connected(daemon, oidc.login, "oidc", "sc-1", scopes=wanted)
        assert shown["requested_scopes"] == wanted
        assert set(shown["scopes"]) <= set(wanted)
        assert "openid" in shown["scopes"]


async def test_exchange_and_refresh(daemon: Tokenward, oidc: OidcProvider) -> None:
    """S6, S8: the code is exchanged by POST, and the rotated refresh token is the next one sent."""
    daemon.settings["providers"] = {"oidc": oidc_entry(oidc)}
    async with daemon:
        await connected(daemon, oidc.login, "oidc", "r-1")
        seen = [(await daemon.token("r-1")).body["access_token"]]
        for generation in (2, 3):
            done = await daemon.request("POST", "/v1/connections/r-1/refresh")
            assert done.body["generation"] == generation
            seen.append((await daemon.token("r-1")).body["access_token"])
        assert len(set(seen)) == 3
    requests = oidc.token_requests()
    assert len(requests) == 2
    assert set(requests.values()) == {1}


async def test_a_reply_without_refresh_token_is_noticed(
    daemon: Tokenward, oidc: OidcProvider
) -> None:
    """S7: a connection without a refresh token says so, in its body and in its history."""
    daemon.settings["providers"] = {
        "online": oidc_entry(oidc) | {"scopes": ["openid"], "authorization_params": {}}
    }
    async with daemon:
        shown = await connected(daemon, oidc.login, "online", "n-1")
        events = await events_of(daemon, "n-1")
        token = await daemon.token("n-1")
    authorized = next(event for event in events if event["type"] == "connection.authorized")
    assert (shown["has_refresh_token"], shown["refresh_at"]) == (False, None)
    assert authorized["detail"]["has_refresh_token"] is False
    assert token.status == 200


@pytest.mark.parametrize("purge", [False, True], ids=["kept", "purged"])
async def test_disconnect_revokes_and_erases(
    daemon: Tokenward, django: DjangoToolkit, oidc: OidcProvider, *, purge: bool
) -> None:
    """S9, S10: disconnecting stops, erases and revokes; then somebody else may connect."""
    providers = {"django": django_entry(django), "oidc": oidc_entry(oidc)}
    daemon.settings["providers"] = providers
    servers: list[tuple[str, DjangoToolkit | OidcProvider]] = [("django", django), ("oidc", oidc)]
    async with daemon:
        for name, server in servers:
            await connected(daemon, server.login, name, f"{name}-1")
            token = (await daemon.token(f"{name}-1")).body["access_token"]
            assert await server.is_active(token)
            done = await daemon.request(
                "DELETE", f"/v1/connections/{name}-1{'?purge=true' if purge else ''}"
            )
            assert (done.status, done.body["revocation"]) == (200, "revoked"), done.content
            assert not await server.is_active(token)
            gone = await daemon.token(f"{name}-1")
            if purge:
                assert (gone.status, gone.body["code"]) == (404, "unknown_connection")
                continue
            assert (gone.status, gone.body["code"]) == (409, "disconnected")
            shown = await daemon.connection(f"{name}-1")
            assert (shown["status"], shown["has_refresh_token"]) == ("disconnected", False)
            assert (await events_of(daemon, f"{name}-1"))[0]["type"] == "connection.disconnected"


async def test_disconnect_then_connect_as_another(daemon: Tokenward, django: DjangoToolkit) -> None:
    """S10: a connection that was disconnected can be connected again, by the same person."""
    daemon.settings["providers"] = {"django": django_entry(django)}
    async with daemon:
        await connected(daemon, django.login, "django", "d-1")
        await daemon.request("DELETE", "/v1/connections/d-1")
        again = (await daemon.request("POST", "/v1/connections/d-1/authorize")).body
        status, page = await go_through(again["connect_url"], django.login)
        assert (status, "Authorization completed" in page) == (200, True), page
        shown = await daemon.connection("d-1")
        assert (shown["status"], shown["generation"]) == ("active", 2)
        other = await daemon.create("django", id="d-2")
        await go_through(other["connect_url"], django.login, user="bob")
        assert (await daemon.connection("d-2"))["label"] == "bob (bob@example.com)"


async def test_the_test_request_finds_a_revoked_token(
    daemon: Tokenward, django: DjangoToolkit
) -> None:
    """S11: a test on demand tells that all is well, and later that the grant was taken away."""
    daemon.settings["providers"] = {"django": django_entry(django)}
    async with daemon:
        shown = await connected(daemon, django.login, "django", "t-1")
        assert shown["last_tested_at"] is not None
        good = await daemon.request("POST", "/v1/connections/t-1/test")
        assert (good.status, good.body["ok"], good.body["status"]) == (200, True, 200)
        assert good.body["label"] == "alice (alice@example.com)"
        assert django.revoke_grants() == 1
        bad = await daemon.request("POST", "/v1/connections/t-1/test")
        assert (bad.status, bad.body["ok"]) == (200, False), bad.content
        shown = await daemon.until_status("t-1", "reauthorization_required")
        types = [event["type"] for event in await events_of(daemon, "t-1")]
    assert "connection.tested" in types
    assert "connection.reauthorization_required" in types


@pytest.mark.parametrize("mask", [False, True], ids=["shown", "masked"])
async def test_label(daemon: Tokenward, django: DjangoToolkit, *, mask: bool) -> None:
    """S12, S16: the label is made of the test reply, and masked where that is wanted."""
    entry = django_entry(django, label="{me.name} in {region}", label_mask=mask)
    entry["fields"] = {"region": {"title": "Region", "enum": ["us", "eu"], "default": "eu"}}
    daemon.settings["providers"] = {"django": entry}
    async with daemon:
        shown = await connected(daemon, django.login, "django", "l-1")
        assert shown["account_id"] == "1"
        if mask:
            assert "alice" not in shown["label"]
            assert shown["label"]
        else:
            assert shown["label"] == "alice in eu"
        named = {"label": "The billing account"}
        renamed = await daemon.request("PATCH", "/v1/connections/l-1", json=named)
        assert renamed.body["label"] == "The billing account"
        await daemon.request("POST", "/v1/connections/l-1/test")
        assert (await daemon.connection("l-1"))["label"] == "The billing account"


async def test_a_token_goes_to_listed_hosts_only(daemon: Tokenward, django: DjangoToolkit) -> None:
    """S13: proxy and request refuse every host that is not listed, before anything is sent."""
    daemon.settings["providers"] = {"django": django_entry(django)}
    async with daemon:
        await connected(daemon, django.login, "django", "h-1")
        port = urlsplit(django.base_url).port
        for host in (
            "https://evil.example",
            f"http://localhost:{port}",
            f"http://127.0.0.1:{port}.evil.example",
            f"http://user@127.0.0.1:{port}",
            "http://127.0.0.1:1",
        ):
            proxied = await daemon.request(
                "GET", "/v1/connections/h-1/proxy/me", headers={"Tokenward-Target": host}
            )
            assert (proxied.status, proxied.body["code"]) == (403, "host_not_allowed"), host
            asked = await daemon.request(
                "GET", "/v1/connections/h-1/request", params={"url": f"{host}/me"}
            )
            assert (asked.status, asked.body["code"]) == (403, "host_not_allowed"), host


async def test_one_account_is_one_connection(daemon: Tokenward, django: DjangoToolkit) -> None:
    """S14: the same account updates its connection, and another one cannot take its place."""
    daemon.settings |= {
        "providers": {"django": django_entry(django)},
        "return_urls": ["https://app.example/*"],
    }
    async with daemon:
        await connected(daemon, django.login, "django", "first", metadata={"a": "1"})
        created = await daemon.create("django", id="second", metadata={"b": "2"})
        status, page = await go_through(created["connect_url"], django.login)
        assert status == 200, page
        gone = await daemon.request("GET", "/v1/connections/second")
        assert (gone.status, gone.body["merged_into"]) == (404, "first")
        survivor = await daemon.connection("first")
        assert (survivor["generation"], survivor["status"]) == (2, "active")
        assert survivor["metadata"] == {"a": "1", "b": "2"}
        token = (await daemon.token("first")).body["access_token"]
        assert (await django.me(token)).status == 200
        again = (await daemon.request("POST", "/v1/connections/first/authorize")).body
        status, page = await go_through(again["connect_url"], django.login, user="bob")
        assert status == 400
        assert "alice" in page
        assert (await daemon.connection("first"))["label"] == "alice (alice@example.com)"
        assert (await daemon.token("first")).body["access_token"] == token
        assert (await django.me(token)).status == 200
        failed = (await events_of(daemon, "first"))[0]
        assert failed["type"] == "connection.authorization_failed"
        assert failed["detail"]["code"] == "other_account"


async def test_the_answer_names_the_surviving_connection(
    daemon: Tokenward, django: DjangoToolkit
) -> None:
    """S14, S18: the return URL carries the id that the account has, not the one that gave way."""
    daemon.settings |= {
        "providers": {"django": django_entry(django)},
        "return_urls": ["https://app.example/*"],
    }
    async with daemon:
        await connected(daemon, django.login, "django", "first")
        back = "https://app.example/done"
        created = await daemon.create("django", id="second", return_url=back)
        async with browser_session() as browser:
            async with browser.post(created["connect_url"], allow_redirects=False) as begun:
                location = begun.headers["Location"]
            callback = await django.login(location, session=browser)
            async with browser.get(callback, allow_redirects=False) as last:
                assert last.status == 303
                assert last.headers["Location"] == f"{back}?connection=first&status=active"


async def test_request_values_are_on_every_request(
    daemon: Tokenward, django: DjangoToolkit
) -> None:
    """S15, S16, S23: the proxy adds headers, query and body, always with the newest token."""
    values = {
        "headers": {"X-Api-Version": "2", "X-Account": "{me.id}"},
        "query": {"tenant": "{area}"},
        "body": {"source": "tokenward"},
    }
    entry = django_entry(django, request=values)
    entry["fields"] = {"area": {"title": "Area", "default": "north"}}
    daemon.settings["providers"] = {"django": entry}
    async with daemon:
        await connected(daemon, django.login, "django", "p-1")
        for _ in range(2):
            token = (await daemon.token("p-1")).body["access_token"]
            done = await daemon.request(
                "POST", "/v1/connections/p-1/proxy/echo/a%20b?x=1", json={"name": "n"}
            )
            assert done.status == 200, done.content
            echoed = done.body
            assert echoed["token_sha256"] == hashlib.sha256(token.encode()).hexdigest()
            assert (echoed["method"], echoed["path"]) == ("POST", "/a b")
            assert echoed["query"] == {"x": ["1"], "tenant": ["north"]}
            assert echoed["headers"]["X-Api-Version"] == "2"
            assert echoed["headers"]["X-Account"] == "1"
            assert json.loads(echoed["body"]) == {"name": "n", "source": "tokenward"}
            assert "Set-Cookie" not in done.headers
            assert done.headers["X-Echo"] == "yes"
            await daemon.request("POST", "/v1/connections/p-1/refresh")
        asked = await daemon.request(
            "GET", "/v1/connections/p-1/request", params={"url": f"{django.base_url}/me"}
        )
        token = (await daemon.token("p-1")).body["access_token"]
        assert asked.body["headers"]["Authorization"] == f"Bearer {token}"
        assert asked.body["headers"]["X-Api-Version"] == "2"
        assert asked.body["query"] == {"tenant": "north"}
        assert asked.body["body"] == {"source": "tokenward"}


async def test_a_401_is_answered_by_one_refresh(daemon: Tokenward, django: DjangoToolkit) -> None:
    """S15: an access token that ended early is refreshed once, and the request sent again."""
    daemon.settings["providers"] = {"django": django_entry(django)}
    async with daemon:
        await connected(daemon, django.login, "django", "p-2")
        token = (await daemon.token("p-2")).body["access_token"]
        assert django.expire_access_tokens() == 1
        assert (await django.me(token)).status == 401
        done = await daemon.request("POST", "/v1/connections/p-2/proxy/echo", json={"once": True})
        assert done.status == 200, done.content
        served = (await daemon.token("p-2")).body
        assert served["generation"] == 2
        digest = hashlib.sha256(served["access_token"].encode()).hexdigest()
        assert done.body["token_sha256"] == digest
        assert json.loads(done.body["body"]) == {"once": True}
    assert list(django.token_requests().values()) == [1]


async def test_authorization_failures_say_what_happened(
    daemon: Tokenward, oidc: OidcProvider
) -> None:
    """S18, S19: the provider's own code is on the page and in the history; a false state is not."""
    daemon.settings["providers"] = {"oidc": oidc_entry(oidc)}
    async with daemon:
        created = await daemon.create("oidc", id="e-1")
        async with browser_session() as browser:
            async with browser.post(created["connect_url"], allow_redirects=False) as begun:
                sent = parse_qs(urlsplit(begun.headers["Location"]).query)
            denied = {"error": "access_denied", "state": sent["state"][0], "iss": oidc.issuer}
            async with browser.get(daemon.redirect_uri, params=denied) as page:
                text = await page.text()
                assert (page.status, "access_denied" in text) == (400, True)
            forged = {"code": "x", "state": "A" * 43, "iss": oidc.issuer}
            async with browser.get(daemon.redirect_uri, params=forged) as page:
                assert page.status == 400
        failed = (await events_of(daemon, "e-1"))[0]
        assert failed["type"] == "connection.authorization_failed"
        assert failed["detail"]["code"] == "access_denied"
        assert failed["detail"]["reference"] in text
        assert (await daemon.connection("e-1"))["status"] == "pending"
    assert oidc.events("token_request.received") == []


async def test_the_life_of_a_jwt(daemon: Tokenward, tmp_path: Path) -> None:
    """S25, S26: a grant that puts tokens into the URL fragment is refused by the configuration."""
    daemon.settings["providers"] = {
        "old": {
            "authorization_endpoint": "https://old.example/authorize",
            "token_endpoint": "https://old.example/token",
            "client_id": "x",
            "client_secret": "y",
            "grant": "implicit",
        }
    }
    daemon.spawn()
    assert await daemon.ended() == 2
    assert "providers.old.grant" in daemon.log()
    assert "2.1.2" in daemon.log()
    del tmp_path


async def test_unmodified_services_use_the_drop_in(
    daemon: Tokenward, django: DjangoToolkit
) -> None:
    """S23: a service that knows OAuth only asks the drop-in token endpoint."""
    daemon.settings["providers"] = {"django": django_entry(django)}
    async with daemon:
        await connected(daemon, django.login, "django", "o-1")
        form = {"grant_type": "client_credentials", "client_secret": daemon.key}
        async with (
            ClientSession() as session,
            session.post(
                f"{daemon.api_url}/v1/connections/o-1/oauth2/token", data=form
            ) as answered,
        ):
            body = await answered.json()
            assert answered.status == 200, body
        assert (await django.me(body["access_token"])).status == 200
        assert body["token_type"] == "Bearer"
        assert 0 < body["expires_in"] <= LONG.total_seconds()


async def test_history_is_told_as_it_happens(daemon: Tokenward, django: DjangoToolkit) -> None:
    """S18, S20: what happens to a connection is a stream, which goes on where it was left."""
    daemon.settings["providers"] = {"django": django_entry(django)}
    async with daemon:
        await connected(daemon, django.login, "django", "ev-1")
        history = await events_of(daemon, "ev-1")
        assert {"connection.created", "connection.authorized"} <= {e["type"] for e in history}
        headers = {
            "Authorization": f"Bearer {daemon.key}",
            "Last-Event-ID": history[-1]["id"],
            "Accept": "text/event-stream",
        }
        async with daemon.session.get(f"{daemon.api_url}/v1/events", headers=headers) as stream:
            await daemon.request("POST", "/v1/connections/ev-1/refresh")
            types: list[str] = []
            async for line in stream.content:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    assert event["connection"] == "ev-1"
                    types.append(event["type"])
                if "token.refreshed" in types:
                    break
        assert types.index("connection.authorized") < types.index("token.refreshed")
        moments = [datetime.fromisoformat(event["at"]) for event in history]
        assert moments == sorted(moments, reverse=True)


async def test_a_dead_grant_is_reconnected(daemon: Tokenward, oidc: OidcProvider) -> None:
    """S9, S20: after a revocation a person connects again; fields and metadata are kept."""
    daemon.settings["providers"] = {"oidc": oidc_entry(oidc)}
    async with daemon:
        await connected(daemon, oidc.login, "oidc", "re-1", metadata={"team": "7"})
        oidc.revoke_grants()
        refused: Reply = await daemon.request("POST", "/v1/connections/re-1/refresh")
        assert (refused.status, refused.body["code"]) == (409, "reauthorization_required")
        again = (await daemon.request("POST", "/v1/connections/re-1/authorize")).body
        status, page = await go_through(again["connect_url"], oidc.login)
        assert (status, "Authorization completed" in page) == (200, True), page
        shown = await daemon.connection("re-1")
        assert (shown["status"], shown["metadata"]) == ("active", {"team": "7"})

        async def is_good() -> bool:
            return await oidc.is_active((await daemon.token("re-1")).body["access_token"])

        assert await eventually(is_good)
