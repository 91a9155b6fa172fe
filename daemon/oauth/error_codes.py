"""What the error codes of token endpoints mean: RFC 6749 5.2 and the dialects spoken beside it.

A code that is not here is a refusal and never ends a grant: only codes whose meaning is certain
ask a person to connect again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from daemon.domain.outcome import FailureReason, OutcomeKind

# RFC 6749 5.2: what an error code may consist of; and what fits a log line.
_OUTSIDE_CODE = re.compile(r"[^\x20-\x21\x23-\x5B\x5D-\x7E]")
_MAX_CODE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What an error code says: the kind of outcome, the metric's reason, and our own sentence."""

    kind: OutcomeKind
    reason: FailureReason
    description: str


_DEAD = Meaning(
    kind=OutcomeKind.REAUTHORIZE,
    reason=FailureReason.INVALID_GRANT,
    description=(
        "The provider no longer accepts this grant: it has expired, was revoked, or was used "
        "somewhere else. Connect again."
    ),
)
_INTERACTION = Meaning(
    kind=OutcomeKind.REAUTHORIZE,
    reason=FailureReason.INVALID_GRANT,
    description="The provider wants the person to sign in or to consent again. Connect again.",
)
_CLIENT = Meaning(
    kind=OutcomeKind.MISCONFIGURED,
    reason=FailureReason.INVALID_CLIENT,
    description=(
        "The provider did not accept our client authentication. Check client_id, client_secret "
        "and token_endpoint_auth_method of this provider; its connections stay as they are."
    ),
)
_UNAUTHORIZED = Meaning(
    kind=OutcomeKind.MISCONFIGURED,
    reason=FailureReason.UNAUTHORIZED_CLIENT,
    description=(
        "The provider does not allow our client to use this grant type. Allow authorization code "
        "and refresh token for the client at the provider."
    ),
)
_REQUEST = Meaning(
    kind=OutcomeKind.MISCONFIGURED,
    reason=FailureReason.OTHER,
    description=(
        "The provider did not understand our token request. Check this provider's token endpoint, "
        "redirect URI, token_params, refresh_params and token_request_format."
    ),
)
_SCOPE = Meaning(
    kind=OutcomeKind.MISCONFIGURED,
    reason=FailureReason.INVALID_SCOPE,
    description=(
        "The provider refused the requested scope. Check scopes and scope_separator of this "
        "provider against what the client may ask for."
    ),
)
_BUSY = Meaning(
    kind=OutcomeKind.REFUSED,
    reason=FailureReason.SERVER_ERROR,
    description=(
        "The provider says that it cannot answer right now. It will be asked again; nothing needs "
        "to be done."
    ),
)
_TOO_FAST = Meaning(
    kind=OutcomeKind.REFUSED,
    reason=FailureReason.RATE_LIMITED,
    description=(
        "The provider limits how often it may be asked. It will be asked again later; lower this "
        "provider's rate if it happens often."
    ),
)
_HALF_DONE = Meaning(
    kind=OutcomeKind.IN_DOUBT,
    reason=FailureReason.SERVER_ERROR,
    description=(
        "The provider failed while it worked on the request, and says that part of it may be done."
    ),
)
_UNKNOWN = Meaning(
    kind=OutcomeKind.REFUSED,
    reason=FailureReason.OTHER,
    description=(
        "The provider refused with an error code that is not known here. It will be asked again; "
        "if it goes on, look the code up in the provider's documentation."
    ),
)

RATE_LIMITED = _TOO_FAST

_MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        # RFC 6749 5.2, RFC 8707 2
        "invalid_request": _REQUEST,
        "invalid_client": _CLIENT,
        "invalid_grant": _DEAD,
        "unauthorized_client": _UNAUTHORIZED,
        "unsupported_grant_type": _UNAUTHORIZED,
        "invalid_scope": _SCOPE,
        "invalid_target": _REQUEST,
        # borrowed from the authorization endpoint (RFC 6749 4.1.2.1) and RFC 8628 3.5
        "server_error": _BUSY,
        "temporarily_unavailable": _BUSY,
        "slow_down": _TOO_FAST,
        "too_many_requests": _TOO_FAST,
        # OpenID Connect Core 3.1.2.6, as Microsoft sends them from the token endpoint
        "interaction_required": _INTERACTION,
        "login_required": _INTERACTION,
        "consent_required": _INTERACTION,
        "account_selection_required": _INTERACTION,
        # GitHub
        "bad_refresh_token": _DEAD,
        "bad_verification_code": _DEAD,
        "unverified_user_email": _INTERACTION,
        "incorrect_client_credentials": _CLIENT,
        "redirect_uri_mismatch": _REQUEST,
        # Slack
        "invalid_refresh_token": _DEAD,
        "token_expired": _DEAD,
        "token_revoked": _DEAD,
        "invalid_auth": _DEAD,
        "account_inactive": _DEAD,
        "invalid_code": _DEAD,
        "code_already_used": _DEAD,
        "code_expired": _DEAD,
        "invalid_client_id": _CLIENT,
        "bad_client_secret": _CLIENT,
        "bad_redirect_uri": _REQUEST,
        "invalid_grant_type": _UNAUTHORIZED,
        "ratelimited": _TOO_FAST,
        "rate_limited": _TOO_FAST,
        "service_unavailable": _BUSY,
        "internal_error": _HALF_DONE,
        "fatal_error": _HALF_DONE,
        # Salesforce; its "expired access/refresh token" is a description of invalid_grant
        "invalid_client_credentials": _CLIENT,
        "app_not_found": _CLIENT,
        "rate_limit_exceeded": _TOO_FAST,
        # HubSpot, where ``error`` is selected from ``status``
        "BAD_REFRESH_TOKEN": _DEAD,
        "BAD_AUTH_CODE": _DEAD,
        "BAD_CLIENT_ID": _CLIENT,
        "BAD_CLIENT_SECRET": _CLIENT,
    }
)


def meaning_of(error: object) -> Meaning:
    """Return what the ``error`` member of a reply says; anything not in the table is a refusal."""
    return _MEANINGS.get(error, _UNKNOWN) if isinstance(error, str) else _UNKNOWN


def shown(error: object, secrets: Sequence[str]) -> str | None:
    """Return ``error`` as it may be shown: the characters of RFC 6749 5.2, at most 64 of them.

    A code that is not in the table and repeats one of ``secrets`` is not shown.
    """
    if not isinstance(error, str):
        return None
    code = _OUTSIDE_CODE.sub("", error).strip()
    if error not in _MEANINGS and any(
        secret and (secret in error or secret in code) for secret in secrets
    ):
        return None
    return code[:_MAX_CODE] or None
