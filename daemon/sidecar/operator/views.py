"""What each operator page shows, as values that templates only have to lay out. Pure.

No token, secret or code is in any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from shlex import quote
from urllib.parse import urlencode

from daemon.config.settings import Permission, Settings
from daemon.domain.connection import Connection, Status
from daemon.domain.provider import Provider
from daemon.sidecar.access import API_KEY_FILE, Identity
from daemon.sidecar.operator.words import (
    Advice,
    Badge,
    HistoryLine,
    Moment,
    advice_of,
    badge_of,
    moment_of,
)

_REFRESHED = {Status.ACTIVE, Status.FAILING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One connection in the list."""

    id: str
    label: str | None
    provider: str
    account_id: str | None
    badge: Badge
    advice: Advice | None
    expires: Moment | None
    never_expires: bool
    refresh: Moment | None
    used: Moment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What the list is narrowed to, as the form shows it."""

    text: str = ""
    provider: str = ""
    status: str = ""

    @property
    def is_narrowed(self) -> bool:
        """Tell whether some connections may be left out."""
        return bool(self.text or self.provider or self.status)

    def url(self, cursor: str | None = None) -> str:
        """Return the address of this search, from ``cursor`` on."""
        query = {
            "q": self.text,
            "provider": self.provider,
            "status": self.status,
            "cursor": cursor or "",
        }
        text = urlencode({name: value for name, value in query.items() if value})
        return "/connections" + (f"?{text}" if text else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A button. ``why_not`` says why it cannot be pressed."""

    name: str
    title: str
    why_not: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """One connection on its own page."""

    row: Row
    grant: str
    status: str
    facts: Sequence[tuple[str, str | Moment | None]]
    lists: Sequence[tuple[str, Sequence[str]]]
    test: Advice | None
    actions: Sequence[Action]
    curl: str
    history: Sequence[HistoryLine] = field(default=())
    older: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderView:
    """One configured provider."""

    name: str
    redirect_uri: str
    facts: Sequence[tuple[str, str | None]]
    scopes: Sequence[str]
    fields: Sequence[tuple[str, str]]


def row_of(connection: Connection, now: datetime) -> Row:
    """Return a connection as the list shows it."""
    is_live = connection.status in _REFRESHED
    return Row(
        id=connection.id,
        label=connection.label,
        provider=connection.provider,
        account_id=connection.account_id,
        badge=badge_of(connection, now),
        advice=advice_of(connection, now),
        expires=_moment(connection.expires_at, now),
        never_expires=is_live and connection.expires_at is None and connection.generation > 0,
        refresh=_moment(connection.refresh_at, now),
        used=_moment(connection.last_used_at, now),
    )


def detail_of(
    connection: Connection,
    provider: Provider | None,
    identity: Identity,
    *,
    curl: str,
    now: datetime,
) -> Detail:
    """Return a connection as its own page shows it, still without its history."""
    titles = {} if provider is None else {n: f.title for n, f in provider.fields.items()}
    test = connection.last_test
    return Detail(
        row=row_of(connection, now),
        grant=connection.grant,
        status=connection.status.value,
        facts=_facts(connection, titles, now),
        lists=(
            ("Scopes granted", connection.scopes),
            ("Scopes asked for", connection.requested_scopes),
        ),
        test=None
        if test is None or test.error is None
        else Advice(badge_of(connection, now).tone, test.error.description, "", test.error.code),
        actions=actions_on(connection, provider, identity),
        curl=curl,
    )


def _facts(
    connection: Connection, titles: Mapping[str, str], now: datetime
) -> list[tuple[str, str | Moment | None]]:
    test = connection.last_test
    return [
        ("Account", connection.account_id),
        ("Refresh token", "kept" if connection.has_refresh_token else "none"),
        ("Generation", str(connection.generation)),
        ("Last refreshed", _moment(connection.last_refreshed_at, now)),
        ("Last used", _moment(connection.last_used_at, now)),
        ("Last tested", _moment(connection.last_tested_at, now)),
        ("Last test", None if test is None else _test_words(test.ok, test.status)),
        *((titles.get(name, name), value) for name, value in connection.fields.items()),
        *((f"metadata.{name}", value) for name, value in connection.metadata.items()),
        ("Created", _moment(connection.created_at, now)),
        ("Created by", connection.created_by or None),
    ]


def _test_words(ok: bool, status: int | None) -> str:  # noqa: FBT001 - two plain values of one result
    answer = "" if status is None else f" (HTTP {status})"
    return ("passed" if ok else "failed") + answer


def actions_on(
    connection: Connection, provider: Provider | None, identity: Identity
) -> tuple[Action, ...]:
    """Return the buttons of a connection; none for a caller who may only look."""
    if Permission.MANAGE not in identity.permissions:
        return ()
    gone = None if provider else "Its provider is not in the configuration any more."
    has_tokens = connection.status in _REFRESHED
    no_tokens = None if has_tokens else "There is no token now."
    no_test = None if provider and provider.test else "No test request is configured for it."
    no_refresh = None if connection.has_refresh_token else "The provider gave no refresh token."
    connect = "Connect" if connection.status is Status.PENDING else "Reconnect"
    disconnected = connection.status is Status.DISCONNECTED
    return (
        Action(name="test", title="Test", why_not=gone or no_tokens or no_test),
        Action(name="refresh", title="Refresh", why_not=gone or no_tokens or no_refresh),
        Action(name="reconnect", title=connect, why_not=gone),
        Action(name="disconnect", title="Remove" if disconnected else "Disconnect"),
    )


def curl_of(connection_id: str, host: str, settings: Settings) -> str:
    """Return a command that reads the token; the key stays in its file or variable."""
    key = "$TOKENWARD_KEY"
    if not settings.callers:
        key = f"$(cat {quote(str(settings.state_dir / API_KEY_FILE))})"
    url = f"http://{host}/v1/connections/{connection_id}/token"
    return f'curl -s -H "Authorization: Bearer {key}" {quote(url)}'


def provider_view(provider: Provider, settings: Settings) -> ProviderView:
    """Return a provider as configured; never a secret."""
    endpoints, api = provider.endpoints, provider.api_base_url
    return ProviderView(
        name=provider.name,
        redirect_uri=settings.redirect_uri,
        facts=(
            ("Grant", provider.grant.value),
            ("Issuer", provider.issuer),
            ("Authorization endpoint", endpoints.authorization),
            ("Token endpoint", endpoints.token),
            ("Revocation endpoint", endpoints.revocation),
            ("Client id", provider.client_id),
            ("Client authentication", provider.token_endpoint_auth_method.value),
            ("PKCE", "S256" if provider.pkce else "off"),
            ("Rotation", provider.rotation.kind.value),
            # Without its query, in which an API key may stand.
            ("API", api.text.partition("?")[0] if api else None),
            ("Tokens may go to", ", ".join(provider.allowed_hosts) or None),
            ("Test request", "configured" if provider.test else "none"),
        ),
        scopes=provider.scopes,
        fields=tuple(
            (f.title, _field_words(provider, name)) for name, f in provider.fields.items()
        ),
    )


def _field_words(provider: Provider, name: str) -> str:
    field_ = provider.fields[name]
    said = [
        "required" if field_.required else "optional",
        f"one of {', '.join(field_.enum)}" if field_.enum else "",
        f"matches {field_.pattern.pattern}" if field_.pattern else "",
        f"default {field_.default}" if field_.default else "",
    ]
    return "; ".join(word for word in said if word)


def _moment(moment: datetime | None, now: datetime) -> Moment | None:
    return None if moment is None else moment_of(moment, now)
