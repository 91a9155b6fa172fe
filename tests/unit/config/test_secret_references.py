"""Secrets by file, by environment and inline."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.support.configuration import PROVIDER, Desk


def _entry(secret: str) -> str:
    return f"providers: {{acme: {{{PROVIDER.replace('{env: CLIENT_SECRET}', secret)}}}}}"


def _secrets(desk: Desk, secret: str) -> list[str]:
    found = desk.load(_entry(secret)).providers["acme"].client_secrets
    return [one.get_secret_value() for one in found]


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        ("s3cret", "s3cret"),
        ("s3cret\n", "s3cret"),
        ("s3cret\r\n", "s3cret"),
        (" s3cret ", " s3cret "),
        ("schlüssel\n", "schlüssel"),
    ],
)
def test_file(desk: Desk, content: str, secret: str) -> None:
    """A file's content is the secret, without one line break at its end."""
    desk.write("secret", content)
    assert _secrets(desk, "{file: secret}") == [secret]
    assert _secrets(desk, f"{{file: {desk.directory / 'secret'}}}") == [secret]


def test_link(desk: Desk) -> None:
    """A link is followed, as Kubernetes mounts secrets."""
    (desk.directory / "link").symlink_to(desk.write("secret", "s3cret"))
    assert _secrets(desk, "{file: link}") == ["s3cret"]


def test_home_directory(desk: Desk) -> None:
    """``~`` is the home directory in a secret's path too."""
    desk.write("secret", "s3cret")
    settings = desk.load(_entry("{file: ~/secret}"), environ={"HOME": str(desk.directory)})
    assert settings.providers["acme"].client_secrets == (SecretStr("s3cret"),)


def test_environment(desk: Desk) -> None:
    """A variable's value is the secret."""
    assert _secrets(desk, "{env: CLIENT_SECRET}") == ["not-really-secret"]


def test_several(desk: Desk) -> None:
    """A list of secrets keeps its order: the first is tried first."""
    desk.write("secret", "one")
    assert _secrets(desk, "[{file: secret}, {env: CLIENT_SECRET}]") == ["one", "not-really-secret"]


def test_inline_warning(desk: Desk) -> None:
    """A secret in the file itself works and gives a warning with its path."""
    warnings = desk.load(_entry("[hush, {env: CLIENT_SECRET}]")).warnings
    assert [warning.partition(":")[0] for warning in warnings] == [
        "providers.acme.client_secret[0]"
    ]
    assert "hush" not in str(warnings)


@pytest.mark.parametrize(
    ("url", "count"),
    [("postgresql://u:p@h/d", 1), ("postgresql://u@h/d", 0), ("{env: DSN}", 0)],
)
def test_database_password(desk: Desk, url: str, count: int) -> None:
    """A database URL is a secret where it has a password."""
    text = f"database: {{url: '{url}'}}".replace("'{", "{").replace("}'", "}")
    settings = desk.load(text, environ={"DSN": "postgresql://u:p@h/d"})
    assert len(settings.warnings) == count


@pytest.mark.parametrize(("mode", "count"), [(0o600, 0), (0o640, 0), (0o644, 1)])
def test_readable_by_everybody(desk: Desk, mode: int, count: int) -> None:
    """A secret file that everybody may read gives a warning."""
    desk.write("secret", "s3cret", mode=mode)
    warnings = desk.load(_entry("{file: secret}")).warnings
    assert len([warning for warning in warnings if "chmod o-r" in warning]) == count


@pytest.mark.parametrize(
    ("secret", "fragment"),
    [
        ("{file: absent}", "there is no file"),
        ("{file: empty}", "must not be empty"),
        ("{file: broken}", "not UTF-8"),
        ("{file: lines}", "line breaks"),
        ("{file: huge}", "larger than 64 KiB"),
        ("{file: .}", "not a regular file"),
        ("{file: pipe}", "not a regular file"),
        ("{file: empty/below}", "cannot be read (not a directory)"),
        ("{file: ~nobody-of-this-name/x}", "no such home directory"),
        ("{file: null}", "must not be empty"),
        ("{file: [a]}", "must be text"),
        ("{env: NOWHERE}", "the environment variable NOWHERE is not set"),
        ("{env: EMPTY}", "the environment variable EMPTY is empty"),
        ("{env: LINES}", "line breaks"),
        ("{env: 3}", "put it in quotes"),
        ("{env: hush-i-am-the-secret}", "variable named here is not set"),
        ("{file: a, env: b}", "must be {file: PATH} or {env: NAME}"),
        ("{value: hush}", "must be {file: PATH} or {env: NAME}"),
        ("{}", "must be {file: PATH} or {env: NAME}"),
        ("''", "must not be empty"),
        ("17", "put it in quotes"),
    ],
)
def test_no_secret(desk: Desk, secret: str, fragment: str) -> None:
    """A reference without a secret behind it is a finding that says what is missing."""
    desk.write("empty", "\n")
    desk.write("broken", b"\xff\xfe")
    desk.write("lines", "one\ntwo\n")
    desk.write("huge", "x" * (64 * 1024 + 1))
    os.mkfifo(desk.directory / "pipe")
    found = desk.findings(_entry(secret), environ={"EMPTY": "", "LINES": "a\nb"})
    assert [one.path for one in found] == ["providers.acme.client_secret"]
    assert fragment in found[0].message
    assert "hush" not in str(found)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file(desk: Desk) -> None:
    """A file that may not be read is a finding."""
    desk.write("secret", "s3cret", mode=0)
    (finding,) = desk.findings(_entry("{file: secret}"))
    assert "permission denied" in finding.message


def test_relative_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that a variable names is relative to the working directory."""
    desk = Desk(tmp_path / "configuration")
    desk.directory.mkdir()
    (tmp_path / "secret").write_text("s3cret")
    monkeypatch.chdir(tmp_path)
    settings = desk.load(
        _entry("{file: absent}"),
        environ={"TOKENWARD_PROVIDERS__ACME__CLIENT_SECRET": "{file: secret}"},
    )
    assert settings.providers["acme"].client_secrets == (SecretStr("s3cret"),)
