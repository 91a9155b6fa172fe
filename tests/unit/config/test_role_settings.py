"""What a process needs of the configuration depends on what it is for."""

from __future__ import annotations

import pytest

from daemon.domain.role import Role
from tests.support.configuration import Desk

_SHARED = """
database: {url: postgresql://tokenward@db.example/tokenward}
encryption: {keys: [{id: k, secret: {env: ENCRYPTION_KEY}}]}
"""
_KEYS = {"ENCRYPTION_KEY": "A" * 43 + "="}
_SECRETS = """
events: {webhook: {url: {file: /run/secrets/none}, secret: {env: TOKENWARD_HOOK}}}
providers:
  acme: {issuer: "https://as.example", client_id: me, client_secret: {file: /run/secrets/none}}
  list: {issuer: "https://as.example", client_id: us, client_secret: [{env: TOKENWARD_OLD}]}
  none: {issuer: "https://as.example", client_id: them}
"""


def test_who_only_serves_needs_no_secret_of_a_client(desk: Desk) -> None:
    """Neither those of clients nor of the webhook are looked for, missing or not."""
    environ = {**_KEYS, "TOKENWARD_OLD": "old"}
    settings = desk.load(_SHARED + _SECRETS, environ=environ, role=Role.SERVE)

    assert [each.client_secrets for each in settings.providers.values()] == [(), (), ()]
    assert settings.events.webhook is None
    assert settings.warnings == ()


@pytest.mark.parametrize("role", [Role.ALL, Role.REFRESH])
def test_who_refreshes_needs_all_of_them(desk: Desk, role: Role) -> None:
    """Each that is missing is a finding."""
    found = desk.findings(_SHARED + _SECRETS, environ=_KEYS, role=role)
    assert {finding.path for finding in found} == {
        "events.webhook.url",
        "events.webhook.secret",
        "providers.acme.client_secret",
        "providers.list.client_secret[0]",
        "providers.none.client_secret",
    }


def test_who_only_serves_needs_what_it_shares(desk: Desk) -> None:
    """A database and keys of its own would hold nothing that anybody refreshes."""
    found = desk.findings("", role=Role.SERVE)
    assert [finding.path for finding in found] == ["database.url", "encryption.keys"]
    assert all("--role serve" in finding.message for finding in found)
    assert desk.findings("", role=Role.REFRESH) == ()


def test_a_wrong_value_is_found_once(desk: Desk) -> None:
    """What is there and cannot be read is not missing, too."""
    text = "database: {url: {file: nowhere}}\nencryption: {keys: [{id: k, secret: {env: NOTHING}}]}"
    found = desk.findings(text, role=Role.SERVE)
    assert [finding.path for finding in found] == ["database.url", "encryption.keys[0].secret"]


def test_the_variable_of_the_role_is_no_setting(desk: Desk) -> None:
    """``TOKENWARD_ROLE`` is the command line's."""
    assert desk.findings("", environ={"TOKENWARD_ROLE": "serve"}) == ()
