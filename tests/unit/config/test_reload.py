"""What SIGHUP applies, what it keeps until a restart, and what it leaves to decide."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from daemon.config.reload import changes
from tests.support.configuration import PROVIDER, Desk

_ACME = f"providers: {{acme: {{{PROVIDER}, token_response: {{scope: a.b}}}}}}"
_KEYS = "encryption: {keys: [{id: a, secret: {env: K}}]}"
_ENVIRON: Mapping[str, str] = {"K": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}


@pytest.mark.parametrize(
    ("text", "applied", "restart"),
    [
        (_ACME, [], []),
        (_ACME.replace("a.b", "a.c"), ["providers.acme"], []),
        (_ACME.replace("me,", "you,"), ["providers.acme"], []),
        (_ACME.replace("env: CLIENT_SECRET", "env: K"), ["providers.acme"], []),
        (f"{_ACME}\nreturn_urls: ['https://a.example']", ["return_urls"], []),
        (f"{_ACME}\ncallers: [{{name: a, key: {{env: K}}}}]", ["callers"], []),
        (f"{_ACME}\nrefresh: {{at: 0.5, margin: 9}}", ["refresh.at", "refresh.margin"], []),
        (f"{_ACME}\nlog: {{level: debug}}", ["log.level"], []),
        (f"{_ACME}\nlog: {{format: console}}", [], ["log.format"]),
        (f"{_ACME}\nstate_dir: /elsewhere", [], ["state_dir"]),
        (f"{_ACME}\npublic_url: https://a.example", [], ["public_url"]),
        (f"{_ACME}\nlisten: {{ops: {{address: 127.0.0.1:1}}}}", [], ["listen.ops"]),
        (f"{_ACME}\ndatabase: {{url: postgresql://h}}", [], ["database.url"]),
        (f"{_ACME}\n{_KEYS}", ["encryption.keys"], []),
    ],
)
def test_changes(desk: Desk, text: str, applied: list[str], restart: list[str]) -> None:
    """Each key is applied at once, or keeps its value and is named."""
    old = desk.load(_ACME, environ=_ENVIRON)
    new = desk.load(text, environ=_ENVIRON)
    found = changes(old, new)
    assert list(found.applied) == applied
    assert [finding.path for finding in found.restart] == restart
    assert found.removed_providers == ()
    again = changes(found.settings, new)
    assert (list(again.applied), [one.path for one in again.restart]) == ([], restart)


def test_providers_come_and_go(desk: Desk) -> None:
    """A provider that is gone is named apart: it may have live connections."""
    found = changes(desk.load(_ACME), desk.load(_ACME.replace("acme", "other")))
    assert found.applied == ("providers.acme", "providers.other")
    assert found.removed_providers == ("acme",)


def test_new_warnings(desk: Desk) -> None:
    """The warnings are those of the new configuration."""
    new = desk.load("callers: [{name: a, key: 0123456789abcdefghij}]")
    assert changes(desk.load(""), new).settings.warnings == new.warnings != ()


_RICH = """
providers:
  acme:
    issuer: https://as.example
    client_id: me
    client_secret: {env: CLIENT_SECRET}
    fields: {region: {enum: [us, eu], default: us, pattern: "[a-z]+"}}
    api_base_url: https://{region}.acme.example
    test: {path: /me, expect: ok}
    label: "{me.name}"
    account_id: me.id
    request: {headers: {X-Version: "2"}}
events: {retention: 48h, webhook: {url: https://a.example, secret: {env: K}}}
"""


@pytest.mark.parametrize(
    ("old", "new", "applied"),
    [
        ("", "", []),
        ("expect: ok", "expect: good", ["providers.acme"]),
        ("account_id: me.id", "account_id: me.uid", ["providers.acme"]),
        ("[us, eu]", "[us, eu, uk]", ["providers.acme"]),
        ('"[a-z]+"', '"[a-z]{2}"', ["providers.acme"]),
        ("{me.name}", "{me.email}", ["providers.acme"]),
        ("//{region}.acme", "//api-{region}.acme", ["providers.acme"]),
        ('X-Version: "2"', 'X-Version: "3"', ["providers.acme"]),
        ("    test: {path: /me, expect: ok}\n", "    test: {path: /me}\n", ["providers.acme"]),
        ("48h", "72h", ["events.retention"]),
        ("https://a.example", "https://b.example", ["events.webhook"]),
    ],
)
def test_the_life_of_a_connection_changes_at_once(
    desk: Desk, old: str, new: str, applied: list[str]
) -> None:
    """What concerns fields, tests, labels, requests and events is applied without a restart."""
    found = changes(
        desk.load(_RICH, environ=_ENVIRON),
        desk.load(_RICH.replace(old, new), environ=_ENVIRON),
    )
    assert (list(found.applied), found.restart) == (applied, ())
