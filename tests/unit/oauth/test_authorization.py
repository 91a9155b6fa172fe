"""Tickets, the authorization URL, PKCE, and what a started transaction pins."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.errors import DatabaseUnavailableError, DiscoveryError, Problem
from daemon.domain.provider import Endpoints, Provider
from daemon.oauth.authorization import (
    authorization_url,
    code_challenge,
    fingerprint,
    is_secret,
    new_secret,
)
from daemon.oauth.query import with_query
from tests.support.authorization import ACME, PENDING, CountedEntropy, Flow, query_of

REDIRECT_URI = "https://tokens.example/callback"


def url_of(
    provider: Provider,
    *,
    scopes: tuple[str, ...] = (),
    verifier: str | None = None,
    endpoint: str = "https://a.example/authorize",
) -> str:
    """Return the authorization URL with fixed redirect URI and state."""
    return authorization_url(
        provider,
        endpoint,
        redirect_uri=REDIRECT_URI,
        state="the-state",
        scopes=scopes,
        code_verifier=verifier,
    )


RFC_7636_CHALLENGE = (
    "code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM&code_challenge_method=S256"
)
BARE = Provider(name="bare", client_id="id")
COMMON = (
    "response_type=code&client_id=id"
    "&redirect_uri=https%3A%2F%2Ftokens.example%2Fcallback&state=the-state"
)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (url_of(BARE), f"https://a.example/authorize?{COMMON}"),
        (
            url_of(BARE, scopes=("read", "write:all")),
            f"https://a.example/authorize?{COMMON}&scope=read%20write%3Aall",
        ),
        (
            url_of(replace(BARE, scope_separator=","), scopes=("a", "b")),
            f"https://a.example/authorize?{COMMON}&scope=a%2Cb",
        ),
        (
            url_of(BARE, endpoint="https://a.example/authorize?tenant=a%20b&flag&x=%2B"),
            f"https://a.example/authorize?tenant=a%20b&flag&x=%2B&{COMMON}",
        ),
        (
            url_of(BARE, endpoint="https://a.example/authorize?state=theirs&response%5Ftype=token"),
            f"https://a.example/authorize?{COMMON}",
        ),
        (
            url_of(replace(BARE, authorization_params={"access_type": "offline", "x y": "ä&=+"})),
            f"https://a.example/authorize?{COMMON}&access_type=offline&x%20y=%C3%A4%26%3D%2B",
        ),
        (
            url_of(
                replace(BARE, authorization_params={"state": "evil", "redirect_uri": "evil"}),
            ),
            f"https://a.example/authorize?{COMMON}",
        ),
        (
            url_of(replace(BARE, authorization_params={"scope": "their.own"})),
            f"https://a.example/authorize?{COMMON}&scope=their.own",
        ),
        (
            url_of(replace(BARE, client_id="a b&c=d/é")),
            "https://a.example/authorize?" + COMMON.replace("=id&", "=a%20b%26c%3Dd%2F%C3%A9&"),
        ),
        (
            # RFC 7636 appendix B
            url_of(BARE, verifier="dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            f"https://a.example/authorize?{COMMON}&{RFC_7636_CHALLENGE}",
        ),
    ],
)
def test_an_authorization_url_is_built_as_rfc_6749_says(url: str, expected: str) -> None:
    """The endpoint's query is kept, ours is encoded once, and no parameter comes twice."""
    assert url == expected


@given(
    params=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        st.text(st.characters(exclude_categories=["Cs"])),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_goes_into_a_query_comes_out_again(params: dict[str, str]) -> None:
    """Building and reading a query are inverse, for any text."""
    assert query_of(with_query("https://a.example/x?", params)) == params


def test_a_fragment_stays_behind_the_query() -> None:
    """A return URL of a single page application keeps its fragment, its query comes before it."""
    assert with_query("https://a.example/?x=1#/done", {"y": "2"}) == (
        "https://a.example/?x=1&y=2#/done"
    )


def test_a_secret_has_256_bits_in_43_characters() -> None:
    """Tickets, states and verifiers are 32 octets in base64url without padding."""
    secret = new_secret(CountedEntropy())

    assert is_secret(secret)
    assert len(base64.urlsafe_b64decode(secret + "=")) == 32


@pytest.mark.parametrize(
    "text", ["", "a" * 42, "a" * 44, "a" * 42 + "=", "ä" * 43, "a" * 42 + "\n"]
)
def test_what_is_no_secret_is_recognized(text: str) -> None:
    """Text of another length or alphabet need not be looked up."""
    assert not is_secret(text)


async def test_a_ticket_is_stored_as_a_hash_for_thirty_minutes() -> None:
    """The connect URL holds the only copy of the ticket's secret."""
    flow = Flow(public_url="https://tokens.example/")

    ticket, url = await flow.authorizer.issue_ticket(
        PENDING, caller="billing", return_url="https://app.example/done"
    )

    base, _, secret = url.rpartition("/")
    assert base == "https://tokens.example/connect"
    assert ticket.ticket_hash == hashlib.sha256(secret.encode()).digest() == fingerprint(secret)
    assert secret not in repr(flow.store.tickets)
    assert ticket.expires_at == flow.clock.now() + timedelta(minutes=30)
    assert (ticket.connection_id, ticket.caller) == (PENDING.id, "billing")
    assert flow.store.tickets == {ticket.ticket_hash: ticket}


async def test_a_transaction_pins_where_its_code_may_go() -> None:
    """Issuer, token endpoint, redirect URI and browser are fixed when it starts."""
    flow = Flow()
    ticket, _ = await flow.authorizer.issue_ticket(
        PENDING, caller="b", return_url="https://r.example/"
    )

    url = await flow.authorizer.begin(ticket, PENDING, ACME, "b" * 43, fields={})

    assert url is not None
    sent = query_of(url)
    (pending,) = flow.store.pending.values()
    assert sent["tenant"] == "a b"
    assert sent["scope"] == "read write:all"
    assert pending.state_hash == fingerprint(sent["state"])
    assert pending.browser_hash == fingerprint("b" * 43)
    assert pending.redirect_uri == sent["redirect_uri"] == "http://localhost:7421/callback"
    assert (pending.issuer, pending.token_endpoint) == (ACME.issuer, ACME.endpoints.token)
    assert (pending.provider, pending.scopes) == ("acme", ("read", "write:all"))
    assert pending.return_url == "https://r.example/"
    assert pending.expires_at == flow.clock.now() + timedelta(minutes=10)
    assert pending.code_verifier is not None
    assert sent["code_challenge"] == code_challenge(pending.code_verifier)
    assert sent["code_challenge_method"] == "S256"
    assert pending.code_verifier not in url


async def test_no_two_transactions_share_a_state_or_verifier() -> None:
    """Each start draws both anew."""
    flow = Flow()

    states = {(await flow.begun())[0] for _ in range(5)}

    assert len(states) == 5
    assert len({one.code_verifier for one in flow.store.pending.values()}) == 5


async def test_pkce_can_be_off() -> None:
    """A provider that refuses PKCE gets no challenge, and no verifier is kept."""
    flow = Flow()
    ticket, _ = await flow.authorizer.issue_ticket(PENDING, caller="b", return_url=None)

    url = await flow.authorizer.begin(
        ticket, PENDING, replace(ACME, pkce=False), "b" * 43, fields={}
    )

    (pending,) = flow.store.pending.values()
    assert pending.code_verifier is None
    assert url is not None
    assert "code_challenge" not in url


async def test_a_connection_without_requested_scopes_asks_for_the_providers() -> None:
    """What the configuration lists is the default."""
    flow = Flow()
    ticket, _ = await flow.authorizer.issue_ticket(PENDING, caller="b", return_url=None)

    url = await flow.authorizer.begin(
        ticket,
        replace(PENDING, requested_scopes=()),
        replace(ACME, scopes=("only",)),
        "b" * 43,
        fields={},
    )

    assert url is not None
    assert query_of(url)["scope"] == "only"


async def test_a_link_that_has_ended_begins_nothing() -> None:
    """Taken away by a disconnect while the page was open: nobody is sent anywhere."""
    flow = Flow()
    ticket, _ = await flow.authorizer.issue_ticket(PENDING, caller="b", return_url=None)
    flow.store.disconnect(PENDING.id)

    assert await flow.authorizer.begin(ticket, PENDING, ACME, "b" * 43, fields={}) is None

    assert not flow.store.pending


async def test_a_link_to_what_is_gone_is_none() -> None:
    """Removed while the caller asked for it: told as such, and nothing is stored."""
    flow = Flow()
    flow.store.connections.clear()

    with pytest.raises(Problem, match="unknown_connection"):
        await flow.authorizer.issue_ticket(PENDING, caller="b", return_url=None)

    assert not flow.store.tickets


@pytest.mark.parametrize(
    "endpoints", [Endpoints(), Endpoints(token="https://a"), Endpoints(authorization="https://a")]
)
async def test_nothing_starts_without_both_endpoints(endpoints: Endpoints) -> None:
    """A provider of which an endpoint is unknown cannot be authorized at."""
    flow = Flow()

    with pytest.raises(DiscoveryError, match="acme"):
        await flow.begun(replace(ACME, endpoints=endpoints))

    assert not flow.store.pending


async def test_the_browser_is_not_sent_off_without_a_stored_transaction() -> None:
    """With the database away the person stays here."""
    flow = Flow()
    flow.store.is_away = True

    with pytest.raises(DatabaseUnavailableError):
        await flow.begun()
