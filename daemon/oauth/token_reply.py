"""[exchange] What a token endpoint answered, as one outcome (RFC 6749 5.1 and 5.2). Pure.

The place where every provider's quirk ends. The one hard idea: "no" and "unknown" are different.
Only a well-formed error says that the refresh token was not spent; everything that could hide a
success is *in doubt*, and a refresh token found in it is saved.

Chosen where RFC and practice differ: a reply without ``token_type`` is a Bearer token, with a
warning (many servers omit it; a ``token_response`` selector such as ``"'Bearer'"`` overrides one
that says something else); a lifetime above ten years counts as 30 days; an ``error`` member that
is null, or empty beside an access token, is no error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from http import HTTPStatus

from daemon.domain.outcome import FailureReason, Granted, Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.oauth.error_codes import RATE_LIMITED, Meaning, meaning_of, shown
from daemon.oauth.reply_body import members_of, read_document
from daemon.oauth.reply_members import (
    read_access_token,
    read_lifetime,
    read_refresh_token,
    read_rest,
    read_scopes,
    read_token_type,
)
from daemon.oauth.retry_after import http_date, retry_after

# More than the delay of any reply that came in time.
_CLOCK_SKEW = 120.0
# Without an OAuth body these say: wrong URL, method or client. Nothing was processed.
_WRONG_DOOR = frozenset({401, 403, 404, 405, 410, 415})
# A gateway's words for "the origin did not answer in time": it may have done its work.
_GATEWAY_TIMEOUT = frozenset({408, 499})
_CLIENT_ERRORS = range(400, 500)
_SERVER_ERRORS = range(500, 600)
_SUCCESSES = range(200, 300)
_REDIRECTS = range(300, 400)


def read_reply(
    *,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    provider: Provider,
    now: datetime,
    sent: Sequence[str] = (),
) -> Outcome:
    """Return what the reply means. Never raises, whatever the provider sent.

    ``sent`` are the secrets of the request: an error code that repeats one is not shown. A
    ``MISCONFIGURED`` outcome without ``error`` came from a bare status (401, 403, 404, …): one of
    those may be a firewall's mood, three in a row are a wrong configuration. ``expires_in`` of a
    granted reply counts from when the request was sent.
    """
    named = {name.lower(): value for name, value in headers.items()}
    outcome = _by_status(status)
    if outcome is None:
        whole = "content-length" in named or "transfer-encoding" in named
        document = read_document(body, whole=whole)
        members = None if document is None else members_of(document, provider.token_response)
        outcome = _by_members(status, members, provider=provider, now=now, sent=sent)
        if _names_the_rest(provider):
            outcome = _with_the_rest(outcome, document or {}, sent)
    date = named.get("date")
    if outcome.granted is None:
        return replace(outcome, retry_after=retry_after(named.get("retry-after"), date, now))
    if _is_skewed(date, now):
        return replace(outcome, warnings=(*outcome.warnings, "clock_skew"))
    return outcome


def _by_status(status: int) -> Outcome | None:
    """Return what the status alone decides; the body of such a reply is not even read."""
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return _told(RATE_LIMITED)
    if status not in _SUCCESSES and status not in _CLIENT_ERRORS:
        return _unanswered(status)
    return None


def _by_members(
    status: int,
    members: Mapping[str, object] | None,
    *,
    provider: Provider,
    now: datetime,
    sent: Sequence[str],
) -> Outcome:
    if members is not None and _is_error(members):
        return _error(members, sent)
    if status in _CLIENT_ERRORS:
        return _bare_refusal(status)
    if members is None:
        return _in_doubt("The provider's reply could not be read as a token reply.")
    if status != HTTPStatus.OK:
        return _in_doubt(f"The provider answered with status {status} instead of 200.", members)
    return _success(members, provider, now)


def _is_error(members: Mapping[str, object]) -> bool:
    """Tell whether ``error`` counts: null never does, an empty one not beside an access token."""
    error = members.get("error")
    if error is None:
        return False
    return bool(error) or read_access_token(members.get("access_token")) is None


def _error(members: Mapping[str, object], sent: Sequence[str]) -> Outcome:
    """RFC 6749 5.2, whatever the status: some send their errors with 200. The error wins."""
    error = members.get("error")
    received = [members.get("access_token"), members.get("refresh_token")]
    secrets = [*sent, *(token for token in received if isinstance(token, str))]
    return _told(meaning_of(error), shown(error, secrets))


def _told(meaning: Meaning, error: str | None = None) -> Outcome:
    return Outcome(
        kind=meaning.kind, reason=meaning.reason, error=error, description=meaning.description
    )


def _unanswered(status: int) -> Outcome:
    """A status that leaves open what the origin has done."""
    if status in _SERVER_ERRORS:
        return Outcome(
            kind=OutcomeKind.IN_DOUBT,
            reason=FailureReason.SERVER_ERROR,
            description=(
                f"The provider failed with status {status}; whether it processed the request is "
                "unknown. It will be asked again when that is safe."
            ),
        )
    if status in _REDIRECTS:
        return Outcome(
            kind=OutcomeKind.IN_DOUBT,
            reason=FailureReason.OTHER,
            description=(
                f"The provider's token endpoint redirects (status {status}), which is never "
                "followed. Configure the URL it redirects to, if you trust it."
            ),
        )
    return _in_doubt(f"The provider answered with status {status}, which no token endpoint sends.")


def _bare_refusal(status: int) -> Outcome:
    """A 4xx without an OAuth error."""
    if status in _GATEWAY_TIMEOUT:
        return Outcome(
            kind=OutcomeKind.IN_DOUBT,
            reason=FailureReason.TIMEOUT,
            description=(
                f"A gateway at the provider gave up (status {status}); whether the request was "
                "processed is unknown. It will be asked again when that is safe."
            ),
        )
    if status in _WRONG_DOOR:
        return Outcome(
            kind=OutcomeKind.MISCONFIGURED,
            reason=FailureReason.OTHER,
            description=(
                f"The provider answered with status {status} and no OAuth error. Check this "
                "provider's token endpoint and client authentication, and any firewall between."
            ),
        )
    return Outcome(
        kind=OutcomeKind.REFUSED,
        reason=FailureReason.OTHER,
        description=(
            f"The provider refused with status {status} and no OAuth error. It will be asked "
            "again; if it goes on, check this provider's token endpoint and parameters."
        ),
    )


def _in_doubt(what: str, members: Mapping[str, object] | None = None, *warnings: str) -> Outcome:
    """A reply that may be a success nobody can use; its refresh token, if any, is saved."""
    return Outcome(
        kind=OutcomeKind.IN_DOUBT,
        reason=FailureReason.MALFORMED_RESPONSE,
        description=(
            f"{what} Check that this provider's token endpoint is right and that no proxy or "
            "login page stands in between."
        ),
        salvaged_refresh_token=None
        if members is None
        else read_refresh_token(members.get("refresh_token")).value,
        warnings=warnings,
    )


def _success(members: Mapping[str, object], provider: Provider, now: datetime) -> Outcome:
    access_token = read_access_token(members.get("access_token"))
    if access_token is None:
        what = "The provider's reply has no usable access_token."
        return _in_doubt(what, members, "access_token_unusable")
    token_type = read_token_type(members.get("token_type"))
    if token_type.value is None:
        what = "The provider's reply has a token_type other than Bearer."
        return _in_doubt(what, members, *token_type.warnings)
    refresh_token = read_refresh_token(members.get("refresh_token"))
    expires_in = read_lifetime(members.get("expires_in"), access_token, now)
    scopes = read_scopes(members.get("scope"), provider)
    return Outcome(
        kind=OutcomeKind.OK,
        granted=Granted(
            access_token=access_token,
            token_type=token_type.value,
            refresh_token=refresh_token.value,
            expires_in=expires_in.value,
            scopes=scopes.value,
        ),
        warnings=(
            *token_type.warnings,
            *refresh_token.warnings,
            *expires_in.warnings,
            *scopes.warnings,
        ),
    )


def _names_the_rest(provider: Provider) -> bool:
    """Tell whether anything of this provider may name members of its replies.

    Going through a reply for secrets takes as long as all else that is read of it.
    """
    named = provider.reply_names or provider.label is not None
    return bool(named) or provider.account_id is not None


def _with_the_rest(
    outcome: Outcome, document: Mapping[str, object], sent: Sequence[str]
) -> Outcome:
    """Keep with a grant what else its reply says, but for all that is secret."""
    granted = outcome.granted
    if granted is None:
        return outcome
    tokens = (granted.access_token, granted.refresh_token or "", *sent)
    rest = read_rest(document, tokens)
    members = {} if rest.value is None else rest.value
    return replace(
        outcome,
        granted=replace(granted, members=members),
        warnings=(*outcome.warnings, *rest.warnings),
    )


def _is_skewed(date: str | None, now: datetime) -> bool:
    sent_at = None if date is None else http_date(date, now)
    return sent_at is not None and abs((sent_at - now).total_seconds()) > _CLOCK_SKEW
