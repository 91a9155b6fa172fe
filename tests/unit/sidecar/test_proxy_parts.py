"""The proxy's pure parts: paths, headers, queries and bodies."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from daemon.domain.errors import Problem
from daemon.sidecar.proxy_headers import returned_headers, sent_headers, wants_upgrade
from daemon.sidecar.proxy_target import check_path, split_proxy_path
from daemon.sidecar.request_values import (
    FORM,
    JSON,
    Credential,
    added,
    merged_body,
    merged_query,
    refuse_token_parameter,
)
from tests.support.proxy_stage import provider


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        ("/v1/connections/a/proxy", ("a", "", "")),
        ("/v1/connections/a/proxy/", ("a", "/", "")),
        ("/v1/connections/a/proxy?x", ("a", "", "x")),
        ("/v1/connections/a/proxy/b%2Fc/../d?x?y", ("a", "/b%2Fc/../d", "x?y")),
        ("/v1/connections/a%40b/proxy/x", ("a%40b", "/x", "")),
        ("/v1/connections/proxy/proxy", ("proxy", "", "")),
        ("/v1/connections//proxy", ("", "", "")),
        ("/v1/connections/a/proxyx", None),
        ("/v1/connections/a/token", None),
        ("/v1/connections/a", None),
        ("/v1/connections/a?/proxy", None),
        ("/v1/connections", None),
        ("//v1/connections/a/proxy", None),
    ],
)
def test_which_requests_are_proxied(raw: str, parts: tuple[str, str, str] | None) -> None:
    """The raw path decides; nothing is decoded."""
    assert split_proxy_path(raw) == parts


@given(st.text(alphabet=".%2eEfF5cC/;\\ab", max_size=30))
def test_no_path_that_passes_has_a_reading_that_leaves(text: str) -> None:
    """However often a path is decoded, no segment is a dot segment."""
    from urllib.parse import unquote  # noqa: PLC0415 - a second opinion

    try:
        check_path("/" + text)
    except Problem:
        return
    reading = "/" + text
    for _ in range(6):
        assert not {".", ".."} & {part.partition(";")[0] for part in reading.split("/")}
        assert "\\" not in reading
        reading = unquote(reading)


def headers(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    """Return request headers."""
    return CIMultiDictProxy(CIMultiDict(pairs))


def test_ours_take_the_place_of_the_callers() -> None:
    """Every header of the name goes, whatever its case; repeats of others stay in order."""
    found = sent_headers(
        headers(("x-key", "1"), ("X-KEY", "2"), ("A", "1"), ("a", "2"), ("User-Agent", "me")),
        {"X-Key": "ours", "Authorization": "Bearer t"},
    )
    assert found.getall("x-key") == ["ours"]
    assert found.getall("a") == ["1", "2"]
    assert found["user-agent"] == "me"


def test_connection_cannot_remove_what_is_ours() -> None:
    """A caller that names our headers in Connection only removes its own."""
    found = sent_headers(
        headers(("Connection", "Authorization, x-ours,, X-Theirs"), ("X-Theirs", "1")),
        {"Authorization": "Bearer t", "X-Ours": "1"},
    )
    assert found["Authorization"] == "Bearer t"
    assert "X-Ours" in found
    assert "X-Theirs" not in found


def test_headers_named_in_an_answers_connection_stay_here() -> None:
    """Hop-by-hop works in both directions."""
    found = returned_headers(headers(("Connection", "x-a"), ("X-A", "1"), ("X-B", "2")))
    assert list(found) == ["X-B"]


@pytest.mark.parametrize(
    ("pairs", "is_wanted"),
    [
        ([("Upgrade", "websocket"), ("Connection", "keep-alive, Upgrade")], True),
        ([("Upgrade", "h2c")], False),
        ([("Connection", "upgrade")], False),
    ],
)
def test_an_upgrade_needs_both_headers(pairs: list[tuple[str, str]], is_wanted: bool) -> None:  # noqa: FBT001 - a table
    """RFC 9110 7.8: Upgrade counts only where Connection names it."""
    assert wants_upgrade(headers(*pairs)) is is_wanted


@pytest.mark.parametrize(
    ("query", "values", "merged"),
    [
        ("", {}, ""),
        ("a=%20&&b", {}, "a=%20&&b"),
        ("a=%20&&b", {"c": "d&e"}, "a=%20&b&c=d%26e"),
        ("a=1&%61=2&b", {"a": "3"}, "b&a=3"),
        ("", {"é": "é"}, "%C3%A9=%C3%A9"),
    ],
)
def test_queries(query: str, values: dict[str, str], merged: str) -> None:
    """Ours replace the caller's of the same name, also where that is written in escapes."""
    assert merged_query(query, values) == merged


def test_bodies() -> None:
    """JSON objects merge deeply, forms by field, and an empty body becomes an object."""
    values = {"a": {"x": 1}, "b": True}
    for bad in (b'{"c":NaN}', b'{"c":1e400}', b'{"c":"\\ud800"}', b"{", b"\xff"):
        with pytest.raises(Problem, match="not well-formed"):
            merged_body(bad, JSON, values)
    assert merged_body(b"", "", values) == (b'{"a": {"x": 1}, "b": true}', JSON)
    body, kind = merged_body(b'{"a":{"y":2}}', "application/vnd.x+json; charset=UTF-8", values)
    assert json.loads(body) == {"a": {"y": 2, "x": 1}, "b": True}
    assert kind == "application/vnd.x+json; charset=UTF-8"
    assert merged_body(b"b=1&c=%20", FORM, {"b": "x y"})[0] == b"c=%20&b=x+y"
    with pytest.raises(Problem, match="cannot stand in a form"):
        merged_body(b"", FORM, values)
    with pytest.raises(Problem, match="forms only"):
        merged_body(b"{}", "application/json; charset=utf-16", values)


def test_the_credential_is_hidden_from_representations() -> None:
    """No token in any repr."""
    credential = Credential("bearer", "secret-token")
    found = added(provider("https://a.example"), {}, credential)
    assert found.headers == {"Authorization": "Bearer secret-token"}
    assert "secret-token" not in repr(credential) + repr(found)
    assert Credential("MAC", "x").authorization == "MAC x"


def test_a_missing_value_is_a_problem() -> None:
    """A template whose field nobody filled in is 409, and says which."""
    configured = provider("https://a.example", request={"headers": {"X-Region": "{region}"}})
    with pytest.raises(Problem, match="region") as caught:
        added(configured, {}, Credential("Bearer", "t"))
    assert (caught.value.status, caught.value.code) == (409, "value_missing")


@pytest.mark.parametrize(
    "query", ["access_token=1", "a&access_token", "a;ACCESS%5FTOKEN=1", "+access_token="]
)
def test_tokens_of_callers(query: str) -> None:
    """RFC 6750 2: no second method beside ours."""
    with pytest.raises(Problem, match="access_token"):
        refuse_token_parameter(query, where="query")


@pytest.mark.parametrize("query", ["", "a=access_token", "access_tokens=1", "x_access_token=1"])
def test_other_parameters(query: str) -> None:
    """Only the name itself counts."""
    refuse_token_parameter(query, where="query")
