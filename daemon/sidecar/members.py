"""Members of request bodies, each checked once; what is wrong is gathered, not thrown at first.

Nothing that a member holds is ever repeated in an answer: a secret may stand in the wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from daemon.domain.errors import Problem
from daemon.domain.fields import check_fields
from daemon.domain.provider import Provider, provider_for
from daemon.domain.templates import TemplateError
from daemon.sidecar.return_url import is_allowed

LONGEST_LABEL = 200
FIELDS_RULE = "must be an object of texts"
_TOKEN_MEMBERS = {"refresh_token", "access_token", "expires_at"}
_MOST_SCOPES = 200
_MOST_METADATA = 50
_LONGEST_METADATA = 500
_LONGEST_TOKEN = 16 * 1024
_LONGEST_NAME = 64
# Control characters, and those that turn the direction of what stands beside them.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedTokens:
    """Tokens that another system obtained for the same client."""

    refresh_token: str = field(repr=False)
    access_token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None


class Findings:
    """What is wrong with a body: every member, not only the first."""

    def __init__(self) -> None:
        self.errors: list[dict[str, str]] = []

    def add(self, member: str, message: str) -> None:
        """Remember that ``member`` is wrong, and why."""
        self.errors.append({"member": member, "message": message})

    def unless(self, good: object, member: str, message: str) -> bool:
        """Remember it where ``good`` is false; return ``good``."""
        if not good:
            self.add(member, message)
        return bool(good)

    def refuse_strangers(self, body: Iterable[str], members: Iterable[str]) -> None:
        """Remember every name that is no member."""
        known = sorted(members)
        for name in sorted(set(body) - set(known)):
            self.add(name[:_LONGEST_NAME], f"is not a member; there are {', '.join(known)}")

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


def read_provider(
    name: object, providers: Mapping[str, Provider], findings: Findings
) -> Provider | None:
    """Return the configured provider of that name."""
    if not isinstance(name, str):
        findings.add("provider", "is required: the name of a configured provider")
        return None
    provider = providers.get(name)
    known = ", ".join(sorted(providers)) or "none yet"
    findings.unless(provider, "provider", f"is not configured; there are: {known}")
    return provider


def read_return_url(value: object, return_urls: Iterable[str], findings: Findings) -> str | None:
    """Return where a person's browser goes in the end, if the configuration allows it."""
    if value is None or (isinstance(value, str) and is_allowed(value, return_urls)):
        return value
    findings.add("return_url", "must match an entry of return_urls in tokenward's configuration")
    return None


def read_scopes(value: object, findings: Findings) -> tuple[str, ...] | None:
    """Return scope-tokens (RFC 6749 3.3); ``None`` where the member is absent."""
    if value is None:
        return None
    good = (
        isinstance(value, list)
        and len(value) <= _MOST_SCOPES
        and all(isinstance(scope, str) and _is_scope(scope) for scope in value)
    )
    findings.unless(good, "scopes", "must be a list of scope names without spaces or quotes")
    return tuple(value) if good and isinstance(value, list) else None


def read_metadata(value: object, findings: Findings) -> dict[str, str]:
    """Return metadata as a whole."""
    if value is None:
        return {}
    findings.unless(_is_metadata(value), "metadata", _METADATA_RULE)
    return dict(value) if _is_metadata(value) and isinstance(value, dict) else {}


def patch_metadata(
    value: object, before: Mapping[str, str], findings: Findings
) -> dict[str, str] | None:
    """Return ``before`` with a merge patch applied (RFC 7396): ``null`` removes a name, or all."""
    if value is not None and not isinstance(value, dict):
        findings.add("metadata", _METADATA_RULE)
        return None
    after = {} if value is None else _patched(before, value)
    return after if findings.unless(_is_metadata(after), "metadata", _METADATA_RULE) else None


def read_fields(
    value: object, provider: Provider, findings: Findings, *, complete: bool
) -> dict[str, str]:
    """Return checked field values, each fit for the URLs in which it stands.

    ``complete``: nobody will be asked for the others any more.
    """
    if value is not None and not isinstance(value, dict):
        findings.add("fields", FIELDS_RULE)
        return {}
    given = {name: text for name, text in (value or {}).items() if text is not None}
    checked = check_fields(provider.fields, given, complete=complete)
    for name, message in checked.errors.items():
        findings.add(f"fields.{name[:_LONGEST_NAME]}", message)
    if not checked.errors:
        _check_urls(provider, checked.values, findings, complete=complete)
    return dict(checked.values)


def patch_fields(
    value: object,
    before: Mapping[str, str],
    provider: Provider,
    findings: Findings,
    *,
    complete: bool,
) -> dict[str, str] | None:
    """Return ``before`` with a merge patch applied, checked whole as ``read_fields`` does.

    A stored value of a field that the configuration has dropped since is dropped here.
    """
    if value is None:
        return read_fields({}, provider, findings, complete=complete)
    if not isinstance(value, dict):
        findings.add("fields", FIELDS_RULE)
        return None
    kept = {name: text for name, text in before.items() if name in provider.fields}
    return read_fields(_patched(kept, value), provider, findings, complete=complete)


def read_label(value: object, findings: Findings) -> str | None:
    """Return a label that a person has chosen; ``None`` asks for the computed one again."""
    if value is None:
        return None
    good = (
        isinstance(value, str)
        and 0 < len(value.strip()) <= LONGEST_LABEL
        and _UNSEEN.search(value) is None
    )
    findings.unless(
        good,
        "label",
        f"must be text of 1 to {LONGEST_LABEL} visible characters in one line, or null",
    )
    return value.strip() if good and isinstance(value, str) else None


def read_tokens(value: object, findings: Findings) -> ImportedTokens | None:
    """Return tokens to import."""
    if value is None:
        return None
    if not isinstance(value, dict):
        findings.add("tokens", "must be an object with refresh_token")
        return None
    for name in sorted(set(value) - _TOKEN_MEMBERS):
        findings.add(f"tokens.{name[:_LONGEST_NAME]}", "is not a member")
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


_METADATA_RULE = (
    f"must be an object of at most {_MOST_METADATA} texts of at most {_LONGEST_METADATA} characters"
)


def _patched(before: Mapping[str, str], patch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: text for name, text in {**before, **patch}.items() if text is not None}


def _check_urls(
    provider: Provider, values: Mapping[str, str], findings: Findings, *, complete: bool
) -> None:
    # Whoever is asked later can still give what is missing: something harmless stands in for it.
    asked = {} if complete else provider.fields
    missing = {name: each.default or "x" for name, each in asked.items()}
    try:
        provider_for(provider, {**missing, **values})
    except TemplateError as error:
        name = (error.name or "").removeprefix("fields.")
        if complete or name in values:
            findings.add(f"fields.{name}" if name else "fields", _reason(error))


def _reason(error: TemplateError) -> str:
    """Return the sentence without the name that stands before it already."""
    text = str(error)
    return text.removeprefix(f"{error.name} ") if error.name else text


def _is_scope(text: str) -> bool:
    """Tell whether ``text`` is a scope-token of RFC 6749 3.3."""
    return bool(text) and all("!" <= letter <= "~" and letter not in '"\\' for letter in text)


def _is_metadata(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _MOST_METADATA
        and all(
            isinstance(text, str) and len(name) <= _LONGEST_METADATA >= len(text)
            for name, text in value.items()
        )
    )


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
