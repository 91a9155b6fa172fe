"""A service account token as it was presented, and what speaks against it: pure, nothing trusted.

The one hard idea: what a token says is read once, into types, before anything is believed. So
cheap reasons to refuse come first, and nothing that costs is done for what cannot be a caller's.
A projected token is a JWT (RFC 7519) with Kubernetes' own claims beside the registered ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson
from joserfc import jws
from joserfc.errors import JoseError

from daemon.config.settings import Kubernetes, ServiceAccount
from daemon.domain.errors import Problem

# A head of at most 8190 bytes brings no longer one; real ones have about 1,000 characters.
_LONGEST = 8192
# {" in base64url, as every JSON object with a member begins that serializers write.
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*", re.ASCII)
# What an API server signs with: RSA with SHA-256, or the one algorithm of each curve. Public keys
# only: neither ``none`` nor HMAC can ever be among them.
RS256 = "RS256"
OF_CURVE: Mapping[str, str] = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_ALGORITHMS = frozenset({RS256, *OF_CURVE.values()})
_KUBERNETES = "kubernetes.io"
_LONGEST_KEY_ID = 256
# Seconds that the clocks of two machines may differ, where time is kept at all.
LEEWAY = 10.0
# Later than any date that datetime knows.
_LAST_SECOND = 253402300800.0
# Seconds. A rotation of keys or a restart of an API server is over by then, mostly.
_RETRY_AFTER = 5
_NO_CLAIM = "a claim is missing or of the wrong type"


class Reason(StrEnum):
    """What is wrong with a token: the kind, for callers' programs."""

    MALFORMED = "malformed"
    ALGORITHM = "algorithm"
    UNKNOWN_KEY = "unknown_key"
    SIGNATURE = "signature"
    CLAIMS = "claims"
    ISSUER = "issuer"
    AUDIENCE = "audience"
    NOT_YET_VALID = "not_yet_valid"
    EXPIRED = "expired"
    UNKNOWN_ACCOUNT = "unknown_account"
    REFUSED = "refused"


# ASCII without quotes and backslashes: they also stand in a header (RFC 6750 3).
_WORDS: Mapping[Reason, tuple[str, str]] = {
    Reason.MALFORMED: (
        "it is not a signed JWT of at most 8192 characters with a JSON object inside",
        "Send the content of the projected token file as it is.",
    ),
    Reason.ALGORITHM: (
        "its algorithm is not one of RS256, ES256, ES384 and ES512, or not that of its key",
        "Send a token that the cluster has signed.",
    ),
    Reason.UNKNOWN_KEY: (
        "no key of the cluster has the id that it names",
        "Check that the token and the configured keys are of the same cluster.",
    ),
    Reason.SIGNATURE: (
        "its signature is wrong",
        "Send the content of the projected token file as it is.",
    ),
    Reason.CLAIMS: (
        _NO_CLAIM,
        "Send a token of a projected volume (serviceAccountToken), not one of a Secret.",
    ),
    Reason.ISSUER: (
        "it was issued by another issuer than the one in kubernetes.issuer",
        "Compare the two, byte for byte.",
    ),
    Reason.AUDIENCE: (
        "it was issued for another audience",
        "Ask for the audience in kubernetes.audience in the pod's token volume.",
    ),
    Reason.NOT_YET_VALID: (
        "it is not valid yet",
        "Check the clocks of this machine and of the API server.",
    ),
    Reason.EXPIRED: (
        "it has expired",
        "Read the token file again before each request: the kubelet renews it.",
    ),
    Reason.UNKNOWN_ACCOUNT: (
        "its service account is not a caller here",
        "Add the account to callers in the configuration.",
    ),
    Reason.REFUSED: (
        "the API server does not accept it",
        "Its pod or service account may be gone; send a token of a pod that runs.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says, in types. Times are seconds since 1970. ``pod`` is for the log."""

    issuer: str
    audiences: tuple[str, ...]
    issued_at: float
    not_before: float
    expires_at: float
    account: ServiceAccount
    pod: str | None = None
    pod_uid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """A token that could be read. Nothing of it is proven."""

    algorithm: str
    key_id: str
    claims: Claims
    signed: jws.CompactSignature = field(repr=False)


def is_jwt(text: str) -> bool:
    """Tell whether ``text`` has the outward form of a JWT, so that it is judged as one."""
    return _JWT.fullmatch(text) is not None


def read_token(token: str) -> Presented:
    """Return what ``token`` says.

    ``jku``, ``jwk``, ``x5u`` and ``x5c`` of its header are never looked at: which key counts is
    not for a token to say. A header with ``crit`` is refused: we know no extension (RFC 7515
    4.1.11), unencoded payloads least of all.

    Raises:
        Problem: 401, for a token that is too long, no JWS of three parts, or lacks a claim.
    """
    if len(token) > _LONGEST or not is_jwt(token):
        raise refused(Reason.MALFORMED)
    try:
        signed = jws.extract_compact(token.encode("ascii"))
        header: object = signed.protected
    except (JoseError, ValueError) as error:
        raise refused(Reason.MALFORMED) from error
    if not isinstance(header, dict) or "crit" in header or "b64" in header:
        raise refused(Reason.MALFORMED)
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        raise refused(Reason.ALGORITHM)
    if not isinstance(key_id, str) or not 0 < len(key_id) <= _LONGEST_KEY_ID:
        raise refused(Reason.UNKNOWN_KEY)
    claims = _claims(signed.payload)
    return Presented(algorithm=algorithm, key_id=key_id, claims=claims, signed=signed)


def check_claims(claims: Claims, kubernetes: Kubernetes, now: float) -> None:
    """Return where ``claims`` are meant for us, now (in seconds since 1970).

    Raises:
        Problem: 401, for another issuer or audience, or a time that is over or not yet come.
    """
    if kubernetes.issuer is not None and claims.issuer != kubernetes.issuer:
        raise refused(Reason.ISSUER)
    if kubernetes.audience not in claims.audiences:
        raise refused(Reason.AUDIENCE)
    if max(claims.not_before, claims.issued_at) > now + LEEWAY:
        raise refused(Reason.NOT_YET_VALID)
    if claims.expires_at <= now - LEEWAY:
        raise refused(Reason.EXPIRED)


def username(account: ServiceAccount) -> str:
    """Return the account's name as a user of Kubernetes: the ``sub`` of its tokens."""
    return f"system:serviceaccount:{account.namespace}:{account.name}"


def refused(reason: Reason) -> Problem:
    """Return the answer to a token that is refused: why in kind, and nothing of the token."""
    what, advice = _WORDS[reason]
    challenge = f'error="invalid_token", error_description="{what}"'
    return Problem(
        401,
        "unauthenticated",
        f"The service account token is refused: {what}. {advice}",
        headers={"WWW-Authenticate": f'Bearer realm="tokenward", {challenge}'},
        reason=str(reason),
    )


def unavailable() -> Problem:
    """Return the answer where nobody can tell whether a token is good: never the caller's fault."""
    return Problem(
        503,
        "verification_unavailable",
        "Whether this service account token is good cannot be found out right now: the cluster's "
        "keys or its API server cannot be reached, or too many tokens are being verified. Try "
        "again soon; tokenward's log says why.",
        retry_after=_RETRY_AFTER,
    )


def _claims(payload: bytes | None) -> Claims:
    try:
        found = orjson.loads(payload or b"")
    except orjson.JSONDecodeError as error:
        raise refused(Reason.MALFORMED) from error
    if not isinstance(found, dict):
        raise refused(Reason.MALFORMED)
    kubernetes = _object(found, _KUBERNETES)
    account = ServiceAccount(
        namespace=_text(kubernetes, "namespace"),
        name=_text(_object(kubernetes, "serviceaccount"), "name"),
    )
    if found.get("sub") != username(account):
        raise refused(Reason.CLAIMS)
    issued_at = _moment(found, "iat")
    pod = kubernetes.get("pod")
    return Claims(
        issuer=_text(found, "iss"),
        audiences=_audiences(found.get("aud")),
        issued_at=issued_at,
        not_before=_moment(found, "nbf") if "nbf" in found else issued_at,
        expires_at=_moment(found, "exp"),
        account=account,
        pod=_text(pod, "name") if isinstance(pod, dict) else None,
        pod_uid=_text(pod, "uid") if isinstance(pod, dict) else None,
    )


def _audiences(value: object) -> tuple[str, ...]:
    """Return who the token is for: one text or a list of them (RFC 7519 4.1.3); none is nobody."""
    entries = value if isinstance(value, list) else [] if value is None else [value]
    audiences = tuple(entry for entry in entries if isinstance(entry, str))
    if len(audiences) != len(entries):
        raise refused(Reason.CLAIMS)
    return audiences


def _object(members: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = members.get(name)
    if not isinstance(value, dict):
        raise refused(Reason.CLAIMS)
    return value


def _text(members: Mapping[str, Any], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str) or not value:
        raise refused(Reason.CLAIMS)
    return value


def _moment(members: Mapping[str, Any], name: str) -> float:
    """Return a NumericDate (RFC 7519 2)."""
    value = members.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refused(Reason.CLAIMS)
    if not 0 <= value < _LAST_SECOND:
        raise refused(Reason.CLAIMS)
    return float(value)
