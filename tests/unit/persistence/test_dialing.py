"""Database URLs: their hosts, and that their passwords stay out of errors."""

from __future__ import annotations

import traceback

import pytest
from pydantic import SecretStr

from daemon.domain.errors import StorageError
from daemon.persistence.dialing import Dialer, Limits, single_host_urls


@pytest.mark.parametrize(
    ("url", "urls"),
    [
        ("postgresql://u:p@h/db", ("postgresql://u:p@h/db",)),
        ("postgresql:///db?host=/run/x", ("postgresql:///db?host=/run/x",)),
        (
            "postgresql://u:p%40@a:1,b:2,[::1]:3/db?sslmode=require",
            (
                "postgresql://u:p%40@a:1/db?sslmode=require",
                "postgresql://u:p%40@b:2/db?sslmode=require",
                "postgresql://u:p%40@[::1]:3/db?sslmode=require",
            ),
        ),
        ("postgresql://a,b/db", ("postgresql://a/db", "postgresql://b/db")),
        ("postgresql://u:p,q@a/db", ("postgresql://u:p,q@a/db",)),
    ],
)
def test_a_url_is_split_into_its_hosts(url: str, urls: tuple[str, ...]) -> None:
    """Every host gets a URL of its own with the same credentials, path and parameters."""
    assert single_host_urls(url) == urls


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:hunter2@localhost/db",
        "postgresql://u:hunter2@localhost:port/db",
        "postgresql://u:hunter2@[::1/db",
        "postgresql://u:hunter2@localhost/db?sslmode=hunter2",
    ],
)
async def test_an_unusable_url_is_not_repeated(url: str) -> None:
    """A URL that cannot be used is refused for good, its text in no part of the error."""
    with pytest.raises(StorageError, match=r"database\.url is not usable") as raised:
        await Dialer(SecretStr(url), Limits()).dial()
    assert "hunter2" not in "".join(traceback.format_exception_only(raised.value))
    assert raised.value.__suppress_context__
