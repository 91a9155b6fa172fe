"""Where a token may go: how URLs are read, and which entries match."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.allowed_hosts import (
    HostNotAllowedError,
    api_base,
    is_allowed,
    read_target,
    target,
)
from daemon.domain.provider import Provider
from daemon.domain.templates import parse_url_template

ACME = Provider(name="acme", client_id="us")


def configured(base: str | None, *hosts: str) -> Provider:
    """Return a provider with an API."""
    template = None if base is None else parse_url_template(base)
    return replace(ACME, api_base_url=template, allowed_hosts=hosts)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://a.example", ("https", "a.example", 443, "/")),
        ("HTTPS://A.Example/P?Q", ("https", "a.example", 443, "/P?Q")),
        ("https://a.example?q", ("https", "a.example", 443, "/?q")),
        ("https://a.example:8443/%2F", ("https", "a.example", 8443, "/%2F")),
        ("https://8.8.8.8/", ("https", "8.8.8.8", 443, "/")),
        ("https://[2606:4700::1]/", ("https", "[2606:4700::1]", 443, "/")),
        ("http://localhost:80/", ("http", "localhost", 80, "/")),
        ("http://127.0.0.1", ("http", "127.0.0.1", 80, "/")),
        ("http://[::1]:7/", ("http", "[::1]", 7, "/")),
    ],
)
def test_what_is_read(url: str, parts: tuple[str, str, int, str]) -> None:
    """A URL that every reader reads alike is taken apart; its path stays as it is."""
    found = read_target(url)
    assert (found.scheme, found.host, found.port, found.path) == parts
    assert read_target(found.url) == found


def test_the_default_port_is_left_out() -> None:
    """The Host header and the URL name a port only where it is not the scheme's."""
    assert read_target("https://a.example:443/x").url == "https://a.example/x"
    assert read_target("https://a.example:80/x").authority == "a.example:80"


@pytest.mark.parametrize(
    ("entry", "url", "is_in"),
    [
        ("a.example", "https://a.example", True),
        ("A.Example", "https://a.example", True),
        ("a.example", "https://a.example:444", False),
        ("a.example:444", "https://a.example:444", True),
        ("a.example:444", "https://a.example", False),
        ("a.example:443", "https://a.example", True),
        ("a.example", "https://b.a.example", False),
        ("*.a.example", "https://b.a.example", True),
        ("*.a.example", "https://c.b.a.example", True),
        ("*.a.example", "https://a.example", False),
        ("*.a.example", "https://ba.example", False),
        ("*.a.example:1", "https://b.a.example:1", True),
        ("*", "https://a.example", False),
        ("*.", "https://a.example", False),
        ("b.*.example", "https://b.a.example", False),
        ("", "https://a.example", False),
        ("[::1]:7", "http://[::1]:7", True),
        ("localhost", "http://localhost", True),
        ("localhost", "https://localhost", True),
        ("a.example:x", "https://a.example", False),
    ],
)
def test_which_entries_match(entry: str, url: str, is_in: bool) -> None:  # noqa: FBT001 - a table
    """An entry is one host, or all names below one; its port is the scheme's unless said."""
    assert is_allowed(read_target(url), [entry]) is is_in


def test_the_list_defaults_to_the_base() -> None:
    """Without a list the host and port of api_base_url are it, rendered for the connection."""
    provider = configured("https://api.{region}.acme.example/v1")
    values = {"fields.region": "eu"}
    assert api_base(provider, values).url == "https://api.eu.acme.example/v1"
    assert target("https://api.eu.acme.example/x", provider, values).path == "/x"
    with pytest.raises(HostNotAllowedError, match="not one of the hosts"):
        target("https://api.us.acme.example/x", provider, values)


@pytest.mark.parametrize(
    ("provider", "values", "says"),
    [
        (configured(None), {}, "no api_base_url"),
        (configured("https://{region}.acme.example"), {}, "no value"),
        (
            configured("{token.instance_url}/v1"),
            {"token.instance_url": "https://evil.example"},
            "allowed_hosts must say",
        ),
        (
            configured("{token.instance_url}/v1", "*.force.example"),
            {"token.instance_url": "https://evil.example"},
            "not one of the hosts",
        ),
        (configured("https://a.example", "b.example"), {}, "not one of the hosts"),
        (configured("http://a.example"), {}, "https only"),
    ],
)
def test_bases_that_cannot_be_used(provider: Provider, values: dict[str, str], says: str) -> None:
    """A reply never chooses the host by itself, and the base is judged like any URL."""
    with pytest.raises(HostNotAllowedError, match=says):
        api_base(provider, values)


def test_a_base_of_the_reply_within_the_list() -> None:
    """With a list, a reply may name the host."""
    provider = configured("{token.instance_url}/v1", "*.force.example")
    values = {"token.instance_url": "https://my.force.example"}
    assert api_base(provider, values).url == "https://my.force.example/v1"


@given(st.text())
def test_reading_never_fails_otherwise(text: str) -> None:
    """Any text is a target or a HostNotAllowedError, and a target's host is plain."""
    for url in (text, f"https://{text}", f"https://a.example/{text}"):
        try:
            found = read_target(url)
        except HostNotAllowedError:
            continue
        assert found.host.isascii()
        assert not set(found.host) & set("@/\\?#% ")
        assert found.path.startswith("/")
