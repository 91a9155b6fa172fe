"""What a completed authorization comes to, as a pure decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.account import Account
from daemon.domain.authorization import Completion, NotStoredReason
from daemon.domain.completion import (
    Held,
    Kept,
    Refused,
    authorized_detail,
    decide,
    is_other_account,
    is_same_reply,
)
from daemon.domain.connection import Connection, Status
from daemon.domain.tokens import TokenSet
from tests.support.clock import START

HOUR = timedelta(hours=1)
CONNECTION = Connection(
    id="mine",
    provider="acme",
    grant="authorization_code",
    status=Status.ACTIVE,
    generation=4,
    created_at=START,
    updated_at=START,
)


def tokens(
    access: str, refresh: str | None = None, *, lifetime: timedelta | None = HOUR
) -> TokenSet:
    """Return tokens that were asked for at a time of their own."""
    issued_at = START + timedelta(seconds=len(access))
    return TokenSet(
        generation=1,
        access_token=access,
        refresh_token=refresh,
        token_type="Bearer",
        scopes=("read",),
        issued_at=issued_at,
        expires_at=None if lifetime is None else issued_at + lifetime,
    )


def held(name: str, stored: TokenSet | None, account_id: str | None = None) -> Held:
    """Return a locked connection."""
    connection = replace(CONNECTION, id=name, account_id=account_id)
    return Held(connection=connection, tokens=stored)


def completion(new: TokenSet, account_id: str | None = None) -> Completion:
    """Return what an authorization brought, of a connection that was not disconnected."""
    return Completion(
        connection_id="mine",
        tokens=new,
        due_at=new.expires_at,
        account=Account(account_id=account_id),
        epoch=0,
        revokes_replaced=True,
    )


@pytest.mark.parametrize(
    ("status", "stored", "account_id", "is_kept"),
    [
        (Status.ACTIVE, tokens("old", "old refresh"), "anna", True),
        (Status.FAILING, tokens("old", "old refresh"), "anna", True),
        # Known to be dead: it would only end the new grant's first refresh.
        (Status.REAUTHORIZATION_REQUIRED, tokens("old", "old refresh"), "anna", False),
        (Status.ACTIVE, tokens("old"), "anna", False),
        (Status.ACTIVE, None, "anna", False),
        (Status.ACTIVE, tokens("old", "old refresh"), None, False),
    ],
)
def test_when_a_refresh_token_outlives_a_reconnect(
    *, status: Status, stored: TokenSet | None, account_id: str | None, is_kept: bool
) -> None:
    """Only for the very same account, and only where it may still work."""
    target = held("mine", stored, "anna")
    target = replace(target, connection=replace(target.connection, status=status))
    decided = decide(completion(tokens("new"), account_id), target, None)
    assert isinstance(decided, Kept)
    assert decided.tokens.refresh_token == ("old refresh" if is_kept else None)
    assert decided.tokens.generation == 5


@pytest.mark.parametrize(("lifetime", "share"), [(HOUR, 0.75), (None, None)])
def test_when_a_kept_refresh_token_is_used(lifetime: timedelta | None, share: float | None) -> None:
    """Before the token expires, for which the caller had not planned; never where it does not."""
    new = tokens("new", lifetime=lifetime)
    decided = decide(completion(new, "anna"), held("mine", tokens("o", "old"), "anna"), None)
    assert isinstance(decided, Kept)
    expected = None if lifetime is None or share is None else new.issued_at + lifetime * share
    assert decided.due_at == expected


@pytest.mark.parametrize(
    ("account", "scope", "fields", "is_other"),
    [
        (Account(account_id="anna"), "", None, False),
        (Account(account_id="otto"), "", None, True),
        (Account(), "", None, False),
        (Account(account_id="anna", scope="eu"), "us", None, False),
        (Account(account_id="anna", scope="eu"), "us", {"region": "us"}, False),
        (Account(account_id="anna", scope="eu"), "us", {"region": "eu"}, True),
        (Account(account_id="anna", scope="us"), "us", {"region": "eu"}, False),
    ],
)
def test_who_is_somebody_else(
    *, account: Account, scope: str, fields: dict[str, str] | None, is_other: bool
) -> None:
    """Another id always; another tenant where the person has just chosen it."""
    connection = replace(CONNECTION, account_id="anna", fields={"region": "us"})
    wanted = replace(completion(tokens("new")), fields=fields)
    assert is_other_account(wanted, account, connection, scope) is is_other
    unknown = replace(connection, account_id=None)
    assert not is_other_account(wanted, account, unknown, scope)


def test_what_is_the_same_reply() -> None:
    """Token and time together: a provider may give one token twice, and two at one time."""
    one = tokens("a", "r")
    assert is_same_reply(one, replace(one, generation=9))
    assert not is_same_reply(one, replace(one, access_token="b"))
    assert not is_same_reply(one, replace(one, issued_at=START + HOUR))


def test_what_an_event_says() -> None:
    """Scopes only where they differ from those asked for, in whatever order."""
    stored = replace(tokens("a", "r"), scopes=("b", "a"))
    plain = {"generation": 1, "has_refresh_token": True, "account_known": False}
    assert authorized_detail(stored, ("a", "b"), account_known=False) == plain
    assert authorized_detail(stored, ("a",), account_known=True, merged="x") == {
        **plain,
        "account_known": True,
        "scopes_granted": ["b", "a"],
        "merged": "x",
    }


ACCESS = st.sampled_from(["a", "bb", "ccc"])
REFRESH = st.sampled_from([None, "x", "y", "z"])
ACCOUNTS = st.sampled_from([None, "anna", "otto"])
STORED = st.none() | st.builds(tokens, ACCESS, REFRESH)


@given(
    new=st.builds(tokens, ACCESS, REFRESH),
    mine=STORED,
    theirs=STORED,
    mine_is=ACCOUNTS,
    new_is=ACCOUNTS,
    has_holder=st.booleans(),
    is_followed=st.booleans(),
    may_merge=st.booleans(),
    revokes=st.booleans(),
)
def test_no_token_in_use_is_ever_revoked(
    *,
    new: TokenSet,
    mine: TokenSet | None,
    theirs: TokenSet | None,
    mine_is: str | None,
    new_is: str | None,
    has_holder: bool,
    is_followed: bool,
    may_merge: bool,
    revokes: bool,
) -> None:
    """Whatever comes together, what is revoked is in no row afterwards, and generations rise."""
    target = held("mine", mine, mine_is)
    holder = held("theirs", theirs, new_is) if has_holder and new_is != mine_is else None
    wanted = replace(
        completion(new, new_is), revokes_replaced=revokes, may_merge=lambda _: may_merge
    )
    decided = decide(wanted, target, holder, is_followed=is_followed)
    revoked, in_use = [], [stored for stored in (mine, theirs if holder else None) if stored]
    if isinstance(decided, Kept):
        revoked, in_use = [one.tokens for one in decided.replaced], [decided.tokens]
        assert decided.tokens.generation == CONNECTION.generation + 1
        assert revokes or not revoked
    elif isinstance(decided, Refused) and decided.tokens is not None:
        revoked = [decided.tokens]
        assert decided.answer.reason is not NotStoredReason.SUPERSEDED
    assert not _values(revoked) & _values(in_use)


def _values(sets: Sequence[TokenSet]) -> set[str]:
    both = {token for one in sets for token in (one.access_token, one.refresh_token)}
    return {token for token in both if token}
