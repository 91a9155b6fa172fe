"""Whatever the input: settings or findings, never another error, and never a secret in the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.config.loading import load_settings
from daemon.config.schema import SETTINGS, Key, Leaf, Listed, Named, Section, TextMap
from daemon.config.settings import Settings
from daemon.domain.errors import ConfigurationError
from tests.support.configuration import PROVIDER, Desk

CANARY = "canary-5ecret-0123456789"

_WORDS = (
    *("https://a.example/*", "127.0.0.1:1", "10/s", "5m", "off", "S256", "none", "static", "never"),
    *("https://{acme}.a.example/{token.x}", "{token.url}/v1", "/{acme}", "{me.name}", "me.id"),
    *("{access_token}", "*.a.example:8443", "POST", "bearer", "whsec_" + "A" * 32),
)
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(_WORDS),
    st.sampled_from([{"file": "x"}, {"env": "X"}, {"grace": "5s"}, {"env": None}, {"file": "\0"}]),
)
_ANYTHING = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)


def _section(section: Section) -> st.SearchStrategy[object]:
    known = {name: _like(key) for name, key in section.keys.items()}
    return st.fixed_dictionaries({}, optional=known) | _ANYTHING


def _like(key: Key) -> st.SearchStrategy[object]:
    """Return values that go deep into the readers: right in form, wrong in content, or anything."""
    match key:
        case Section():
            return _section(key)
        case Named(section):
            names = st.sampled_from(["acme", "a-b", "Bad Name"]) | st.text(max_size=5)
            return st.dictionaries(names, _section(section), max_size=2)
        case Listed(section):
            return st.lists(_section(section), max_size=2)
        case TextMap():
            names = st.sampled_from(["state", "scope", "access_token"]) | st.text(max_size=5)
            return st.dictionaries(names, _ANYTHING, max_size=2)
        case Leaf():
            return _ANYTHING


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(document=_section(SETTINGS))
def test_any_document(document: object) -> None:
    """Any tree of values is settings or findings."""
    overrides = document if isinstance(document, dict) else {"state_dir": document}
    try:
        loaded = load_settings(path=None, environ={"X": "y"}, overrides=overrides)
    except ConfigurationError as error:
        assert error.findings  # noqa: PT017 - either end is right
    else:
        assert isinstance(loaded, Settings)


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    text=st.one_of(
        st.text(),
        st.binary(),
        st.text("ab:-[]{}&*!|>%@'\"#\n ,?<~0.x"),
        _section(SETTINGS).map(lambda tree: json.dumps(tree, ensure_ascii=False)),
    )
)
def test_any_file(desk: Desk, text: str | bytes) -> None:
    """Any bytes in the file are settings or findings."""
    content = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    desk.findings(content)


@given(
    name=st.sampled_from([*SETTINGS.keys, "PROVIDERS__A__CLIENT_ID", "PROVIDERS"])
    | st.text("ABX_providers", max_size=30),
    value=st.text(st.characters(exclude_characters="\0")),
)
def test_any_variable(name: str, value: str) -> None:
    """Any variable is a setting, a finding, or none of our business."""
    try:
        load_settings(path=None, environ={f"TOKENWARD_{name.upper()}": value})
    except ConfigurationError as error:
        assert error.findings  # noqa: PT017 - either end is right


def _paths(key: Key, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Key]]:
    match key:
        case Section():
            below = [_paths(inner, (*path, name)) for name, inner in key.keys.items()]
            return [(path, key), *(entry for entries in below for entry in entries)]
        case Named(section):
            return [(path, key), *_paths(section, (*path, "acme"))]
        case _:
            return [(path, key)]


@pytest.mark.parametrize("path", [path for path, _ in _paths(SETTINGS) if path])
def test_every_key_is_read(path: tuple[str, ...]) -> None:
    """No key of the schema is accepted without being looked at."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(path=None, environ={}, overrides={".".join(path): [[CANARY]]})
    named = [one for one in caught.value.findings if one.path.startswith(".".join(path))]
    assert named
    assert CANARY not in str(caught.value)


_SOUND = f"""
database: {{url: "postgresql://u:{CANARY}@h/d"}}
encryption: {{keys: [{{id: a, secret: {{env: KEY}}}}]}}
callers: [{{name: a, key: {CANARY}-caller}}]
events: {{webhook: {{url: https://a.example/{CANARY}, secret: {CANARY}}}}}
providers:
  acme: {{{PROVIDER.replace("{env: CLIENT_SECRET}", f"[{CANARY}, {{file: {CANARY[:0]}secret}}]")}}}
"""

_BROKEN = [
    _SOUND + "nonsense: 1\nlog: debug",
    f"database: postgresql://u:{CANARY}@h/d",
    f"database: {{url: 'postgresql://u:{CANARY}@@h/d'}}",
    f"database: {{url: 'mysql://u:{CANARY}@h/d'}}",
    f"database: {{url: {{env: {CANARY}}}}}",
    f"database: {{url: {{value: {CANARY}}}}}",
    f"database: {{url: {{env: A, {CANARY}: b}}}}",
    f"encryption: {{keys: [{{id: {CANARY} x, secret: {CANARY}}}]}}",
    f"encryption: {{keys: [{CANARY}]}}",
    f"callers: [{{name: a, key: {CANARY[:19]}}}]",
    f"callers: [{{name: a, key_sha256: {CANARY}}}]",
    f"callers: {CANARY}",
    f"providers: {{acme: {CANARY}}}",
    f"providers: {{acme: {{client_secret: {{{CANARY}}}}}}}",
    f"providers: {{acme: {{client_secret: [[{CANARY}]], token_endpoint: {CANARY}}}}}",
    f"providers: {{acme: {{grant: {CANARY}, rotation: {CANARY}, rate: {CANARY}}}}}",
    f"providers: {{acme: {{client_id: a, client_id: {CANARY}}}}}",
    f"providers: {{acme: {{api_base_url: {CANARY}, allowed_hosts: ['{CANARY}']}}}}",
    f"providers: {{acme: {{label: '{CANARY}}}', account_id: '{CANARY}'}}}}",
    f"providers: {{acme: {{fields: {{a: {{pattern: '[{CANARY}', default: ' {CANARY}'}}}}}}}}",
    f"providers: {{acme: {{fields: {{a: {{enum: [b], default: '{CANARY}'}}}}}}}}",
    f"providers: {{acme: {{request: {{headers: {{Cookie: {CANARY}, Host: {CANARY}}}}}}}}}",
    f"providers: {{acme: {{test: {{method: {CANARY}, path: {CANARY}, expect: '{CANARY}.'}}}}}}",
    f"providers: {{acme: {{revocation_request: {{tokens: [{CANARY}], method: {CANARY}}}}}}}",
    f"events: {{webhook: {{url: http://{CANARY}.example, secret: {CANARY[:20]}}}}}",
    f"events: {{webhook: {{url: 'https://h/{CANARY}/{{x}}', secret: whsec_{CANARY}}}}}",
    f"providers: {{acme: {{client_secret: *{CANARY}}}}}",
    f"providers: {{acme: {{client_secret: !{CANARY}!x y}}}}",
    f"providers: {{acme: {{client_secret: !{CANARY} y}}}}",
    f"providers: {{acme: {{client_secret: @{CANARY}}}}}",
    f"providers: {{acme: {{client_secret: !!timestamp {CANARY}}}}}",
    f"providers: {{acme: {{client_secret: '{CANARY}",
    f'providers: {{acme: {{client_secret: "{CANARY}\\q"}}}}',
    f'providers: {{acme: {{client_secret: "{CANARY}\\n"}}}}',
]


def _prepared(desk: Desk) -> dict[str, str]:
    desk.write("secret", f"{CANARY}-file", mode=0o644)
    return {"KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}


def test_secrets_stay_out_of_settings(desk: Desk) -> None:
    """No secret is in the printed form of the settings or in a warning."""
    loaded = desk.load(_SOUND, environ=_prepared(desk))
    assert len(loaded.warnings) == 7
    printed = f"{loaded!r} {loaded} {loaded.warnings} {loaded.providers['acme']!r}"
    assert CANARY not in printed
    assert repr(bytes(range(5)))[2:-1] not in printed


@pytest.mark.parametrize("text", _BROKEN)
def test_secrets_stay_out_of_findings(desk: Desk, text: str) -> None:
    """No secret is in a finding, wherever it was put by mistake, nor in the error's causes."""
    with pytest.raises(ConfigurationError) as caught:
        desk.load(text, environ=_prepared(desk))
    error: BaseException | None = caught.value
    while error is not None:
        assert CANARY not in f"{error!r} {error} {getattr(error, 'findings', '')}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_secret_as_a_variable(desk: Desk) -> None:
    """A secret that comes by variable is not in a finding either."""
    environ = {
        "TOKENWARD_DATABASE__URL": f"mysql://u:{CANARY}@h/d",
        "TOKENWARD_CALLERS": f"[{{name: a, key: {CANARY}",
        "TOKENWARD_ENCRYPTION__KEYS": f"[{{id: a, secret: {CANARY}}}]",
        "TOKENWARD_PROVIDERS": f"{{acme: {{client_secret: {CANARY}, client_secret: b}}}}",
        "TOKENWARD_NONSENSE": CANARY,
    }
    found = desk.findings("", environ=environ)
    assert len(found) >= 5
    assert CANARY not in str(found)


def test_default_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``HOME`` the account's home directory is used, or a finding names ``state_dir``."""
    monkeypatch.delenv("HOME", raising=False)
    try:
        loaded = load_settings(path=None, environ={})
    except ConfigurationError as error:
        assert [one.path for one in error.findings] == ["state_dir"]  # noqa: PT017 - either end
    else:
        assert loaded.state_dir == Path("~/.local/state/tokenward").expanduser()
