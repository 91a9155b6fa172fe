"""Fields: what a person may type, what is filled in, and what is wrong with the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.fields import LONGEST_VALUE, Field, check_fields, why_not
from daemon.domain.provider import Endpoints, Provider, provider_for

FIELDS = {
    "region": Field(name="region", title="Region", enum=("us", "eu"), default="us"),
    "shop": Field(name="shop", title="Shop", required=True, in_host=True),
    "note": Field(name="note", title="Note"),
}


@pytest.mark.parametrize(
    ("given", "complete", "values", "errors"),
    [
        ({"shop": "acme"}, True, {"region": "us", "shop": "acme"}, {}),
        ({"shop": "acme"}, False, {"shop": "acme"}, {}),
        ({}, True, {"region": "us"}, {"shop": "is required"}),
        ({}, False, {}, {}),
        ({"shop": " acme ", "note": "  "}, True, {"region": "us", "shop": "acme"}, {}),
        ({"shop": None, "region": ""}, False, {}, {}),
        ({"shop": "a", "region": "eu"}, True, {"region": "eu", "shop": "a"}, {}),
        ({"shop": "a", "region": "xx"}, True, {"shop": "a"}, {"region": "must be one of us, eu"}),
        ({"shop": 7}, False, {}, {"shop": "must be text"}),
        ({"shop": False}, False, {}, {"shop": "must be text"}),
        (
            {"color": "red"},
            False,
            {},
            {"color": "is not a field of this provider; there are: region, shop, note"},
        ),
    ],
)
def test_check_fields(
    given: Mapping[str, object],
    complete: bool,  # noqa: FBT001 - a table's column
    values: Mapping[str, str],
    errors: Mapping[str, str],
) -> None:
    """Values pass, defaults are filled in at the end, and each fault is named."""
    found = check_fields(FIELDS, given, complete=complete)
    assert dict(found.values) == values
    assert dict(found.errors) == errors


def test_no_fields() -> None:
    """Where a provider has no fields, that is said."""
    errors = check_fields({}, {"a": "b"}, complete=True).errors
    assert errors == {"a": "is not a field of this provider; there are: none"}


@pytest.mark.parametrize(
    ("wanted", "value", "reason"),
    [
        (Field(name="a", title="A"), "anything at all", None),
        (Field(name="a", title="A"), "a" * LONGEST_VALUE, None),
        (Field(name="a", title="A"), "a" * (LONGEST_VALUE + 1), "at most 255 characters"),
        (Field(name="a", title="A"), "a\nb", "line breaks"),
        (Field(name="a", title="A"), "a\u200bb", "cannot be seen"),
        (Field(name="a", title="A"), "a\u202eb", "cannot be seen"),
        (Field(name="a", title="A"), "\ud800", "cannot be seen"),
        (Field(name="a", title="A"), ".", "must not be . or .."),
        (Field(name="a", title="A"), "..", "must not be . or .."),
        (Field(name="a", title="A", pattern=re.compile("[a-z]+")), "abc", None),
        (Field(name="a", title="A", pattern=re.compile("[a-z]+")), "abc1", "the pattern [a-z]+"),
        (Field(name="a", title="A", pattern=re.compile("a|ab")), "ab", None),
        (Field(name="a", title="A", pattern=re.compile("x"), help="Say x."), "y", "Say x."),
        (Field(name="a", title="A", in_host=True), "acme-1", None),
        (Field(name="a", title="A", in_host=True), "acme.shop.example", "without dots, https://"),
        (Field(name="a", title="A", in_host=True), "https://acme", "one part of a host name"),
        (Field(name="a", title="A"), None, "must be text"),
    ],
)
def test_why_not(wanted: Field, value: object, reason: str | None) -> None:
    """What is wrong with a value is said in words for the person who typed it."""
    found = why_not(wanted, value)
    assert found == reason if reason is None else reason in (found or "")


@given(value=st.text() | st.integers() | st.none())
def test_what_passes_fits_into_urls(value: object) -> None:
    """Whatever passed the check can stand in the host and the path of an endpoint."""
    endpoints = Endpoints(token="https://{shop}.acme.example/{note}/token")
    provider = Provider(name="a", client_id="b", endpoints=endpoints, fields=FIELDS)
    found = check_fields(FIELDS, {"shop": value, "note": value}, complete=True)
    assert not found.values.keys() & found.errors.keys()
    if {"shop", "note"} <= found.values.keys():
        assert provider_for(provider, found.values).endpoints.token
