"""Creating with fields, changing, testing, reconnecting and ending connections over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from daemon.domain.account import Account
from daemon.domain.authorization import Completion, StoredAuthorization
from daemon.domain.clock import SystemClock
from daemon.domain.connection import Failure
from daemon.domain.tokens import TokenSet
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.postgres import Database
from tests.support.api_parts import SETTINGS, FakeReport
from tests.support.api_stage import Answer, ApiStage, api_stage

ONE = "/v1/connections/acme-1"
TOKENS = {"refresh_token": "refresh-canary", "access_token": "access-1"}


@pytest.fixture
async def api(database: Database, cipher: TokenCipher) -> AsyncIterator[ApiStage]:
    """A running api listener."""
    async with api_stage(database, cipher) as stage:
        yield stage


def members(answer: Answer) -> list[str]:
    """Return the members that a body was refused for."""
    assert (answer.status, answer.code) == (422, "invalid_request")
    return [error["member"] for error in answer.body["errors"]]


async def tenant(api: ApiStage, **more: Any) -> Answer:
    """Try to create a connection of the provider with fields."""
    return await api.ask(
        "POST", "/v1/connections", body={"provider": "tenants", "id": "acme-1", **more}
    )


async def test_fields_are_kept(api: ApiStage) -> None:
    """Values given at creation are stored, trimmed; what is left open a person is asked for."""
    created = await tenant(api, fields={"company": " initech "})
    assert created.status == 201
    assert created.body["fields"] == {"company": "initech"}
    assert "connect_url" in created.body
    assert (await api.ask("GET", ONE)).body["fields"] == {"company": "initech"}


async def test_imported_tokens_come_with_all_fields(api: ApiStage) -> None:
    """With tokens nobody is asked: defaults are filled in, what is required must be there."""
    refused = await tenant(api, tokens=TOKENS)
    assert members(refused) == ["fields.company"]
    created = await tenant(api, tokens=TOKENS, fields={"company": "initech"})
    assert created.body["fields"] == {"company": "initech", "region": "us"}
    assert [connection.id for connection in api.examined] == ["acme-1"]


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({"company": "evil.example/"}, ["fields.company"]),
        ({"company": "a.b"}, ["fields.company"]),
        ({"company": 7}, ["fields.company"]),
        ({"region": "mars"}, ["fields.region"]),
        ({"colour": "red"}, ["fields.colour"]),
        ({"company": ["a"], "region": "mars"}, ["fields.company", "fields.region"]),
        (["company"], ["fields"]),
        ("company", ["fields"]),
    ],
)
@pytest.mark.parametrize("tokens", [None, TOKENS], ids=["asked", "imported"])
async def test_bad_fields(api: ApiStage, fields: Any, bad: list[str], tokens: Any) -> None:
    """Each bad value is named by its field, also one that no URL could be built with."""
    refused = await tenant(api, fields=fields, tokens=tokens)
    assert set(bad) <= set(members(refused))
    assert (await api.ask("GET", ONE)).status == 404


async def test_a_missing_field_is_no_fault_of_another(api: ApiStage) -> None:
    """What a person will still be asked for is not held against what was given."""
    created = await tenant(api, fields={"region": "eu"})
    assert created.body["fields"] == {"region": "eu"}


async def test_changing(api: ApiStage) -> None:
    """PATCH merges: what is absent stays, null removes, and the other replicas are told."""
    created = await tenant(
        api, fields={"company": "initech"}, tokens=TOKENS, metadata={"team": "a", "old": "x"}
    )
    assert created.status == 201
    changed = await api.ask(
        "PATCH",
        ONE,
        body={
            "label": " Initech, EU ",
            "metadata": {"old": None, "new": "y"},
            "fields": {"region": "eu"},
        },
    )
    assert changed.status == 200
    assert changed.body["label"] == "Initech, EU"
    assert changed.body["metadata"] == {"team": "a", "new": "y"}
    assert changed.body["fields"] == {"company": "initech", "region": "eu"}
    assert api.changed == ["acme-1"]
    back = await api.ask(
        "PATCH", ONE, body={"label": None, "metadata": None, "fields": {"region": None}}
    )
    assert (back.body["label"], back.body["metadata"]) == (None, {})
    assert back.body["fields"] == {"company": "initech", "region": "us"}
    unchanged = await api.ask("PATCH", ONE, body={})
    assert unchanged.body["fields"] == back.body["fields"]


@pytest.mark.parametrize(
    ("body", "bad"),
    [
        ({"label": ""}, "label"),
        ({"label": "  "}, "label"),
        ({"label": "a\nb"}, "label"),
        ({"label": "\u202egnp"}, "label"),
        ({"label": "x" * 201}, "label"),
        ({"label": 7}, "label"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(n): "x" for n in range(51)}}, "metadata"),
        ({"fields": {"company": None}}, "fields.company"),
        ({"fields": {"company": "a/b"}}, "fields.company"),
        ({"fields": {"region": "mars"}}, "fields.region"),
        ({"fields": {"colour": "red"}}, "fields.colour"),
        ({"fields": 7}, "fields"),
        ({"status": "active"}, "status"),
        ({"scopes": []}, "scopes"),
        ({"account_id": "7"}, "account_id"),
    ],
)
async def test_bad_changes(api: ApiStage, body: dict[str, Any], bad: str) -> None:
    """A change with one fault changes nothing, and names it."""
    await tenant(api, fields={"company": "initech"}, tokens=TOKENS, metadata={"team": "a"})
    before = (await api.ask("GET", ONE)).body
    good: dict[str, Any] = {"label": "good", "metadata": {"more": "x"}}
    assert members(await api.ask("PATCH", ONE, body=good | body)) == [bad]
    assert (await api.ask("GET", ONE)).body == before
    assert api.changed == []


async def test_a_pending_connection_may_lack_fields(api: ApiStage) -> None:
    """Whom a person still has to authorize may be changed before every field is known."""
    await tenant(api)
    changed = await api.ask("PATCH", ONE, body={"fields": {"region": "eu"}})
    assert changed.body["fields"] == {"region": "eu"}


async def test_a_provider_that_is_gone(database: Database, cipher: TokenCipher) -> None:
    """Label and metadata can be changed without the provider; its fields cannot."""
    async with api_stage(database, cipher) as stage:
        await tenant(stage)
    fewer = replace(SETTINGS, providers={"acme": SETTINGS.providers["acme"]})
    async with api_stage(database, cipher, settings=fewer) as stage:
        assert (await stage.ask("PATCH", ONE, body={"label": "kept"})).body["label"] == "kept"
        assert members(await stage.ask("PATCH", ONE, body={"fields": {}})) == ["fields"]
        for action in ("authorize", "refresh", "test"):
            refused = await stage.ask("POST", f"{ONE}/{action}")
            assert (refused.status, refused.code) == (409, "provider_not_configured")
        assert (await stage.ask("DELETE", ONE)).status == 200


async def test_testing(api: ApiStage) -> None:
    """The answer tells how the test request went."""
    await api.imported()
    good = await api.ask("POST", f"{ONE}/test")
    assert good.body["ok"] is True
    assert (good.body["status"], good.body["account_id"]) == (200, "account-7")
    assert (good.body["label"], good.body["error"]) == ("Ada Lovelace", None)
    now = SystemClock().now()
    api.tests.report = FakeReport(
        checked_at=now,
        ok=False,
        status=None,
        label=None,
        account_id=None,
        error=Failure(code="network", description="No route.", at=now),
    )
    bad = await api.ask("POST", f"{ONE}/test")
    assert bad.status == 200
    assert bad.body["error"]["code"] == "network"
    assert api.tests.tested == ["acme-1", "acme-1"]
    assert (await api.ask("POST", "/v1/connections/acme-9/test")).status == 404


async def test_disconnecting(api: ApiStage) -> None:
    """The tokens are gone at once; the connection stays and may be connected again."""
    await api.imported()
    ended = await api.ask("DELETE", ONE)
    assert ended.status == 200
    assert ended.body["connection"]["status"] == "disconnected"
    assert ended.body["connection"]["has_refresh_token"] is False
    assert ended.body["revocation"] == "queued"
    token = await api.ask("GET", f"{ONE}/token")
    assert (token.status, token.code) == (409, "disconnected")
    assert (await api.ask("POST", f"{ONE}/authorize")).status == 200
    assert [(name, who.value, purge) for name, who, purge in api.disconnecting.asked] == [
        ("acme-1", "caller", False)
    ]


async def test_purging(api: ApiStage) -> None:
    """``purge=true`` leaves nothing that could be asked for; the answer shows it a last time."""
    await api.imported()
    ended = await api.ask("DELETE", f"{ONE}?purge=true")
    assert ended.body["connection"]["id"] == "acme-1"
    assert (await api.ask("GET", ONE)).status == 404
    assert (await api.ask("GET", f"{ONE}/token")).status == 404
    assert (await api.ask("DELETE", ONE)).status == 404


@pytest.mark.parametrize("query", ["purge=yes", "purge=", "purge=true&purge=true", "force=true"])
async def test_bad_parameters_of_disconnecting(api: ApiStage, query: str) -> None:
    """What cannot be understood disconnects nothing."""
    await api.imported()
    refused = await api.ask("DELETE", f"{ONE}?{query}")
    assert (refused.status, refused.code) == (400, "bad_request")
    assert (await api.ask("GET", ONE)).body["status"] == "active"


async def test_a_merged_connection_names_its_survivor(api: ApiStage) -> None:
    """An id that gave way to another is 404 with the id to use, for whoever may see that one."""
    await complete(api, "acme-1")
    await complete(api, "acme-x")
    for key, path in (("admin", ""), ("admin", "/token"), ("tokens", "/token")):
        gone = await api.ask("GET", f"/v1/connections/acme-x{path}", key=key)
        assert (gone.status, gone.code) == (404, "unknown_connection")
        assert gone.body["merged_into"] == "acme-1"


async def test_a_survivor_that_is_not_the_callers_is_not_named(api: ApiStage) -> None:
    """Who may not see the survivor is told nothing but that the id is unknown."""
    await complete(api, "secret-1")
    await complete(api, "acme-1")
    gone = await api.ask("GET", f"{ONE}/token", key="tokens")
    assert (gone.status, gone.code) == (404, "unknown_connection")
    assert "merged_into" not in gone.body


async def complete(api: ApiStage, name: str) -> None:
    """Create a connection and complete its authorization as one and the same account."""
    await api.create(name)
    now = SystemClock().now()
    tokens = TokenSet(
        generation=1,
        access_token="access",
        refresh_token=f"refresh-{name}",
        token_type="Bearer",
        scopes=("read",),
        issued_at=now,
        expires_at=None,
    )
    stored = await api.authorizations.complete(
        Completion(
            connection_id=name, tokens=tokens, due_at=None, account=Account(account_id="account-7")
        )
    )
    assert isinstance(stored, StoredAuthorization)
