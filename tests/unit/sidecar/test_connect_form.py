"""Which fields a connect page asks, and what is wrong with what was typed."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from daemon.domain.connection import Connection, Status
from daemon.domain.fields import Field
from daemon.domain.provider import Endpoints, Provider
from daemon.sidecar.connect_form import connect_form, read_typed

NOW = datetime(2026, 11, 21, tzinfo=UTC)
PROVIDER = Provider(
    name="acme",
    client_id="c",
    endpoints=Endpoints(
        authorization="https://{region}.acme.example/a", token="https://acme.example/{tenant}/t"
    ),
    fields={
        "region": Field(name="region", title="Region", enum=("us", "eu"), default="us"),
        "tenant": Field(name="tenant", title="Tenant"),
        "note": Field(name="note", title="Note", pattern=re.compile("[a-z]*")),
    },
)
CONNECTION = Connection(
    id="acme-1",
    provider="acme",
    grant="authorization_code",
    status=Status.PENDING,
    created_at=NOW,
    updated_at=NOW,
)


def asked(**stored: str) -> list[str]:
    """Return the names that are asked of a connection with these fields."""
    form = connect_form(PROVIDER, replace(CONNECTION, fields=stored))
    return [field.name for field in form.asked]


@pytest.mark.parametrize(
    ("stored", "names"),
    [
        ({}, ["region", "tenant", "note"]),
        ({"region": "eu"}, ["tenant", "note"]),
        ({"region": "eu", "tenant": "t", "note": "n"}, []),
        ({"region": "mars"}, ["region", "tenant", "note"]),
        ({"note": "UPPER", "tenant": "t"}, ["region", "note"]),
        ({"unknown": "x"}, ["region", "tenant", "note"]),
    ],
)
def test_only_what_has_no_usable_value_is_asked(stored: dict[str, str], names: list[str]) -> None:
    """A stored value that passes is known; any other field is asked."""
    assert asked(**stored) == names


def test_a_stored_value_that_fits_into_no_url_is_asked_again() -> None:
    """It passed when it was stored; since then a URL has come to need it."""
    provider = replace(PROVIDER, fields={"region": Field(name="region", title="Region")})
    form = connect_form(provider, replace(CONNECTION, fields={"region": "a b"}))
    assert [field.name for field in form.asked] == ["region"]
    assert form.known == {}


def test_what_is_known_cannot_be_typed_over() -> None:
    """A form may say what it likes about fields that it was not asked for."""
    form = connect_form(PROVIDER, replace(CONNECTION, fields={"region": "eu"}))
    judged = form.judge({"region": "us", "tenant": "t", "unknown": "x"})
    assert judged.errors == {}
    assert judged.values == {"region": "eu", "tenant": "t"}


def test_a_value_that_a_url_needs_is_required() -> None:
    """Whatever the configuration says of it."""
    judged = connect_form(PROVIDER, CONNECTION).judge({})
    assert judged.errors == {"tenant": "is required"}


def test_a_typed_value_that_fits_into_no_url_is_refused_in_words() -> None:
    """The reason names no template."""
    judged = connect_form(PROVIDER, CONNECTION).judge({"tenant": ".."})
    assert list(judged.errors) == ["tenant"]
    assert "fields." not in judged.errors["tenant"]


def test_the_place_is_known_once_its_values_are() -> None:
    """Defaults count; where one is missing nobody can say which host it will be."""
    assert connect_form(PROVIDER, CONNECTION).tenant is None
    tenant = connect_form(PROVIDER, replace(CONNECTION, fields={"tenant": "t"})).tenant
    assert tenant is not None
    assert tenant.endpoints.authorization == "https://us.acme.example/a"


def test_questions_keep_what_was_typed() -> None:
    """At first defaults stand in them; later what was typed, also where that was nothing."""
    form = connect_form(PROVIDER, CONNECTION)
    assert [question.value for question in form.questions()] == ["us", "", ""]
    later = form.questions({"region": "", "note": "X"}, {"note": "must be small"})
    assert [question.value for question in later] == ["", "", "X"]
    assert [question.error for question in later] == [None, None, "Note must be small."]


@pytest.mark.parametrize(
    ("body", "typed"),
    [("", {}), ("a=1&b=", {"a": "1", "b": ""}), ("a=%C3%A4+b", {"a": "ä b"})],
)
def test_forms_are_read(body: str, typed: dict[str, str]) -> None:
    """Empty values count, plus signs are spaces, bytes are UTF-8."""
    assert read_typed(body) == typed


@pytest.mark.parametrize("body", ["a", "a=1&a=2", "a=%ff", "&" * 3, "&".join(["a="] * 200)])
def test_what_is_no_form_is_refused(body: str) -> None:
    """Strictly: a name stands once, and a pair has its sign."""
    with pytest.raises(ValueError, match=r".+"):
        read_typed(body)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    """In the order of the fields, whoever found it."""
    judged = connect_form(PROVIDER, CONNECTION).judge({"region": "mars", "note": "UPPER"})
    assert list(judged.errors) == ["region", "tenant", "note"]


def test_what_a_url_needs_is_marked_as_required() -> None:
    """Unless it has a default."""
    questions = connect_form(PROVIDER, CONNECTION).questions()
    assert [question.is_required for question in questions] == [False, True, False]
