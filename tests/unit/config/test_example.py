"""``config.example.yaml`` documents every key and loads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from daemon.config.document import read_document
from daemon.config.schema import SETTINGS, Key, Listed, Named, Section
from daemon.config.settings import Listen, Log, Refresh
from daemon.domain.provider import ClientAuthentication, Provider, RevocationRequest
from tests.support.configuration import Desk

_EXAMPLE = Path(__file__).parents[3] / "config.example.yaml"
_KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def _accepted(key: Key, path: str = "") -> Iterator[str]:
    """Yield the path of every key of the schema, names and positions left out."""
    match key:
        case Section():
            for name, below in key.keys.items():
                yield f"{path}.{name}"
                yield from _accepted(below, f"{path}.{name}")
        case Named(section) | Listed(section):
            yield from _accepted(section, f"{path}.*")


def _present(value: object, key: Key, path: str = "") -> Iterator[str]:
    """Yield the path of every key of a document, in the same notation."""
    match key:
        case Section() if isinstance(value, Mapping):
            for name, below in value.items():
                yield f"{path}.{name}"
                yield from _present(below, key.keys[name], f"{path}.{name}")
        case Named(section) if isinstance(value, Mapping):
            for below in value.values():
                yield from _present(below, section, f"{path}.*")
        case Listed(section) if isinstance(value, list):
            for below in value:
                yield from _present(below, section, f"{path}.*")


def test_example_has_every_key() -> None:
    """Every key that is accepted stands in the example."""
    present = set(_present(read_document(_EXAMPLE), SETTINGS))
    assert present == set(_accepted(SETTINGS))


def test_example_loads(desk: Desk) -> None:
    """The example loads without a finding or a warning once its secrets are there."""
    for name in ("acme", "acme-previous"):
        desk.write(name, "hush\n")
    desk.write("webhook", "whsec_" + _KEY)
    desk.write("tokenward-key-2026-11", _KEY)
    desk.write("reporting-caller-key", "0123456789abcdefghij")
    text = _EXAMPLE.read_text().replace("/run/secrets/", f"{desk.directory}/")
    environ = {"EXAMPLE_CLIENT_SECRET": "hush", "ENCRYPTION_KEY_2026_05": _KEY}
    settings = desk.load(text, environ=environ)
    assert settings.warnings == ()
    assert list(settings.providers) == ["example", "acme"]


def test_example_states_the_defaults(desk: Desk) -> None:
    """Where a key has a default, the example shows it."""
    example = read_document(_EXAMPLE)
    assert isinstance(example, dict)
    acme = example["providers"]["acme"]
    sections = {key: example[key] for key in ("state_dir", "public_url", "listen", "database")}
    sections |= {key: example[key] for key in ("refresh", "log")}
    sections["events"] = {"retention": example["events"]["retention"]}
    sections["providers"] = {
        "acme": {
            "issuer": "https://as.example",
            "client_id": "me",
            "token_endpoint_auth_method": "none",
            "revocation_request": acme["revocation_request"],
            **{key: acme[key] for key in ("allow_private_hosts", "label_mask")},
        }
    }
    settings = desk.load(json.dumps(sections))
    assert replace(settings, providers={}) == desk.load("")
    provider = settings.providers["acme"]
    assert provider.revocation_request == RevocationRequest()
    assert provider == Provider(
        name="acme",
        client_id="me",
        issuer="https://as.example",
        token_endpoint_auth_method=ClientAuthentication.NONE,
    )
    assert (settings.listen, settings.refresh, settings.log) == (Listen(), Refresh(), Log())
    default = Provider(name="a", client_id="b")
    assert acme["token_endpoint_auth_method"] == default.token_endpoint_auth_method
    assert (acme["concurrency"], acme["rate"]) == (default.concurrency, f"{default.rate:.0f}/s")
    assert acme["rotation"] == default.rotation.kind
    assert acme["scope_separator"] == default.scope_separator
