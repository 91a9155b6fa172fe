"""[refresh] What a reply that the journal kept amounts to. Pure.

Its hard idea: of several replies that a database has forgotten only the newest is stored, but it
need not say everything. A refresh token that it leaves out is that of the reply before it
(RFC 6749 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from daemon.config.settings import Refresh
from daemon.domain.account import Account
from daemon.domain.authorization import Completion
from daemon.domain.claim import ClaimState, Settlement, Standing
from daemon.domain.connection import Status
from daemon.domain.journal import JournaledReply, Purpose
from daemon.domain.outcome import Granted, Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.domain.tokens import TokenSet, lifetime_of, tokens_of
from daemon.oauth.identifying import Identity
from daemon.oauth.token_reply import read_reply
from daemon.refresh import policy

# Replicas' clocks may differ by this much; a person's reconnect takes longer than a reply.
_CLOCKS_DIFFER = timedelta(seconds=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptReply:
    """A reply with what it means."""

    entry: JournaledReply
    outcome: Outcome


def outcome_of(entry: JournaledReply, provider: Provider) -> Outcome:
    """Return how the request ended that was replied to."""
    return read_reply(
        status=entry.reply.status,
        headers=entry.reply.headers,
        body=entry.reply.body,
        provider=provider,
        now=entry.sent_at,
    )


def brings_tokens(outcome: Outcome) -> bool:
    """Tell whether there is any token in a reply."""
    return outcome.granted is not None or outcome.salvaged_refresh_token is not None


def is_last_word(outcome: Outcome) -> bool:
    """Tell whether nothing that happened after a reply can have made it wrong.

    A refusal may have been followed by another request: with the next client secret, or by whoever
    took the claim over. It frees nothing: the claim stays in doubt.
    """
    return brings_tokens(outcome) or outcome.kind is OutcomeKind.REAUTHORIZE


def tokens_in(
    outcome: Outcome, entry: JournaledReply, provider: Provider, settings: Refresh
) -> TokenSet:
    """Return a reply's tokens at the generation that they are of, without any from before."""
    granted = outcome.granted or Granted(
        access_token="", refresh_token=outcome.salvaged_refresh_token
    )
    tokens = tokens_of(
        granted,
        before=None,
        requested=entry.scopes,
        sent_at=entry.sent_at,
        default_lifetime=lifetime_of(provider, settings.default_lifetime),
    )
    return replace(tokens, generation=entry.generation + 1)


def settlement_of(entry: JournaledReply, tokens: TokenSet) -> Settlement:
    """Return a settlement without a claim: only its answer is wanted, and the tokens' safety."""
    return Settlement(
        connection_id=entry.connection_id,
        attempt=entry.attempt,
        generation=entry.generation,
        tokens=tokens,
        state=ClaimState.IDLE,
        due_at=None,
        status=Status.ACTIVE,
        failures=0,
        last_error=None,
        touches_connection=False,
        epoch=entry.epoch,
        provider=entry.provider,
        fields=entry.fields,
    )


def completion_of(
    entry: JournaledReply,
    tokens: TokenSet,
    provider: Provider,
    settings: Refresh,
    *,
    now: datetime,
    stored_generation: int | None = None,
    identity: Identity | None = None,
) -> Completion:
    """Return how to store an exchange; without ``identity`` the first test tells whose it is.

    ``stored_generation`` is the database's, where it has forgotten some.
    """
    untold = Identity(
        account=Account(),
        next_test_at=None if provider.test is None else now,
        may_merge=lambda _: False,
    )
    known = identity or untold
    return Completion(
        connection_id=entry.connection_id,
        provider=entry.provider,
        tokens=tokens,
        due_at=policy.due_at(tokens, entry.connection_id, settings),
        next_test_at=known.next_test_at,
        # What was replaced then was revoked then.
        revokes_replaced=stored_generation is None and provider.revocation_request.on_reconnect,
        fields=entry.fields or None,
        account=None if identity is None else identity.account,
        may_merge=known.may_merge,
        epoch=entry.epoch if stored_generation is None else None,
        only_after=entry.generation if stored_generation is None else stored_generation,
        least_generation=entry.generation + 1,
    )


def is_forgotten(entry: JournaledReply, standing: Standing) -> bool:
    """Tell whether a reply could be what a connection lacks.

    Not where the database has a newer generation, or a disconnect or a grant that came later.
    """
    if standing.generation > entry.generation or standing.epoch > entry.epoch:
        return False
    return standing.granted_at is None or standing.granted_at <= entry.sent_at + _CLOCKS_DIFFER


def is_of_later_grant(entry: JournaledReply, standing: Standing) -> bool:
    """Tell whether a connection may have the grant of an exchange already, or a later one."""
    return standing.granted_at is None or standing.granted_at > entry.sent_at - _CLOCKS_DIFFER


def since_exchange(
    replies: Sequence[KeptReply],
) -> tuple[KeptReply | None, Sequence[KeptReply]]:
    """Return the last exchange and the refreshes after it, of one connection, oldest first."""
    last = next(
        (
            place
            for place in range(len(replies) - 1, -1, -1)
            if replies[place].entry.purpose is Purpose.EXCHANGE
        ),
        None,
    )
    return (None, replies) if last is None else (replies[last], replies[last + 1 :])


def folded(replies: Sequence[KeptReply]) -> KeptReply:
    """Return what refreshes of one grant, oldest first and at least one, come to in the end."""
    newest = replies[-1]
    refresh_token = next(filter(None, map(_refresh_token, reversed(replies))), None)
    granting = next((one for one in reversed(replies) if one.outcome.granted is not None), None)
    if granting is None or granting.outcome.granted is None:
        return newest
    granted = replace(granting.outcome.granted, refresh_token=refresh_token)
    return KeptReply(
        entry=replace(newest.entry, sent_at=granting.entry.sent_at),
        outcome=replace(granting.outcome, granted=granted),
    )


def _refresh_token(kept: KeptReply) -> str | None:
    granted = kept.outcome.granted
    return kept.outcome.salvaged_refresh_token if granted is None else granted.refresh_token
