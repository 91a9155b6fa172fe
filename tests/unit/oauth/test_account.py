"""Label, identity and mask: what replies tell of an account, by table and for any reply."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.account import Account
from daemon.domain.provider import Provider
from daemon.domain.templates import parse_template
from daemon.oauth.account import evaluate, mask

BARE = Provider(name="acme", client_id="client")
ME = {"id": 17, "name": "Anna Alt", "email": "anna@mail.acme.example", "ok": True, "n": None}
ALL: dict[str, Any] = {
    "fields": {"region": "eu"},
    "token": {"team": {"id": "T1"}, "instance_url": "https://eu.acme.example"},
    "callback": {"realm": "42"},
    "me": ME,
}


def told(provider: Provider, documents: Mapping[str, Any] = ALL, **kept: str) -> Account:
    """Return what the documents tell; ``kept`` by names with ``__`` for a dot."""
    values = {name.replace("__", "."): value for name, value in kept.items()}
    return evaluate(provider, documents, scope="tenant", kept=values)


def without(*roots: str) -> dict[str, Any]:
    """Return the documents less some."""
    return {root: value for root, value in ALL.items() if root not in roots}


@pytest.mark.parametrize(
    ("selector", "documents", "expected"),
    [
        ("me.id", ALL, "17"),
        ("me.name", ALL, "Anna Alt"),
        ("token.team.id", ALL, "T1"),
        ("callback.realm", ALL, "42"),
        ("join(':', [fields.region, to_string(me.id)])", ALL, "eu:17"),
        ("me.missing", ALL, None),
        ("me", ALL, None),
        ("me.n", ALL, None),
        ("[me.id]", ALL, None),
        # True would be the same account for everybody.
        ("me.ok", ALL, None),
        ("me.id == `17`", ALL, None),
        ("'   '", ALL, None),
        ("me.id", {"me": {"id": "x" * 255}}, "x" * 255),
        ("me.id", {"me": {"id": "x" * 256}}, None),
        ("me.id", {"me": {"id": "a\x00b"}}, None),
        ("me.id", {"me": {"id": "a\nb"}}, None),
        ("me.id", {"me": {"id": "\ud800"}}, None),
        ("me.id", {"me": {"id": float("nan")}}, None),
        ("me.id", {"me": {"id": 12345.0}}, "12345"),
        # Rounded: another account may have the same one.
        ("me.id", {"me": {"id": 2.0**53}}, None),
        ("me.id", {"me": {"id": 1e30}}, None),
        ("me.id", {"me": {"id": 1.5}}, None),
        ("me.id", {"me": {"id": 2**64 + 1}}, "18446744073709551617"),
        ("me.id", {"me": {"id": ""}}, None),
        ("me.id", {"me": {"id": "zoë"}}, "zoë"),
        ("me.id", {"me": [1]}, None),
        ("me[0].id", {"me": [{"id": 1}]}, "1"),
        # Errors of the selector are no errors of ours.
        ("max(me.name)", ALL, None),
        ("length(me.id)", ALL, None),
        # What is not at hand is not guessed: the half that is left may be somebody else.
        ("token.team.id || me.id", without("token"), None),
        ("me.id || token.team.id", without("me"), None),
        ("me.id", without("token", "callback"), "17"),
        ("me.id", without("me"), None),
    ],
)
def test_an_account_id_is_what_the_selector_finds(
    selector: str, documents: Mapping[str, Any], expected: str | None
) -> None:
    """S14: a text or number of at most 255 characters, and nothing where not all is at hand."""
    provider = replace(BARE, account_id=jmespath.compile(selector))

    assert told(provider, documents).account_id == expected


@pytest.mark.parametrize(
    ("template", "documents", "kept", "expected"),
    [
        ("{me.name} ({me.email})", ALL, {}, "Anna Alt (anna@mail.acme.example)"),
        ("{me.name} ({me.nothing})", ALL, {}, "Anna Alt"),
        ("{me.nothing}", ALL, {}, None),
        ("{region}: {token.team.id} {callback.realm}", ALL, {}, "eu: T1 42"),
        ("{me.name}", {"me": {"name": "a\x1b[31m\n  b"}}, {}, "a[31m b"),
        ("Team {token.team.id} of {me.name}", without("token"), {}, None),
        (
            "Team {token.team.id} of {me.name}",
            without("token"),
            {"token__team__id": "T9"},
            "Team T9 of Anna Alt",
        ),
        ("{me.name}", without("me"), {}, None),
        ("{region}", without("me", "token", "callback"), {}, "eu"),
    ],
)
def test_a_label_is_made_of_what_is_known(
    template: str, documents: Mapping[str, Any], kept: Mapping[str, str], expected: str | None
) -> None:
    """S12: one line; where a reply that it needs is not at hand, the old label stays."""
    provider = replace(BARE, label=parse_template(template))

    assert told(provider, documents, **kept).label == expected


def test_a_masked_label_keeps_the_words_of_the_template() -> None:
    """Values are masked, what the operator wrote is not."""
    provider = replace(
        BARE, label=parse_template("Account {me.name} <{me.email}>"), label_mask=True
    )

    assert told(provider).label == "Account A••• A••• <a•••@m•••.a•••.e•••e>"


def test_reply_values_are_those_that_templates_need_later() -> None:
    """S16: by full name, text only, and nothing that is not asked for."""
    provider = replace(
        BARE,
        reply_names=frozenset(
            {"token.instance_url", "me.id", "callback.realm", "me.n", "token.team", "me.missing"}
        ),
    )

    assert told(provider).reply_values == {
        "token.instance_url": "https://eu.acme.example",
        "me.id": "17",
        "callback.realm": "42",
    }


@pytest.mark.parametrize("value", ["x" * 2049, "a\nb", "a\x00b", {"deep": 1}, ["list"], None, ""])
def test_a_value_that_no_request_could_hold_is_not_kept(value: object) -> None:
    """Neither length nor control characters get into a URL or header."""
    provider = replace(BARE, reply_names=frozenset({"me.v"}))

    assert told(provider, {"me": {"v": value}}).reply_values == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=15,
)


@given(
    me=JSON,
    selector=st.sampled_from(
        ["me.id", "me[0].a", "keys(me)[0]", "sort(me)[-1]", "to_number(me)", "me.*.x | [0]", "@"]
    ),
)
def test_no_reply_makes_the_evaluation_fail(me: object, selector: str) -> None:
    """Whatever a provider answers, there is an account with storable members or none."""
    provider = replace(
        BARE,
        account_id=jmespath.compile(selector),
        label=parse_template("{me.name} {me[0].a}"),
        label_mask=True,
        reply_names=frozenset({"me.a", "me[0]"}),
    )

    account = evaluate(provider, {"me": {"id": me, "name": me, "a": me}}, scope="")
    again = evaluate(provider, {"me": me}, scope="")

    for text in (account.account_id, account.label, again.account_id, again.label):
        assert text is None or (text.isprintable() and len(text.encode()) <= 4 * 255)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Alice (alice@example.com)", "A•••e (a•••e@e•••.com)"),
        ("alice@mail.example.co.uk", "a•••e@m•••.e•••.•••.uk"),
        ("alice@localhost", "a•••e@l•••t"),
        ("alice@acme.example", "a•••e@a•••.e•••e"),
        ("al@x.io", "•••@•••.io"),
        ("first.last+tag@example.org", "f•••t.l•••+t•••@e•••.org"),
        ("Alice", "A•••e"),
        ("Anna", "A•••"),
        ("Bob", "•••"),
        ("Al", "•••"),
        ("A", "•••"),
        ("", "•••"),
        ("Al Bo", "••• •••"),
        ("Bob Ross", "B••• R•••"),
        ("+49 170 1234567", "+••• 1••• 1•••7"),
        ("1234567890", "1•••0"),
        ("José García", "J••• G•••a"),
        ("太郎", "•••"),
        ("Acme, Inc. / Sales", "A•••, I•••. / S•••s"),
        ("user_name_long", "u•••g"),
        ("https://acme.example/u/17", "h•••s://a•••.e•••e/•••/•••"),
        ("•••", "•••"),
        ("a•••e", "a•••e"),
    ],
)
def test_a_mask_shows_no_more_than_ends(text: str, expected: str) -> None:
    """The rule, case by case."""
    assert mask(text) == expected


@given(st.text())
def test_masking_twice_changes_nothing_more(text: str) -> None:
    """A label that was stored masked may be masked again on a page."""
    assert mask(mask(text)) == mask(text)


@given(st.text(st.characters(categories=["L", "N"]), min_size=4))
def test_no_word_survives_its_mask(word: str) -> None:
    """At most the first and the last character of a word are left, and its length is not told."""
    masked = mask(word)

    assert word not in masked
    assert len(re.sub("•", "", masked)) <= 2
    assert len(masked) <= 5
