"""What a browser brings back from the provider (RFC 6749 4.1.2), and whether to believe it.

Pure: a raw query becomes parameters or a fault, parameters and their transaction become a fault
or nothing. Only what gets past both is worth a token request.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from daemon.domain.authorization import PendingAuthorization
from daemon.domain.provider import Provider
from daemon.oauth.authorization import fingerprint, is_secret
from daemon.oauth.authorization_errors import Fault
from daemon.oauth.query import decode, is_well_formed, raw_pairs

# RFC 6749 4.1.2 sets no limit on a code's length; 8 KiB is what servers take as a request line.
MAX_RESPONSE = 8192
_READ = ("code", "state", "iss", "error")
# Prose of the provider that nobody reads, and tokens of grants that are not supported.
_IGNORED = frozenset({"error_description", "error_uri", "access_token", "id_token", "token_type"})
# What templates and selectors may name as ``callback.``.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_MOST_OTHERS = 20
_LONGEST_OTHER = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackParams:
    """A well-formed authorization response: exactly one of ``code`` and ``error`` is set.

    ``others`` are the parameters that only a provider's templates know (``callback.``): never
    shown, never logged.
    """

    state: str = field(repr=False)
    code: str | None = field(default=None, repr=False)
    error: str | None = None
    iss: str | None = None
    others: Mapping[str, str] = field(default_factory=dict, repr=False)

    def as_query(self) -> dict[str, str]:
        """Return what :func:`parse_callback` reads as the same again."""
        known = {"code": self.code, "error": self.error, "state": self.state, "iss": self.iss}
        given = {name: value for name, value in known.items() if value is not None}
        return {**self.others, **given}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackRejection:
    """A response that cannot be an honest provider's.

    ``state`` is set where exactly one well-formed state was in it: that transaction is over too,
    so that a code which was sent along is worth nothing to whoever else may hold it.
    """

    state: str | None = field(default=None, repr=False)


def parse_callback(raw: str) -> CallbackParams | CallbackRejection:
    """Read a raw query string, or the raw body of a ``form_post`` response.

    Parameters nobody knows never fail a response (RFC 6749 4.1.2); up to 20 of up to 1 KiB are
    kept, where each comes once. What ``error_description`` and ``error_uri`` say is ignored. A
    parameter without a value counts as absent (RFC 6749 3.1). Of those that are read, each may
    come once, in UTF-8, without control characters.
    """
    if len(raw) > MAX_RESPONSE or not is_well_formed(raw):
        return CallbackRejection()
    found: dict[str, list[str | None]] = {name: [] for name in _READ}
    others: dict[str, list[str | None]] = {}
    for name, value in raw_pairs(raw):
        (found if name in found else others).setdefault(name, []).append(decode(value))
    states = found.pop("state")
    state = states[0] if len(states) == 1 else None
    if state is None or not is_secret(state):
        return CallbackRejection()
    if any(len(values) > 1 or None in values for values in found.values()):
        return CallbackRejection(state=state)
    code, iss, error = (values[0] if values else None for values in found.values())
    if bool(code) == bool(error):
        return CallbackRejection(state=state)
    return CallbackParams(
        state=state, code=code or None, error=error or None, iss=iss, others=_kept(others)
    )


def _kept(others: Mapping[str, list[str | None]]) -> dict[str, str]:
    """Return those of the other parameters that a template may use."""
    kept: dict[str, str] = {}
    for name, values in others.items():
        value = values[0]
        if len(values) > 1 or not value or name in _IGNORED or not _NAME.fullmatch(name):
            continue
        if len(value) <= _LONGEST_OTHER and len(kept) < _MOST_OTHERS:
            kept[name] = value
    return kept


@dataclass(frozen=True, slots=True)
class AcceptedCode:
    """A code that may be exchanged, once, as a client of ``provider``; the rest came with it."""

    provider: Provider
    code: str = field(repr=False)
    callback: Mapping[str, str] = field(default_factory=dict, repr=False)


def transaction_fault(
    authorization: PendingAuthorization, browser_binding: str | None, now: datetime
) -> Fault | None:
    """Tell why this browser cannot end ``authorization`` now, whatever it brings."""
    if authorization.expires_at <= now:
        return Fault("expired_state")
    if not _same_browser(authorization, browser_binding):
        return Fault("other_browser")
    return None


def judge_response(
    authorization: PendingAuthorization, params: CallbackParams, provider: Provider | None
) -> AcceptedCode | Fault:
    """Return the code to exchange, or why nothing must be sent anywhere.

    ``provider`` is the present configuration's, with its metadata. The issuer is checked before
    an error is believed, for error responses are forged as easily (RFC 9207 2.4).
    """
    if _foreign_issuer(authorization, params, provider):
        return Fault("issuer_mismatch")
    if params.error is not None:
        return Fault(params.error, from_provider=True)
    if provider is None or not _same_server(authorization, provider):
        return Fault("provider_not_configured")
    if params.code is None:
        return Fault("invalid_callback")
    return AcceptedCode(provider, params.code, params.others)


def _same_browser(authorization: PendingAuthorization, browser_binding: str | None) -> bool:
    if browser_binding is None or not is_secret(browser_binding):
        return False
    return hmac.compare_digest(fingerprint(browser_binding), authorization.browser_hash)


def _foreign_issuer(
    authorization: PendingAuthorization, params: CallbackParams, provider: Provider | None
) -> bool:
    """Compare ``iss`` byte for byte with the pinned issuer (RFC 9207 2.4).

    Where no issuer is known there is nothing to compare with: PKCE and the pinned token endpoint
    keep the code from anybody else.
    """
    if authorization.issuer is None:
        return False
    if params.iss is None:
        return provider is not None and provider.requires_iss
    return params.iss != authorization.issuer


def _same_server(authorization: PendingAuthorization, provider: Provider) -> bool:
    """Tell whether ``provider`` still is the server the transaction was aimed at.

    A reload of the configuration may have given the name, and so another client secret, to a
    different server; that secret must not go to the pinned token endpoint.
    """
    configured = provider.endpoints.token
    return provider.issuer == authorization.issuer and configured in {
        None,
        authorization.token_endpoint,
    }
