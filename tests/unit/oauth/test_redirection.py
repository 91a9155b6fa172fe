"""From a callback to stored tokens, and every way in which that does not happen."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from daemon.domain.connection import Status
from daemon.domain.errors import DatabaseUnavailableError, KeyringError
from daemon.domain.outcome import FailureReason, Granted, Outcome, OutcomeKind
from daemon.domain.tokens import tokens_of
from daemon.oauth.authorization import fingerprint
from daemon.oauth.authorization_errors import Failed, Fault, explain
from daemon.oauth.authorization_response import CallbackParams, CallbackRejection
from daemon.oauth.authorization_words import OURS, PROVIDERS
from daemon.oauth.completing import STORE_PATIENCE, Completed
from daemon.oauth.redirection import exchange_fault
from tests.support.authorization import ACME, GRANTED, ISSUER, PENDING, REPLY, START, Flow

OTHER_BROWSER = "x" * 43


async def test_a_code_becomes_an_active_connection() -> None:
    """The happy path: one exchange at the pinned endpoint, tokens stored, everybody told."""
    flow = Flow()
    state, browser = await flow.begun(return_url="https://app.example/done")
    (pending,) = flow.store.pending.values()

    ended = await flow.redirection.complete(
        CallbackParams(state=state, code="the-code", iss=ISSUER), browser
    )

    assert isinstance(ended, Completed)
    assert ended.connection.status is Status.ACTIVE
    assert ended.return_url == "https://app.example/done"
    ((provider, url, message),) = flow.token_endpoint.sent
    assert (provider, url) == ("acme", f"{ISSUER}/token")
    assert message.code == "the-code"
    assert message.redirect_uri == "http://localhost:7421/callback"
    assert message.code_verifier == pending.code_verifier
    tokens = flow.store.tokens[PENDING.id]
    assert (tokens.access_token, tokens.refresh_token) == ("access-canary", "refresh-canary")
    assert tokens.scopes == PENDING.requested_scopes
    assert flow.store.due[PENDING.id] == START + timedelta(minutes=45)
    assert flow.learned == [(ended.connection, tokens)]
    assert flow.events.told == [
        ("connection_authorized", PENDING.id, "acme", {"has_refresh_token": True})
    ]


async def test_a_reconnect_tells_the_cache_the_stored_generation() -> None:
    """The store counts generations; what the cache learns carries its number."""
    flow = Flow()
    flow.store.connections[PENDING.id] = replace(PENDING, generation=7)
    state, browser = await flow.begun()

    await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    ((connection, tokens),) = flow.learned
    assert (connection.generation, tokens.generation) == (8, 8)


async def test_a_missing_refresh_token_is_told() -> None:
    """A connection that cannot be refreshed is stored, and noticed."""
    flow = Flow()
    flow.token_endpoint.outcome = Outcome(
        kind=OutcomeKind.OK, granted=Granted(access_token="a", expires_in=60)
    )
    state, browser = await flow.begun()

    await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert flow.events.told[0][3] == {"has_refresh_token": False}


@pytest.mark.parametrize(
    ("params", "browser_is_same", "code"),
    [
        (lambda state: CallbackParams(state=state, code="c"), False, "other_browser"),
        (lambda state: CallbackParams(state=state, error="access_denied"), True, "access_denied"),
        (lambda state: CallbackParams(state=state, error="<b>"), True, "unrecognized_error"),
        (
            lambda state: CallbackParams(state=state, code="c", iss="https://evil.example"),
            True,
            "issuer_mismatch",
        ),
        (lambda state: CallbackRejection(state=state), True, "invalid_callback"),
    ],
)
async def test_a_refused_callback_sends_nothing_and_uses_the_state_up(
    params: Callable[[str], CallbackParams | CallbackRejection],
    browser_is_same: bool,  # noqa: FBT001 - a column of the table
    code: str,
) -> None:
    """After any answer the same state leads nowhere, and no code has left this service."""
    flow = Flow()
    state, browser = await flow.begun()

    ended = await flow.redirection.complete(
        params(state), browser if browser_is_same else OTHER_BROWSER
    )

    assert isinstance(ended, Failed)
    assert (ended.code, ended.status) == (code, 400)
    assert flow.events.failures == [(code, ended.reference)]
    assert flow.events.told[0][1:3] == (PENDING.id, "acme")
    again = await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)
    assert isinstance(again, Failed)
    assert again.code == "unknown_state"
    assert flow.token_endpoint.sent == []
    assert flow.store.tokens == {}


async def test_a_state_that_was_never_given_out_fails() -> None:
    """A guess is answered like a used state."""
    flow = Flow()

    ended = await flow.redirection.complete(CallbackParams(state="g" * 43, code="c"), OTHER_BROWSER)

    assert isinstance(ended, Failed)
    assert ended.code == "unknown_state"


async def test_a_response_without_a_state_asks_nobody() -> None:
    """Garbage reaches neither database nor provider."""
    flow = Flow()

    ended = await flow.redirection.complete(CallbackRejection(), OTHER_BROWSER)

    assert isinstance(ended, Failed)
    assert ended.code == "invalid_callback"
    assert flow.store.calls == []


async def test_an_old_state_fails() -> None:
    """Ten minutes after the start the code is not sent any more."""
    flow = Flow()
    state, browser = await flow.begun()
    flow.clock.turn(timedelta(minutes=10))

    ended = await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert isinstance(ended, Failed)
    assert ended.code == "expired_state"
    assert flow.token_endpoint.sent == []


async def test_of_two_callbacks_at_once_one_is_sent() -> None:
    """A double click, a prefetch or a replay leads to exactly one token request."""
    flow = Flow()
    state, browser = await flow.begun()
    params = CallbackParams(state=state, code="c")

    ends = await asyncio.gather(*(flow.redirection.complete(params, browser) for _ in range(5)))

    assert sum(isinstance(end, Completed) for end in ends) == 1
    assert len(flow.token_endpoint.sent) == 1


async def test_a_provider_that_left_the_configuration_gets_no_code() -> None:
    """A reload between start and callback ends the transaction."""
    flow = Flow()
    state, browser = await flow.begun()
    flow.providers.clear()

    ended = await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert isinstance(ended, Failed)
    assert ended.code == "provider_not_configured"
    assert flow.token_endpoint.sent == []


async def test_unreadable_metadata_end_it_before_the_code_is_sent() -> None:
    """Where nobody knows whether ``iss`` must be there, its absence is not believed."""
    flow = Flow()
    state, browser = await flow.begun()
    flow.resolver.is_away = True

    ended = await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert isinstance(ended, Failed)
    assert (ended.code, ended.status) == ("provider_unavailable", 503)
    assert flow.token_endpoint.sent == []


async def test_with_the_database_away_the_code_stays_here() -> None:
    """503 before anything is sent; the same callback works once the database is back (K5)."""
    flow = Flow()
    state, browser = await flow.begun()
    flow.store.is_away = True

    ended = await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert isinstance(ended, Failed)
    assert (ended.code, ended.status) == ("database_unavailable", 503)
    assert flow.token_endpoint.sent == []
    flow.store.is_away = False
    again = await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)
    assert isinstance(again, Completed)


@pytest.mark.parametrize("kind", [kind for kind in OutcomeKind if kind is not OutcomeKind.OK])
async def test_an_exchange_is_never_repeated(kind: OutcomeKind) -> None:
    """Whatever the token endpoint answers, the code was sent once and nothing is stored."""
    flow = Flow()
    flow.token_endpoint.outcome = Outcome(
        kind=kind, reason=FailureReason.TIMEOUT, salvaged_refresh_token="salvage-canary"
    )
    state, browser = await flow.begun()

    ended = await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert isinstance(ended, Failed)
    assert ended.status == 400
    assert "connect again" in ended.action
    assert len(flow.token_endpoint.sent) == 1
    assert flow.store.tokens == {}
    assert flow.learned == []


async def test_tokens_are_stored_once_the_database_is_back() -> None:
    """After the exchange a database outage is waited out."""
    flow = Flow()
    state, browser = await flow.begun()
    flow.token_endpoint.gate.clear()
    callback = asyncio.create_task(
        flow.redirection.complete(CallbackParams(state=state, code="c"), browser)
    )
    await flow.token_endpoint.reached.wait()
    flow.store.errors = [DatabaseUnavailableError("away")] * 6
    flow.token_endpoint.gate.set()

    assert isinstance(await callback, Completed)
    assert flow.store.tokens[PENDING.id].access_token == "access-canary"


async def test_a_store_that_answers_too_late_is_asked_again() -> None:
    """Storing twice is harmless: the store knows a reply that it has already."""
    flow = Flow()
    flow.store.interruptions = 2
    state, browser = await flow.begun()

    ended = await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert isinstance(ended, Completed)
    assert ended.connection.generation == 1
    assert flow.learned[0][1].generation == 1


async def test_a_database_that_stays_away_is_told() -> None:
    """After half a minute the person learns that nothing could be kept."""
    flow = Flow()
    flow.store.interruptions = 1_000_000
    state, browser = await flow.begun()

    ended = await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert isinstance(ended, Failed)
    assert ended.code == "not_stored"
    assert flow.clock.elapsed <= STORE_PATIENCE
    assert flow.learned == []


async def test_a_store_that_cannot_encrypt_is_told_at_once() -> None:
    """An error that waiting does not mend is not waited for."""
    flow = Flow()
    state, browser = await flow.begun()
    flow.token_endpoint.gate.clear()
    callback = asyncio.create_task(
        flow.redirection.complete(CallbackParams(state=state, code="c"), browser)
    )
    await flow.token_endpoint.reached.wait()
    flow.store.errors = [KeyringError("no key")]
    flow.token_endpoint.gate.set()

    ended = await callback

    assert isinstance(ended, Failed)
    assert ended.code == "not_stored"
    assert flow.clock.elapsed == 0


async def test_a_connection_removed_meanwhile_is_not_resurrected() -> None:
    """Tokens for a connection that is gone are not kept."""
    flow = Flow()
    state, browser = await flow.begun()
    flow.store.connections.clear()

    ended = await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert isinstance(ended, Failed)
    assert ended.code == "connection_gone"


async def test_a_cancelled_handler_does_not_cut_the_exchange() -> None:
    """The browser may leave and its handler be cancelled: the tokens are stored."""
    flow = Flow()
    state, browser = await flow.begun()
    flow.token_endpoint.gate.clear()
    handler = asyncio.create_task(
        flow.redirection.complete(CallbackParams(state=state, code="c"), browser)
    )
    await flow.token_endpoint.reached.wait()

    handler.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handler
    flow.token_endpoint.gate.set()
    await asyncio.gather(*flow.tasks)

    assert flow.store.connections[PENDING.id].status is Status.ACTIVE
    assert flow.learned


@pytest.mark.parametrize(
    ("granted", "lifetime", "scopes"),
    [
        (Granted(access_token="a", expires_in=90.0), 90, ("asked",)),
        (Granted(access_token="a", expires_in=0.0), 0, ("asked",)),
        (Granted(access_token="a", expires_in=-5.0), -5, ("asked",)),
        (Granted(access_token="a"), 600, ("asked",)),
        (Granted(access_token="a", scopes=("less",)), 600, ("less",)),
        (Granted(access_token="a", scopes=()), 600, ()),
    ],
)
def test_a_first_reply_becomes_a_token_set(
    granted: Granted, lifetime: int, scopes: tuple[str, ...]
) -> None:
    """Lifetimes count from the send and never lack; absent scopes are the requested ones."""
    tokens = tokens_of(
        granted,
        requested=("asked",),
        sent_at=START,
        default_lifetime=timedelta(minutes=10),
        before=None,
    )

    assert tokens.issued_at == START
    assert tokens.expires_at == START + timedelta(seconds=lifetime)
    assert tokens.scopes == scopes


async def test_a_providers_own_default_lifetime_goes_first() -> None:
    """The global default holds only where the provider's entry sets none."""
    flow = Flow()
    flow.providers["acme"] = replace(ACME, default_lifetime=timedelta(minutes=5))
    flow.token_endpoint.outcome = replace(GRANTED, granted=Granted(access_token="a"))
    state, browser = await flow.begun()

    await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert flow.store.tokens[PENDING.id].expires_at == START + timedelta(minutes=5)


@pytest.mark.parametrize(
    ("outcome", "code", "from_provider"),
    [
        (Outcome(kind=OutcomeKind.IN_DOUBT, error="server_error"), "exchange_in_doubt", False),
        (Outcome(kind=OutcomeKind.NOT_SENT, description="No DNS."), "exchange_not_sent", False),
        (Outcome(kind=OutcomeKind.REAUTHORIZE, error="invalid_grant"), "invalid_grant", True),
        (Outcome(kind=OutcomeKind.MISCONFIGURED, error="invalid_client"), "invalid_client", True),
        (Outcome(kind=OutcomeKind.REFUSED), "exchange_refused", False),
    ],
)
def test_the_end_of_an_exchange_has_a_code(
    outcome: Outcome,
    code: str,
    from_provider: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """The provider's code is kept, except where the code's fate matters more."""
    fault = exchange_fault(outcome)

    assert (fault.code, fault.from_provider) == (code, from_provider)


RFC_6749 = "invalid_request unauthorized_client access_denied unsupported_response_type invalid_scope server_error temporarily_unavailable"  # noqa: E501 - a list of words
OPENID = "interaction_required login_required account_selection_required consent_required invalid_request_uri invalid_request_object request_not_supported request_uri_not_supported registration_not_supported"  # noqa: E501 - a list of words


@pytest.mark.parametrize("code", f"{RFC_6749} {OPENID}".split())
def test_every_standard_code_has_words_of_its_own(code: str) -> None:
    """A person is never told a bare code."""
    failed = explain(Fault(code, from_provider=True), provider="acme", reference="R")

    assert (
        failed.title != explain(Fault("?", from_provider=True), provider="acme", reference="").title
    )
    assert failed.code == code
    assert failed.status == 400


@pytest.mark.parametrize("words", [*OURS.values(), *PROVIDERS.values()])
def test_words_are_whole_sentences(words: object) -> None:
    """Each entry says what happened and what to do, and fills in nothing but the provider."""
    texts = [getattr(words, name) for name in ("title", "happened", "action")]

    assert all(text and not text.endswith(" ") for text in texts)
    assert not texts[0].endswith(".")
    assert all(text.endswith(".") for text in texts[1:])
    assert set(re.findall(r"\{.*?\}", " ".join(texts))) <= {"{provider}"}


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("custom.error-1", "custom.error-1"),
        ("x" * 64, "x" * 64),
        ("x" * 65, "unrecognized_error"),
        ("<script>alert(1)</script>", "unrecognized_error"),
        ("a b", "unrecognized_error"),
        ("zoë", "unrecognized_error"),
        ("x\n", "unrecognized_error"),
    ],
)
def test_a_strange_code_is_shown_only_if_harmless(code: str, shown: str) -> None:
    """Codes nobody knows get general words, and only letters that are safe anywhere."""
    failed = explain(Fault(code, from_provider=True), provider="acme", reference="R")

    assert failed.code == shown
    assert "acme" in failed.title


def test_a_provider_cannot_speak_with_our_codes() -> None:
    """A code of ours, sent by a provider, does not show our sentence."""
    ours = explain(Fault("database_unavailable"), provider="acme", reference="R")
    theirs = explain(
        Fault("database_unavailable", from_provider=True), provider="acme", reference="R"
    )

    assert ours.status == 503
    assert theirs.status == 400
    assert theirs.happened != ours.happened


async def test_a_reference_is_ten_base32_characters() -> None:
    """Short enough to read aloud, and another one for every failure."""
    flow = Flow()

    failures = [flow.failures.report(Fault("unknown_state")) for _ in range(3)]

    assert all(re.fullmatch(r"[A-Z2-7]{10}", failed.reference) for failed in failures)
    assert len({failed.reference for failed in failures}) == 3


async def test_a_reply_is_in_the_journal_until_its_tokens_are_stored() -> None:
    """Kept raw before it is read, with the generation it may follow; settled when stored."""
    flow = Flow()
    state, browser = await flow.begun()

    await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert [(e.connection_id, e.generation, e.reply) for e in flow.journal.kept] == [
        (PENDING.id, 0, REPLY)
    ]
    assert flow.journal.entries == {}


async def test_a_reply_that_could_not_be_stored_stays_in_the_journal() -> None:
    """The database stayed away: the tokens are stored once it is back, at the latest by a start."""
    flow = Flow()
    state, browser = await flow.begun()
    authorization = flow.store.pending[fingerprint(state)]
    flow.token_endpoint.gate.clear()
    ending = asyncio.create_task(
        flow.redirection.complete(CallbackParams(state=state, code="c"), browser)
    )
    await flow.token_endpoint.reached.wait()
    flow.store.is_away = True
    flow.token_endpoint.gate.set()

    ended = await ending

    assert isinstance(ended, Failed)
    assert ended.code == "not_stored"
    attempt = f"exchange-{authorization.state_hash.hex()}"
    assert list(flow.journal.entries) == [attempt]
    assert [entry.attempt for entry in flow.stored_later] == [attempt]


async def test_without_room_in_the_journal_no_code_is_sent() -> None:
    """A reply that could not be kept is not asked for."""
    flow = Flow()
    state, browser = await flow.begun()
    flow.journal.is_full = True

    ended = await flow.redirection.complete(CallbackParams(state=state, code="c"), browser)

    assert isinstance(ended, Failed)
    assert (ended.code, ended.status) == ("journal_unavailable", 503)
    assert flow.token_endpoint.sent == []
