"""Which return URLs are allowed, and how the outcome is put into them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.connection import Status
from daemon.sidecar.return_url import is_allowed, with_outcome
from tests.support.authorization import PENDING

LIST = (
    "https://app.example/done",
    "https://app.example/spa/#/connected",
    "https://app.example/in/*",
    "http://localhost:3000/*",
)


@pytest.mark.parametrize(
    "url",
    [
        *LIST[:2],
        "https://app.example/in/",
        "https://app.example/in/a/b?x=1&y=..#frag",
        "https://app.example/in/user@example/a:b",
        "https://app.example/in/..hidden/a..b/...",
        "https://app.example/in/100%25",
        "http://localhost:3000/",
        "http://localhost:3000/anything",
    ],
)
def test_listed_urls_are_allowed(url: str) -> None:
    """An exact entry, or anything below an entry that ends in ``/*``."""
    assert is_allowed(url, LIST)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/in/a",
        "//evil.example/in/",
        "/\\evil.example",
        "https:evil.example",
        "https:/app.example/in/a",
        "https:app.example/in/a",
        "javascript:alert(1)",
        "https://app.example/done/",
        "https://app.example/done?x=1",
        "https://app.example/done#x",
        "https://app.example/in",
        "https://app.example/inner",
        "http://app.example/in/a",
        "HTTPS://app.example/in/a",
        "https://APP.example/in/a",
        "https://app.example:443/in/a",
        "https://app.example.evil.example/in/a",
        "https://app.example@evil.example/in/a",
        "https://evil@app.example/in/a",
        "https://app.example\\@evil.example/in/a",
        "http://localhost:3000@evil.example/",
        "http://localhost:30001/",
        "https://app.example/in/../admin",
        "https://app.example/in/..",
        "https://app.example/in/./x",
        "https://app.example/in/a/../../admin",
        "https://app.example/in/%2e%2e/admin",
        "https://app.example/in/.%2E/admin",
        "https://app.example/in/%252e%252e/admin",
        "https://app.example/in/a%2f..%2f../admin",
        "https://app.example/in/..%5cadmin",
        "https://app.example/in/..;x=1/admin",
        "https://app.example/in/" + "%" + "25" * 8 + "2e",
        "https://app.example/in/\\..\\admin",
        "https://app.example/in/a\r\nSet-Cookie: x=1",
        "https://app.example/in/a b",
        "https://app.example/in/\ta",
        "https://app.example/in/a\x00",
        "https://app.example/in/ä",
        'https://app.example/in/"><script>',
        "https://app.example/in/" + "a" * 2048,
        " https://app.example/done",
        "https://app.example/done\n",
    ],
)
def test_everything_else_is_refused(url: str) -> None:
    """No trick with schemes, hosts, dots, encodings or control characters gets out of the list."""
    assert not is_allowed(url, LIST)


@pytest.mark.parametrize(
    "entry",
    [
        "https://*",
        "*",
        "/*",
        "https:///*",
        "//app.example/*",
        "https://a.example*",
        "javascript:/*",
    ],
)
@pytest.mark.parametrize("url", ["https://evil.example/", "https://a.example.evil.example/", "/x"])
def test_an_entry_without_a_host_allows_nothing(entry: str, url: str) -> None:
    """A careless entry does not open the door to every host."""
    assert not is_allowed(url, [entry])


@given(st.text())
def test_any_text_is_judged_without_an_error(url: str) -> None:
    """Whatever a caller sends, the answer is yes or no; and yes only on a listed origin."""
    if is_allowed(url, LIST):
        assert url.startswith(("https://app.example/", "http://localhost:3000/"))


@pytest.mark.parametrize(
    ("return_url", "expected"),
    [
        ("https://a.example/x", "https://a.example/x?connection=acme-1&status=active"),
        ("https://a.example", "https://a.example?connection=acme-1&status=active"),
        ("https://a.example/x?y=%2F", "https://a.example/x?y=%2F&connection=acme-1&status=active"),
        ("https://a.example/x?", "https://a.example/x?connection=acme-1&status=active"),
        (
            "https://a.example/x?status=failed&connection=other&z",
            "https://a.example/x?z&connection=acme-1&status=active",
        ),
        ("https://a.example/#/x", "https://a.example/?connection=acme-1&status=active#/x"),
    ],
)
def test_the_outcome_is_put_into_the_query(return_url: str, expected: str) -> None:
    """What stands in the query stays, the outcome comes once, a fragment stays last."""
    assert with_outcome(return_url, replace(PENDING, status=Status.ACTIVE)) == expected
