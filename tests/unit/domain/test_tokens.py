"""What a token reply leaves us with, and how long it is good."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from daemon.domain.outcome import Granted
from daemon.domain.provider import Provider
from daemon.domain.tokens import TokenSet, lifetime_of, tokens_of
from tests.support.clock import START

ACME = Provider(name="acme", client_id="us")
BEFORE = TokenSet(
    generation=1,
    access_token="access-canary",
    refresh_token="refresh-canary",
    token_type="Bearer",
    scopes=("read",),
    issued_at=START - timedelta(hours=1),
    expires_at=START,
)


def at(seconds: float) -> datetime:
    """Return the time so long after the start."""
    return START + timedelta(seconds=seconds)


def following(granted: Granted, before: TokenSet | None = BEFORE) -> TokenSet:
    """Return the tokens of a reply to a request that was sent at the start."""
    return tokens_of(
        granted,
        before=before,
        requested=("asked",),
        sent_at=START,
        default_lifetime=timedelta(hours=2),
    )


def test_a_lifetime_counts_from_the_send() -> None:
    """The provider's clock starts no sooner than the request: a slow reply is no younger."""
    after = following(Granted(access_token="b", expires_in=100.0))
    assert after == replace(
        BEFORE, generation=2, access_token="b", issued_at=START, expires_at=at(100)
    )


@pytest.mark.parametrize(
    ("granted", "refresh_token", "scopes", "life"),
    [
        (Granted(access_token="b"), "refresh-canary", ("read",), 7200),
        (Granted(access_token="b", refresh_token="s"), "s", ("read",), 7200),
        (Granted(access_token="b", refresh_token=""), "refresh-canary", ("read",), 7200),
        (Granted(access_token="b", scopes=()), "refresh-canary", (), 7200),
        (Granted(access_token="b", scopes=("x", "y")), "refresh-canary", ("x", "y"), 7200),
        (Granted(access_token="b", expires_in=0.0), "refresh-canary", ("read",), 0),
        (Granted(access_token="b", expires_in=-5.0), "refresh-canary", ("read",), -5),
    ],
)
def test_absent_members(
    granted: Granted, refresh_token: str, scopes: tuple[str, ...], life: float
) -> None:
    """An absent refresh token or scope keeps the old one, an absent lifetime is the default."""
    after = following(granted)
    assert (after.refresh_token, after.scopes, after.expires_at) == (
        refresh_token,
        scopes,
        at(life),
    )


@pytest.mark.parametrize(
    ("provider", "lifetime"),
    [
        (ACME, timedelta(hours=1)),
        (replace(ACME, default_lifetime=timedelta(minutes=5)), timedelta(minutes=5)),
        (replace(ACME, tokens_never_expire=True), None),
    ],
)
def test_the_lifetime_of_a_provider(provider: Provider, lifetime: timedelta | None) -> None:
    """The provider's own default comes first, and may be for ever."""
    assert lifetime_of(provider, timedelta(hours=1)) == lifetime


@pytest.mark.parametrize(("expires_in", "life"), [(None, None), (100.0, 100), (0.0, 0)])
def test_tokens_that_never_expire(expires_in: float | None, life: float | None) -> None:
    """Only where the reply says nothing, and the provider is known for it, there is no end."""
    after = tokens_of(
        Granted(access_token="b", expires_in=expires_in),
        before=BEFORE,
        requested=(),
        sent_at=START,
        default_lifetime=None,
    )
    assert after.expires_at == (None if life is None else at(life))


@pytest.mark.parametrize("life", [-1.5, 0.0, 3600.0, None])
def test_good_for(life: float | None) -> None:
    """A token set tells how long it is good, which may be for ever or not at all."""
    tokens = replace(BEFORE, expires_at=None if life is None else at(life))
    assert tokens.good_for(START) == life


def test_tokens_are_not_in_a_repr() -> None:
    """Printing a token set shows no secret."""
    assert "canary" not in repr(BEFORE)


def test_a_first_reply() -> None:
    """The first tokens of a connection have what was requested, where the reply says nothing."""
    first = following(Granted(access_token="b"), before=None)
    assert (first.generation, first.refresh_token, first.scopes) == (1, None, ("asked",))
