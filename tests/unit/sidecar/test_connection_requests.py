"""Bodies that change connections, and what fields may be in a body that creates one."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.connection import Connection, Status
from daemon.domain.errors import Problem
from daemon.persistence.life import Change
from daemon.sidecar.connection_requests import read_change_request, read_create_request
from tests.support.api_parts import TENANTS
from tests.support.clock import START

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


def connection(status: Status = Status.ACTIVE, **more: Any) -> Connection:
    """Return a connection of the provider with fields."""
    return Connection(
        id="acme-1",
        provider="tenants",
        grant="authorization_code",
        status=status,
        fields=more.get("fields", {"company": "initech", "region": "eu"}),
        metadata={"team": "a", "old": "x"},
        created_at=START,
        updated_at=START,
    )


@pytest.mark.parametrize(
    ("body", "change"),
    [
        ({}, Change()),
        ({"label": " Initech "}, Change(label="Initech")),
        ({"label": None}, Change(label="")),
        ({"metadata": {}}, Change(metadata={"team": "a", "old": "x"})),
        (
            {"metadata": {"old": None, "new": "y", "never": None}},
            Change(metadata={"team": "a", "new": "y"}),
        ),
        ({"metadata": None}, Change(metadata={})),
        ({"fields": {"region": "us"}}, Change(fields={"company": "initech", "region": "us"})),
        ({"fields": {"region": None}}, Change(fields={"company": "initech", "region": "us"})),
        ({"fields": {"region": ""}}, Change(fields={"company": "initech", "region": "us"})),
        ({"fields": {}}, Change(fields={"company": "initech", "region": "eu"})),
    ],
)
def test_a_change_is_merged(body: dict[str, Any], change: Change) -> None:
    """A merge patch (RFC 7396) becomes the whole new value of each member that it names."""
    assert read_change_request(body, connection(), provider=TENANTS) == change


def test_fields_that_the_configuration_has_dropped() -> None:
    """A value whose field is no longer configured goes with the next change of the fields."""
    stored = connection(fields={"company": "initech", "region": "eu", "plan": "gold"})
    changed = read_change_request({"fields": {"region": "us"}}, stored, provider=TENANTS)
    assert changed.fields == {"company": "initech", "region": "us"}


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.PENDING])
def test_required_fields_stay(status: Status) -> None:
    """Once a person was asked, nothing required can be taken away."""
    with pytest.raises(Problem) as caught:
        read_change_request({"fields": None}, connection(status), provider=TENANTS)
    assert caught.value.members["errors"] == [
        {"member": "fields.company", "message": "is required"}
    ]


def test_a_pending_connection_may_still_lack_them() -> None:
    """Whom a person will be asked for may be emptied."""
    stored = connection(Status.PENDING)
    assert read_change_request({"fields": None}, stored, provider=TENANTS) == Change(fields={})


@given(body=st.dictionaries(st.sampled_from(["label", "metadata", "fields", "x"]), JSON))
def test_any_change_is_read_or_refused(body: dict[str, Any]) -> None:
    """No JSON makes reading fail otherwise, and what is read keeps the promised bounds."""
    with suppress(Problem):
        change = read_change_request(body, connection(), provider=TENANTS)
        assert change.label is None or len(change.label) <= 200
        assert set(change.fields or ()) <= {"company", "region"}
        assert all(isinstance(text, str) for text in (change.metadata or {}).values())


@given(fields=JSON, with_tokens=st.booleans())
def test_any_fields_are_read_or_refused(fields: object, *, with_tokens: bool) -> None:
    """What is accepted fits the URLs; an answer never repeats a value."""
    body: dict[str, Any] = {"provider": "tenants", "fields": {"company": "m4rked/", "y": fields}}
    if with_tokens:
        body["tokens"] = {"refresh_token": "refresh"}
    with pytest.raises(Problem) as caught:
        read_create_request(body, providers={"tenants": TENANTS}, return_urls=())
    assert "m4rked" not in str(caught.value.members)
