"""URLs that are accepted, as they come out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config.urls import (
    database_url,
    endpoint,
    has_password,
    issuer,
    public_url,
    query_names,
    return_url,
)
from daemon.config.values import InvalidValueError


@pytest.mark.parametrize(
    ("reader", "value", "expected"),
    [
        (endpoint, "https://as.example/token?tenant=a%20b", None),
        (endpoint, "http://localhost:9000/token", None),
        (endpoint, "http://127.0.0.1/token", None),
        (endpoint, "http://[::1]:8080/token", None),
        (endpoint, "https://[2001:db8::1]/token", None),
        (endpoint, "https://AS.example./Token", None),
        (issuer, "https://as.example/", None),
        (issuer, "https://as.example/realms/one", None),
        (public_url, "https://tokens.example/", "https://tokens.example"),
        (public_url, "https://tokens.example/a//", "https://tokens.example/a"),
        (public_url, "http://localhost:7421", None),
        (return_url, "https://app.example/done?a=b", None),
        (return_url, "https://app.example/*", None),
        (return_url, "https://app.example/a.b/..c/*", None),
        (return_url, "http://localhost:3000/*", None),
        (database_url, "postgresql://u:p%40ss@h:5432/d?sslmode=verify-full", None),
        (database_url, "postgres://h", None),
        (database_url, "postgresql:///d?host=/run/postgresql", None),
        (database_url, "postgresql://u@h1:5432,h2,[::1]:5433/d", None),
    ],
)
def test_accepted(reader: Callable[[object], str], value: str, expected: str | None) -> None:
    """A good URL is kept as it is, but for the slashes at the end of ``public_url``."""
    assert reader(value) == (value if expected is None else expected)


@pytest.mark.parametrize(
    ("url", "there"),
    [
        ("postgresql://u:p@h/d", True),
        ("postgresql://h/d?user=u&password=p", True),
        ("postgresql://u@h/d", False),
        ("postgresql://h:5432/d", False),
    ],
)
def test_password_in_database_url(url: str, there: bool) -> None:  # noqa: FBT001 - a table's column
    """A password is found where a database URL can carry one."""
    assert has_password(url) is there


def test_query_names() -> None:
    """Names in a query are found decoded, with or without a value."""
    assert query_names("https://a.example/?%73tate=1&b") == {"state", "b"}


@given(
    value=st.one_of(
        st.text(),
        st.from_regex(r"\A(https?|postgresql)://[\[\]@:/?#%*.a-z0-9_-]{0,30}\Z"),
    )
)
def test_readers_are_total(value: str) -> None:
    """Any text is accepted or refused; what is accepted can be taken apart later."""
    for reader in (endpoint, issuer, public_url, return_url, database_url):
        try:
            url = reader(value)
        except InvalidValueError:
            continue
        query_names(url)
        has_password(url)
