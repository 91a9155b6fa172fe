"""Current tokens in memory."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from daemon.domain.connection import Status
from daemon.domain.tokens import CurrentToken
from daemon.refresh.cache import Entry, TokenCache, provider_error_of, warning_of
from tests.support.clock import START

NOW = START.timestamp()
TOKEN = CurrentToken(
    connection="acme-1",
    provider="acme",
    status=Status.ACTIVE,
    generation=7,
    access_token='access "quoted" é',
    token_type="Bearer",
    scopes=("read", "write:all"),
    issued_at=START - timedelta(minutes=10),
    expires_at=START + timedelta(seconds=3000.75),
    refreshable=True,
)
DEAD = replace(
    TOKEN, status=Status.REAUTHORIZATION_REQUIRED, failure="The person said no.", generation=8
)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (None, None),
        ("invalid_grant", "invalid_grant"),
        ("bad_refresh_token", "bad_refresh_token"),
        # Ours, for what the provider did not put into words.
        *((ours, None) for ours in ("timeout", "server_error", "in_doubt", "reply_lost")),
    ],
)
def test_what_the_provider_said(code: str | None, expected: str | None) -> None:
    """Only its own words pass as its error, in whatever dialect."""
    assert provider_error_of(replace(DEAD, failure_code=code)) == expected


def named(name: str, generation: int = 1) -> CurrentToken:
    """Return a token of another connection."""
    return replace(TOKEN, connection=name, generation=generation)


def test_the_body() -> None:
    """The answer has the promised members, with the whole seconds of life left."""
    body = json.loads(Entry(TOKEN).body(NOW))
    assert body == {
        "access_token": 'access "quoted" é',
        "token_type": "Bearer",
        "expires_at": "2026-11-21T12:50:00Z",
        "expires_in": 3000,
        "scope": "read write:all",
        "generation": 7,
        "connection": "acme-1",
    }
    assert json.loads(Entry(TOKEN).body(NOW + 2999))["expires_in"] == 1


def test_the_body_of_a_token_that_does_not_expire() -> None:
    """Without an expiry both members are null."""
    entry = Entry(replace(TOKEN, expires_at=None))
    body = json.loads(entry.body(NOW))
    assert (body["expires_at"], body["expires_in"]) == (None, None)
    assert entry.is_good(NOW + 1e12)


def test_a_given_warning_replaces_the_entrys_own() -> None:
    """Only one warning is told: the one that fits the request."""
    assert "warning" not in json.loads(Entry(TOKEN).body(NOW))
    own = json.loads(Entry(DEAD).body(NOW))
    given = json.loads(Entry(DEAD).body(NOW, warning='say "this"'))
    assert "a person must connect again: The person said no." in own["warning"]
    assert given["warning"] == 'say "this"'
    assert own | {"warning": ""} == given | {"warning": ""}


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (TOKEN, None),
        (replace(TOKEN, status=Status.FAILING, access_token=""), None),
        (replace(TOKEN, status=Status.FAILING, failure="It is down."), "fails: It is down."),
        (replace(TOKEN, status=Status.FAILING), "fails: retrying."),
        (DEAD, "then a person must connect again: The person said no."),
        (replace(DEAD, failure=None), "then a person must connect again: the grant is dead."),
    ],
)
def test_warnings(token: CurrentToken, words: str | None) -> None:
    """A good token whose renewal is in trouble comes with a warning that says which."""
    warning = warning_of(token)
    assert (warning is None) == (words is None)
    if warning is not None and words is not None:
        assert words in warning
        assert "\n" not in warning


@pytest.mark.parametrize("status", list(Status))
def test_what_is_good(status: Status) -> None:
    """A token is good to its last second in every state but those without tokens."""
    entry = Entry(replace(TOKEN, status=status))
    served = status not in {Status.PENDING, Status.DISCONNECTED}
    assert entry.is_good(NOW) == served
    assert entry.is_good(NOW + 2999.5) == served
    assert not entry.is_good(NOW + 3000)
    assert not entry.is_good(NOW + 3001)
    assert entry.life(NOW + 3010) < 0


@pytest.mark.parametrize("expires_at", [None, TOKEN.expires_at])
def test_no_token_is_never_good(expires_at: object) -> None:
    """Without an access token nothing is served, whatever its expiry."""
    moment = TOKEN.expires_at if expires_at else None
    assert not Entry(replace(TOKEN, access_token="", expires_at=moment)).is_good(NOW)


def test_the_newest_generation_wins() -> None:
    """What is older than what is known changes nothing; the same generation may change state."""
    cache = TokenCache()
    newest = cache.put(DEAD)
    assert cache.put(TOKEN) is newest
    assert cache.get("acme-1") is newest
    again = cache.put(replace(DEAD, status=Status.ACTIVE))
    assert cache.get("acme-1") is again
    assert again.status is Status.ACTIVE


@pytest.mark.parametrize("status", [one for one in Status if one is not Status.DISCONNECTED])
def test_a_disconnect_is_the_last_word_of_its_generation(status: Status) -> None:
    """An older answer that arrives later brings no token back; a new grant does."""
    cache = TokenCache()
    cache.put(TOKEN)
    ended = cache.put(replace(TOKEN, status=Status.DISCONNECTED, access_token=""))
    assert cache.get("acme-1") is ended
    assert cache.put(replace(TOKEN, status=status)) is ended
    assert not ended.is_good(NOW)
    assert cache.put(replace(TOKEN, status=Status.DISCONNECTED)) is not ended
    assert cache.put(replace(TOKEN, generation=8)).is_good(NOW)


async def test_an_answer_from_before_a_disconnect_wakes_nobody() -> None:
    """It is no change."""
    cache = TokenCache()
    cache.put(replace(TOKEN, status=Status.DISCONNECTED, access_token=""))
    waiting = cache.changed("acme-1")
    cache.put(TOKEN)
    assert not waiting.done()
    waiting.cancel()


def test_eviction_gives_a_second_chance() -> None:
    """Beyond the bound the oldest entry goes that was not read since it was last passed over."""
    cache = TokenCache(largest=3)
    for name in "abc":
        cache.put(named(name)).used = True
    cache.put(named("d"))
    # All were read, so each lost its chance in turn, and only the newcomer had none.
    assert cache.ids() == ["a", "b", "c"]
    cache.put(named("e"))
    assert cache.ids() == ["b", "c", "e"]
    entry = cache.get("b")
    assert entry is not None
    entry.used = True
    cache.put(named("f"))
    assert cache.ids() == ["e", "f", "b"]
    assert len(cache) == 3


def test_use_is_told_once() -> None:
    """Which entries were read is told once, and survives a new generation."""
    cache = TokenCache()
    cache.put(named("a")).used = True
    cache.put(named("b"))
    assert cache.put(named("a", generation=2)).used
    assert cache.take_used() == ["a"]
    assert cache.take_used() == []


async def test_a_change_is_told() -> None:
    """Who waits for a connection hears of its next change or of its end, once."""
    cache = TokenCache()
    first, other = cache.changed("acme-1"), cache.changed("else")
    assert cache.holds("acme-1")
    assert not cache.holds("nobody")
    cache.put(TOKEN)
    await first
    assert not other.done()
    second = cache.changed("acme-1")
    cache.drop("acme-1")
    await second
    assert cache.get("acme-1") is None
    assert not cache.holds("acme-1")
    other.cancel()


async def test_an_older_generation_is_no_change() -> None:
    """News that are none wake nobody."""
    cache = TokenCache()
    cache.put(DEAD)
    waiting = cache.changed("acme-1")
    cache.put(TOKEN)
    assert not waiting.done()
    waiting.cancel()


async def test_giving_up_leaves_nothing_behind() -> None:
    """A wait that is cancelled is forgotten; the others go on."""
    cache = TokenCache()
    one, two = cache.changed("acme-1"), cache.changed("acme-1")
    one.cancel()
    await asyncio.sleep(0)
    assert cache.holds("acme-1")
    two.cancel()
    await asyncio.sleep(0)
    assert not cache.holds("acme-1")
    cache.put(TOKEN)
