"""Pods that present their service account tokens to the real daemon, beside a real API server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daemon.config.settings import ServiceAccount
from daemon.domain.clock import SystemClock
from tests.support.api_server import KEYS, REVIEWS, ApiServer
from tests.support.polling import eventually
from tests.support.service_account_tokens import Signer, claims_of
from tests.support.token_server import TokenServer
from tests.support.tokenward import Reply, Tokenward

ADMIN = "a" * 40
RIGHTS = ["token", "read", "manage"]
SIGNER = Signer.of_curve()
_RECOGNISED = "service_account_recognised"
ROBOT = ServiceAccount("ops", "robot")
CALLERS: list[dict[str, Any]] = [
    {"name": "admin", "key": ADMIN, "connections": ["*"], "permissions": RIGHTS},
    {
        "name": "billing",
        "service_account": {"namespace": "payments", "name": "billing"},
        "connections": ["acme-*"],
        "permissions": ["token"],
    },
    {
        "name": "robot",
        "service_account": {"namespace": "ops", "name": "robot"},
        "connections": ["other-*"],
        "permissions": ["token", "read"],
    },
]


def token(*, signer: Signer = SIGNER, **how: Any) -> str:
    """Return a token that is issued now."""
    return signer.sign(claims_of(now=SystemClock().now().timestamp(), **how))


@asynccontextmanager
async def cluster(
    daemon: Tokenward, directory: Path, **section: Any
) -> AsyncIterator[tuple[ApiServer, TokenServer]]:
    """Run the daemon in a cluster, with a token for acme-1 and other-1."""
    async with TokenServer() as provider, ApiServer(directory, SIGNER) as server:
        daemon.settings["callers"] = CALLERS
        daemon.settings["providers"] = {"acme": provider.provider()}
        daemon.settings["kubernetes"] = server.section(**section)
        async with daemon:
            for name in ("acme-1", "other-1"):
                body = {"provider": "acme", "id": name, "tokens": {"refresh_token": f"of-{name}"}}
                made = await daemon.request("POST", "/v1/connections", json=body, key=ADMIN)
                assert made.status == 201, made.content
                await eventually(partial(_served, daemon, name), what=f"a token of {name}")
            yield server, provider


async def _served(daemon: Tokenward, name: str) -> bool:
    return (await read(daemon, name, ADMIN)).status == 200


async def _logged(daemon: Tokenward, event: str, lines: int = 1) -> list[dict[str, Any]] | None:
    found = daemon.logged(event)
    return found if len(found) >= lines else None


async def read(daemon: Tokenward, name: str, secret: str) -> Reply:
    """Read a token with a key or service account token."""
    return await daemon.request("GET", f"/v1/connections/{name}/token", key=secret)


@pytest.mark.parametrize("verification", ["jwks", "token_review"])
async def test_a_pod_reads_its_token(daemon: Tokenward, tmp_path: Path, verification: str) -> None:
    """With the token of its volume a pod gets what its account is configured for, and no more."""
    async with cluster(daemon, tmp_path, verification=verification) as (server, provider):
        asked = len(provider.seen)
        mine, robots = token(), token(account=ROBOT)
        # The first time takes the long way, the others the short one.
        for _ in range(3):
            answer = await read(daemon, "acme-1", mine)
            assert (answer.status, answer.body["access_token"]) == (200, "access-1")
        for path in ("acme-1/token", "acme-1"):
            foreign = await daemon.request("GET", f"/v1/connections/{path}", key=robots)
            assert (foreign.status, foreign.body["code"]) == (404, "unknown_connection")
        denied = await daemon.request("GET", "/v1/connections/acme-1", key=mine)
        assert (denied.status, denied.body["code"]) == (403, "permission_denied")
        listed = await daemon.request("GET", "/v1/connections", key=robots)
        assert [found["id"] for found in listed.body["connections"]] == ["other-1"]
        questions = {KEYS: 1} if verification == "jwks" else {REVIEWS: 2}
        assert server.asked == questions
        assert len(provider.seen) == asked
        recognised = await eventually(partial(_logged, daemon, _RECOGNISED, 2), what="the lines")
        assert [(line["namespace"], line["name"]) for line in recognised] == [
            ("payments", "billing"),
            ("ops", "robot"),
        ]
        for secret in (*mine.split("."), *robots.split("."), server.own_token):
            assert secret not in daemon.log()


async def test_every_door_takes_a_pod_s_token(daemon: Tokenward, tmp_path: Path) -> None:
    """Drop-in endpoint and proxy know a pod as the token read does, from the very first request."""
    async with cluster(daemon, tmp_path):
        url = f"{daemon.api_url}/v1/connections/acme-1/oauth2/token"
        form = {"grant_type": "client_credentials", "client_id": "any", "client_secret": token()}
        async with daemon.session.post(url, data=form) as answer:
            assert (answer.status, (await answer.json())["access_token"]) == (200, "access-1")
        form["client_secret"] = token(aud=["vault"])
        async with daemon.session.post(url, data=form) as answer:
            assert (answer.status, (await answer.json())["error"]) == (401, "invalid_client")
        proxied = await daemon.request("GET", "/v1/connections/acme-1/proxy/me", key=token())
        assert (proxied.status, proxied.body["code"]) == (403, "permission_denied")
        described = await daemon.request("GET", "/v1/connections/acme-1/request", key=token())
        assert (described.status, described.body["code"]) == (400, "bad_request")


async def test_a_token_for_others_is_worth_nothing(daemon: Tokenward, tmp_path: Path) -> None:
    """Refusals say what kind of reason there is, echo nothing, and cost the provider nothing."""
    async with cluster(daemon, tmp_path) as (server, provider):
        asked = len(provider.seen)
        stranger = Signer.of_curve(SIGNER.key_id)
        now = SystemClock().now().timestamp()
        refusals = {
            token(aud=["https://kubernetes.default.svc"]): "audience",
            token(aud=[]): "audience",
            token(iss="https://evil.example"): "issuer",
            token(exp=now - 60): "expired",
            token(nbf=now + 60): "not_yet_valid",
            token(signer=stranger): "signature",
            token(account=ServiceAccount("stolen", "billing")): "unknown_account",
            token()[:-1] + "=": None,
            "eyJ.e30.": "malformed",
        }
        for presented, reason in refusals.items():
            for path in ("/acme-1/token", "/nothing/token", "/acme-1/token?min_ttl=9", "/acme-1"):
                answer = await daemon.request("GET", f"/v1/connections{path}", key=presented)
                assert (answer.status, answer.body["code"]) == (401, "unauthenticated")
                assert answer.body.get("reason") == reason
                assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
                assert presented not in f"{answer.content!r}{answer.headers}"
        assert server.asked == {KEYS: 1}
        assert len(provider.seen) == asked
        assert not daemon.logged("request_failed")


async def test_a_reload_changes_who_comes(daemon: Tokenward, tmp_path: Path) -> None:
    """Accounts, rights and audience of a running daemon follow its configuration at once."""
    async with cluster(daemon, tmp_path):
        mine = token()
        assert (await read(daemon, "acme-1", mine)).status == 200
        daemon.settings["callers"] = [CALLERS[0], {**CALLERS[1], "connections": ["other-*"]}]
        assert await daemon.reload()
        assert (await read(daemon, "acme-1", mine)).body["code"] == "unknown_connection"
        assert (await read(daemon, "other-1", mine)).status == 200
        assert (await read(daemon, "other-1", token(account=ROBOT))).body["reason"] == (
            "unknown_account"
        )
        daemon.settings["kubernetes"]["audience"] = "another"
        assert await daemon.reload()
        assert (await read(daemon, "other-1", mine)).body["reason"] == "audience"
        assert (await read(daemon, "other-1", token(aud=["another"]))).status == 200
        daemon.settings["kubernetes"] = None
        assert not await daemon.reload()
        daemon.settings["callers"] = CALLERS[:1]
        assert await daemon.reload()
        assert "reason" not in (await read(daemon, "other-1", token(aud=["another"]))).body


async def test_an_api_server_that_is_away(daemon: Tokenward, tmp_path: Path) -> None:
    """A token that nobody can judge is answered 503 with a time to come again; keys still work."""
    async with cluster(daemon, tmp_path, verification="token_review") as (server, _):
        mine = token()
        assert (await read(daemon, "acme-1", mine)).status == 200
        await server.stop()
        assert (await read(daemon, "acme-1", mine)).status == 200
        answer = await read(daemon, "acme-1", token(life=600))
        assert (answer.status, answer.body["code"]) == (503, "verification_unavailable")
        assert answer.headers["Retry-After"] == "5"
        assert (await read(daemon, "acme-1", ADMIN)).status == 200
        await eventually(partial(_logged, daemon, "token_review_unavailable"), what="the warning")
