"""Connections as JSON, both ways: the body that shows one, and the body that creates one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from daemon.domain.connection import Connection, is_connection_id
from daemon.domain.errors import Problem
from daemon.domain.provider import Provider
from daemon.sidecar.return_url import is_allowed

_MEMBERS = {"provider", "id", "scopes", "metadata", "return_url", "tokens"}
_TOKEN_MEMBERS = {"refresh_token", "access_token", "expires_at"}
_MOST_SCOPES = 200
_MOST_METADATA = 50
_LONGEST_METADATA = 500
_LONGEST_TOKEN = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedTokens:
    """Tokens that another system obtained for the same client."""

    refresh_token: str = field(repr=False)
    access_token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """A checked ``POST /v1/connections`` body."""

    provider: Provider
    id: str | None
    scopes: tuple[str, ...]
    metadata: Mapping[str, str]
    return_url: str | None
    tokens: ImportedTokens | None


def connection_body(connection: Connection) -> dict[str, Any]:
    """Return the body of contract 4. Times are RFC 3339 in UTC. Nothing in it is secret."""
    error = connection.last_error
    return {
        "id": connection.id,
        "provider": connection.provider,
        "grant": connection.grant,
        "status": connection.status.value,
        "label": connection.label,
        "account_id": connection.account_id,
        "fields": dict(connection.fields),
        "scopes": list(connection.scopes),
        "requested_scopes": list(connection.requested_scopes),
        "metadata": dict(connection.metadata),
        "generation": connection.generation,
        "expires_at": rfc3339(connection.expires_at),
        "refresh_at": rfc3339(connection.refresh_at),
        "has_refresh_token": connection.has_refresh_token,
        "last_refreshed_at": rfc3339(connection.last_refreshed_at),
        "last_used_at": rfc3339(connection.last_used_at),
        "last_tested_at": rfc3339(connection.last_tested_at),
        "last_error": error
        and {"code": error.code, "description": error.description, "at": rfc3339(error.at)},
        "created_at": rfc3339(connection.created_at),
        "updated_at": rfc3339(connection.updated_at),
    }


def rfc3339(moment: datetime | None) -> str | None:
    """Return ``2026-11-21T18:00:00Z``; ``None`` stays ``None``."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class _Findings:
    """What is wrong with a body: every member, not only the first."""

    def __init__(self) -> None:
        self.errors: list[dict[str, str]] = []

    def add(self, member: str, message: str) -> None:
        self.errors.append({"member": member, "message": message})

    def unless(self, good: object, member: str, message: str) -> bool:
        if not good:
            self.add(member, message)
        return bool(good)

    def raise_if_any(self) -> None:
        """Raise a Problem that names all findings."""
        if not self.errors:
            return
        raise Problem(
            422,
            "invalid_request",
            "Correct the members named in errors and send the request again: "
            + "; ".join(f"{e['member']} {e['message']}" for e in self.errors)
            + ".",
            errors=self.errors,
        )


def read_create_request(
    body: Mapping[str, Any],
    *,
    providers: Mapping[str, Provider],
    return_urls: Iterable[str],
) -> CreateRequest:
    """Check a ``POST /v1/connections`` body.

    Raises:
        Problem: 422 ``invalid_request`` whose ``errors`` name each bad member.
    """
    findings = _Findings()
    for name in sorted(set(body) - _MEMBERS):
        findings.add(name[:64], f"is not a member; there are {', '.join(sorted(_MEMBERS))}")
    provider = _provider(body.get("provider"), providers, findings)
    wanted_id = body.get("id")
    findings.unless(
        wanted_id is None or (isinstance(wanted_id, str) and is_connection_id(wanted_id)),
        "id",
        "must be 1 to 128 of A-Z a-z 0-9 . _ : @ - and begin with a letter or a digit",
    )
    return_url = body.get("return_url")
    findings.unless(
        return_url is None or (isinstance(return_url, str) and is_allowed(return_url, return_urls)),
        "return_url",
        "must match an entry of return_urls in tokenward's configuration",
    )
    scopes = _scopes(body.get("scopes"), findings)
    metadata = _metadata(body.get("metadata"), findings)
    tokens = _tokens(body.get("tokens"), findings)
    findings.raise_if_any()
    if provider is None:
        raise AssertionError("an unknown provider is a finding")
    return CreateRequest(
        provider=provider,
        id=wanted_id,
        scopes=scopes if scopes is not None else provider.scopes,
        metadata=metadata,
        return_url=return_url,
        tokens=tokens,
    )


def read_return_url(
    body: Mapping[str, Any], *, default: str | None, return_urls: Iterable[str]
) -> str | None:
    """Check a ``POST …/authorize`` body; its one member is ``return_url``.

    Raises:
        Problem: 422 ``invalid_request``.
    """
    wanted = body.get("return_url", default)
    findings = _Findings()
    for name in sorted(set(body) - {"return_url"}):
        findings.add(name[:64], "is not a member; there is return_url")
    findings.unless(
        wanted is None or (isinstance(wanted, str) and is_allowed(wanted, return_urls)),
        "return_url",
        "must match an entry of return_urls in tokenward's configuration",
    )
    findings.raise_if_any()
    return None if wanted is None else str(wanted)


def _provider(
    name: object, providers: Mapping[str, Provider], findings: _Findings
) -> Provider | None:
    if not isinstance(name, str):
        findings.add("provider", "is required: the name of a configured provider")
        return None
    provider = providers.get(name)
    known = ", ".join(sorted(providers)) or "none yet"
    findings.unless(provider, "provider", f"is not configured; there are: {known}")
    return provider


def _scopes(value: object, findings: _Findings) -> tuple[str, ...] | None:
    if value is None:
        return None
    good = (
        isinstance(value, list)
        and len(value) <= _MOST_SCOPES
        and all(isinstance(scope, str) and _is_scope(scope) for scope in value)
    )
    findings.unless(good, "scopes", "must be a list of scope names without spaces or quotes")
    return tuple(value) if good and isinstance(value, list) else None


def _is_scope(text: str) -> bool:
    """Tell whether ``text`` is a scope-token of RFC 6749 3.3."""
    return bool(text) and all("!" <= letter <= "~" and letter not in '"\\' for letter in text)


def _metadata(value: object, findings: _Findings) -> dict[str, str]:
    if value is None:
        return {}
    good = (
        isinstance(value, dict)
        and len(value) <= _MOST_METADATA
        and all(
            isinstance(text, str) and len(name) <= _LONGEST_METADATA >= len(text)
            for name, text in value.items()
        )
    )
    findings.unless(
        good,
        "metadata",
        f"must be an object of at most {_MOST_METADATA} texts of at most {_LONGEST_METADATA} "
        "characters",
    )
    return dict(value) if good and isinstance(value, dict) else {}


def _tokens(value: object, findings: _Findings) -> ImportedTokens | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        findings.add("tokens", "must be an object with refresh_token")
        return None
    for name in sorted(set(value) - _TOKEN_MEMBERS):
        findings.add(f"tokens.{name[:64]}", "is not a member")
    refresh, access = value.get("refresh_token"), value.get("access_token")
    good = findings.unless(
        _is_token(refresh), "tokens.refresh_token", "is required: the refresh token, as text"
    )
    good &= findings.unless(
        access is None or _is_token(access), "tokens.access_token", "must be a token in ASCII"
    )
    expires_at = _moment(value.get("expires_at"))
    good &= findings.unless(
        value.get("expires_at") is None or expires_at,
        "tokens.expires_at",
        "must be a time in RFC 3339, as 2026-11-21T18:00:00Z",
    )
    if not good:
        return None
    return ImportedTokens(refresh_token=str(refresh), access_token=access, expires_at=expires_at)


def _is_token(value: object) -> bool:
    return (
        isinstance(value, str)
        and 0 < len(value) <= _LONGEST_TOKEN
        and all("!" <= letter <= "~" for letter in value)
    )


def _moment(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None
