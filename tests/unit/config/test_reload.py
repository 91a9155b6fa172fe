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
        (f"{_ACME}\n{_KEYS}", [], ["encryption.keys"]),
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
