"""Environment variables as settings."""

from __future__ import annotations

from datetime import timedelta

import pytest

from daemon.domain.provider import RotationKind
from tests.support.configuration import PROVIDER, Desk

_ACME = f"providers: {{acme-eu: {{{PROVIDER}}}}}"


def test_levels_and_values(desk: Desk) -> None:
    """Two underscores stand between levels; numbers, durations and lists are read as YAML."""
    settings = desk.load(
        "",
        environ={
            "TOKENWARD_STATE_DIR": "/var/lib/tokenward",
            "TOKENWARD_LISTEN__API__ADDRESS": "[::1]:7420",
            "TOKENWARD_LISTEN__OPS__ALLOW_NON_LOOPBACK": "true",
            "TOKENWARD_LISTEN__OPS__ADDRESS": "0.0.0.0:7422",
            "TOKENWARD_REFRESH__AT": "0.5",
            "TOKENWARD_REFRESH__MARGIN": "2m",
            "TOKENWARD_REFRESH__CONCURRENCY": "7",
            "TOKENWARD_RETURN_URLS": "['https://app.example/*']",
            "TOKENWARD_LOG": "{level: debug, format: console}",
            "TOKENWARD_LOG__LEVEL": "error",
            "TOKENWARD_CALLERS": "[{name: a, key: {env: CLIENT_SECRET_2}, connections: ['*'], "
            "permissions: [read]}]",
            "CLIENT_SECRET_2": "0123456789abcdefghij",
        },
    )
    assert str(settings.state_dir) == "/var/lib/tokenward"
    assert str(settings.listen.api.address) == "[::1]:7420"
    assert str(settings.listen.ops.address) == "0.0.0.0:7422"
    assert (settings.refresh.at, settings.refresh.concurrency) == (0.5, 7)
    assert settings.refresh.margin == timedelta(minutes=2)
    assert settings.return_urls == ("https://app.example/*",)
    assert (settings.log.level, settings.log.format) == ("error", "console")
    assert settings.callers[0].name == "a"
    assert settings.warnings == ()


def test_precedence(desk: Desk) -> None:
    """A flag wins over the environment, which wins over the file."""
    text = "log: {level: error, format: console}\nrefresh: {at: 0.5, jitter: 0.2, margin: 1}"
    settings = desk.load(
        text,
        environ={"TOKENWARD_LOG__LEVEL": "warning", "TOKENWARD_REFRESH__AT": "0.6"},
        overrides={"log.level": "debug", "state_dir": None, "refresh": {"margin": "3s"}},
    )
    assert (settings.log.level, settings.log.format) == ("debug", "console")
    assert (settings.refresh.at, settings.refresh.jitter) == (0.6, 0.2)
    assert settings.refresh.margin == timedelta(seconds=3)


@pytest.mark.parametrize("name", ["ACME_EU", "acme-eu", "Acme_Eu"])
def test_provider_name(desk: Desk, name: str) -> None:
    """A configured provider is found without regard to capitals, - and _."""
    variable = f"TOKENWARD_PROVIDERS__{name}__CLIENT_ID"
    settings = desk.load(_ACME, environ={variable: "other"})
    assert settings.providers["acme-eu"].client_id == "other"


def test_new_provider(desk: Desk) -> None:
    """A provider that the file does not have is made by variables alone, in lower case."""
    prefix = "TOKENWARD_PROVIDERS__MY_AS__"
    settings = desk.load(
        "",
        environ={
            f"{prefix}ISSUER": "https://as.example",
            f"{prefix}CLIENT_ID": "12345",
            f"{prefix}CLIENT_SECRET": "{looks: like YAML",
            f"{prefix}SCOPES": "read write",
            f"{prefix}PKCE": "off",
            f"{prefix}ROTATION": "{grace: 30s}",
            f"{prefix}RATE": "5/s",
            f"{prefix}AUTHORIZATION_PARAMS__ACCESS_TYPE": "offline",
            f"{prefix}REFRESH_ENDPOINT": "null",
        },
    )
    provider = settings.providers["my_as"]
    assert provider.client_id == "12345"
    assert provider.client_secrets[0].get_secret_value() == "{looks: like YAML"
    assert provider.scopes == ("read", "write")
    assert not provider.pkce
    assert provider.rotation.kind is RotationKind.GRACE
    assert provider.rate == 5
    assert provider.authorization_params == {"access_type": "offline"}
    assert provider.endpoints.refresh is None
    assert settings.warnings == ()


def test_life_of_a_connection(desk: Desk) -> None:
    """Fields, test, request values and the webhook may come by variables, too."""
    prefix = "TOKENWARD_PROVIDERS__ACME_EU__"
    settings = desk.load(
        _ACME,
        environ={
            f"{prefix}FIELDS__ACME_EU__ENUM": "[us, eu]",
            f"{prefix}FIELDS__ACME_EU__DEFAULT": "us",
            f"{prefix}API_BASE_URL": "https://{acme_eu}.acme.example",
            f"{prefix}TEST__PATH": "/me",
            f"{prefix}TEST__INTERVAL": "off",
            f"{prefix}REQUEST__HEADERS__X-API-VERSION": "2",
            f"{prefix}LABEL": "{me.name}",
            f"{prefix}REVOCATION_REQUEST__ON_RECONNECT": "false",
            "TOKENWARD_EVENTS__WEBHOOK__URL": "https://app.example/hook",
            "TOKENWARD_EVENTS__WEBHOOK__SECRET": "{looks: like YAML, and is long}",
        },
    )
    provider = settings.providers["acme-eu"]
    assert provider.fields["acme_eu"].enum == ("us", "eu")
    assert provider.api_base_url is not None
    assert provider.api_base_url.names == ("fields.acme_eu",)
    assert provider.test is not None
    assert provider.test.interval is None
    assert [*provider.request.headers] == ["x-api-version"]
    assert not provider.revocation_request.on_reconnect
    assert settings.events.webhook is not None
    assert settings.events.webhook.secret == b"{looks: like YAML, and is long}"
    assert settings.warnings == ()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{env: CLIENT_SECRET}", ["not-really-secret"]),
        ("[{env: CLIENT_SECRET}, {file: two}]", ["not-really-secret", "second"]),
        ("[not, a, reference]", ["[not, a, reference]"]),
    ],
)
def test_secret_by_variable(desk: Desk, value: str, expected: list[str]) -> None:
    """A variable holds the secret itself, or a reference, or a list of references."""
    second = desk.write("two", "second\n")
    settings = desk.load(
        _ACME,
        environ={
            "TOKENWARD_PROVIDERS__ACME_EU__CLIENT_SECRET": value.replace("two", str(second)),
        },
    )
    secrets = settings.providers["acme-eu"].client_secrets
    assert [secret.get_secret_value() for secret in secrets] == expected


@pytest.mark.parametrize(
    "variable",
    [
        "TOKENWARD_CONFIG",
        "TOKENWARD_KEY",
        "TOKENWARD_API",
        "TOKENWARD_SERVICE_HOST",
        "TOKENWARD_SERVICE_PORT",
        "TOKENWARD_SERVICE_PORT_OPS",
        "TOKENWARD_PORT_7421_TCP",
        "TOKENWARD_PORT_7421_TCP_ADDR",
        "TOKENWARD_PUBLIC_SERVICE_HOST",
        "TOKENWARDX",
        "tokenward_log__level",
    ],
)
def test_not_settings(desk: Desk, variable: str) -> None:
    """The command line's own variables and Kubernetes' service links are left alone."""
    assert desk.findings("", environ={variable: "whatever"}) == ()


def test_service_link_port(desk: Desk) -> None:
    """``TOKENWARD_PORT`` is left alone where Kubernetes made it, and only then."""
    assert desk.findings("", environ={"TOKENWARD_PORT": "tcp://10.0.0.1:7421"}) == ()
    assert desk.findings("", environ={"TOKENWARD_PORT": "7421"})


@pytest.mark.parametrize(
    ("variable", "value", "fragment"),
    [
        ("TOKENWARD_LOG__LEVLE", "info", "did you mean level?"),
        ("TOKENWARD_DATABSE__URL", "postgresql://h", "did you mean database?"),
        ("TOKENWARD_DATABASE_URL", "postgresql://h", "did you mean database?"),
        ("TOKENWARD_LOGLEVEL", "x", "two underscores stand between levels"),
        ("TOKENWARD_", "x", "is not a known key"),
        ("TOKENWARD_LOG__LEVEL__X", "x", "log.level has no keys below it"),
        ("TOKENWARD_CALLERS__0__NAME", "x", "callers is a list; set it whole"),
        ("TOKENWARD_PROVIDERS__ACME_EU__FIELDS__REGION__TITEL", "x", "did you mean title?"),
        ("TOKENWARD_PROVIDERS__ACME_EU__TEST__X", "x", "is not a known key"),
        ("TOKENWARD_PROVIDERS__ACME_EU__PRESET", "x", "not supported by this version"),
        ("TOKENWARD_PROVIDERS__ACME_EU__TOKN_ENDPOINT", "x", "did you mean token_endpoint?"),
        ("TOKENWARD_LISTEN__API__PORT", "80", "is not a known key"),
        ("TOKENWARD_log__Format", "json", "as TOKENWARD_LOG__FORMAT does"),
    ],
)
def test_unknown_variable(desk: Desk, variable: str, value: str, fragment: str) -> None:
    """A variable that names no key is a finding with the variable's name."""
    found = desk.findings(_ACME, environ={variable: value, "TOKENWARD_LOG__FORMAT": "json"})
    assert [(one.path, fragment in one.message) for one in found] == [(variable, True)]


def test_variable_for_two_providers(desk: Desk) -> None:
    """A variable that fits two providers sets neither."""
    two = f"providers: {{a-b: {{{PROVIDER}}}, a_b: {{{PROVIDER.replace('me', 'you')}}}}}"
    variable = "TOKENWARD_PROVIDERS__A_B__CLIENT_ID"
    assert desk.load(two, environ={variable: "x"}).providers["a_b"].client_id == "x"
    dashes = two.replace("a_b", "a-B")
    found = desk.findings(dashes, environ={variable: "x"})
    assert "fits more than one provider" in str([one for one in found if one.path == variable])


def test_bad_value_names_the_variable(desk: Desk) -> None:
    """A bad value has the key's path and says which variable or flag it came from."""
    found = desk.findings(
        "",
        environ={"TOKENWARD_REFRESH__MARGIN": "1w", "TOKENWARD_REFRESH__AT": ""},
        overrides={"log.level": "loud"},
    )
    assert {(one.path, one.message.rpartition(" (set by ")[2]) for one in found} == {
        ("refresh.margin", "TOKENWARD_REFRESH__MARGIN)"),
        ("refresh.at", "TOKENWARD_REFRESH__AT)"),
        ("log.level", "a command-line flag)"),
    }


def test_bad_yaml_in_a_variable(desk: Desk) -> None:
    """A variable whose YAML cannot be read is a finding beside the others, not instead of them."""
    found = desk.findings("nonsense: 1", environ={"TOKENWARD_RETURN_URLS": "[hush"})
    assert [one.path for one in found] == ["TOKENWARD_RETURN_URLS:1:6", "nonsense"]
    assert "hush" not in str(found)


def test_referenced_variable(desk: Desk) -> None:
    """A variable that ``{env: NAME}`` refers to may have any name."""
    text = f"providers: {{acme: {{{PROVIDER.replace('CLIENT_SECRET', 'TOKENWARD_ACME__S')}}}}}"
    settings = desk.load(text, environ={"TOKENWARD_ACME__S": "s"})
    assert settings.providers["acme"].client_secrets[0].get_secret_value() == "s"


def test_wrong_section_is_not_covered(desk: Desk) -> None:
    """A section that is wrong in the file is reported although a variable sets a key of it."""
    found = desk.findings("log: debug", environ={"TOKENWARD_LOG__LEVEL": "info"})
    assert [one.path for one in found] == ["log"]


def test_reference_is_replaced_whole(desk: Desk) -> None:
    """A secret reference on a higher layer replaces the lower one instead of joining it."""
    settings = desk.load(
        "database: {url: {file: nowhere}}",
        environ={"TOKENWARD_DATABASE__URL": "{env: DSN}", "DSN": "postgresql://h/d"},
    )
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://h/d"


def test_null_and_parameters(desk: Desk) -> None:
    """``null`` takes a value away; one parameter joins those of the file, or replaces its own."""
    inside = "authorization_params: {a: file, b: file}"
    prefix = "TOKENWARD_PROVIDERS__ACME__"
    provider = desk.load(
        f"providers: {{acme: {{{PROVIDER}, {inside}}}}}",
        environ={
            f"{prefix}CLIENT_SECRET": "null",
            f"{prefix}TOKEN_ENDPOINT_AUTH_METHOD": "none",
            f"{prefix}AUTHORIZATION_PARAMS__B": "1e3",
        },
    ).providers["acme"]
    assert provider.client_secrets == ()
    assert provider.authorization_params == {"a": "file", "b": "1e3"}
