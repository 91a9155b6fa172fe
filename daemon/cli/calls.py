"""The commands that ask the api listener and print what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from math import ceil
from typing import Any

from daemon.cli.caller import open_client
from daemon.cli.client import ApiClient, connection_path
from daemon.cli.exits import CommandError, Exit
from daemon.cli.invocation import Invocation
from daemon.cli.printing import cell, complain, relative, say, say_json, say_pairs, say_table
from daemon.config.values import InvalidValueError, duration
from daemon.domain.clock import SystemClock

_PAGE = "1000"
_TIMES = frozenset(
    {
        "expires_at",
        "refresh_at",
        "last_refreshed_at",
        "last_used_at",
        "last_tested_at",
        "checked_at",
        "created_at",
        "updated_at",
    }
)
_ERRORS = frozenset({"last_error", "error"})
_REVOCATIONS = {
    "revoked": "They are revoked at the provider, too.",
    "queued": "The provider has not confirmed their revocation yet; the daemon goes on trying.",
    "unsupported": "The provider has no revocation endpoint: there they stay valid until they "
    "expire, or until the person removes the access in the provider's own settings.",
}
_COLUMNS = ("ID", "PROVIDER", "STATUS", "LABEL", "EXPIRES", "NEXT REFRESH", "LAST ERROR")


def read_duration(text: str, *, option: str) -> timedelta:
    """Return a duration that was given to ``option``: ``90s``, ``15m``, ``2h`` or seconds.

    Raises:
        CommandError: it is none.
    """
    try:
        return duration(text)
    except InvalidValueError as error:
        raise CommandError(f"{option} {error}.", Exit.USAGE) from error


def list_connections(
    call: Invocation, *, provider: str | None, status: str | None, query: str | None
) -> None:
    """``tokenward connections``: all pages as one table."""
    wanted = {"provider": provider, "status": status, "q": query}
    filters = {name: value for name, value in wanted.items() if value is not None}
    found = list(all_connections(open_client(call), filters))
    if call.as_json:
        say_json({"connections": found})
    elif found:
        now = SystemClock().now()
        say_table(_COLUMNS, (_row(connection, now) for connection in found))
    elif filters:
        say("No connection matches.")
    else:
        say("There are no connections yet. Make one with: tokenward connect PROVIDER")


def show(call: Invocation, connection_id: str) -> None:
    """``tokenward show``: one connection."""
    say_connection(call, open_client(call).get(connection_path(connection_id)))


def refresh(call: Invocation, connection_id: str) -> None:
    """``tokenward refresh``: refresh now, then show."""
    say_connection(call, open_client(call).post(connection_path(connection_id, "refresh")))


def test(call: Invocation, connection_id: str) -> None:
    """``tokenward test``: call the provider's test request; a token that fails it ends with 1.

    Raises:
        CommandError: the test failed.
    """
    report = open_client(call).post(connection_path(connection_id, "test"))
    if call.as_json:
        say_json(report)
    else:
        now = SystemClock().now()
        say_pairs(_pairs({"connection": connection_id, **report}, now))
    if not report["ok"]:
        error = report["error"] or {}
        raise CommandError(
            f"The token of {connection_id} failed its test: "
            f"{error.get('description') or 'the provider did not accept it.'}"
        )


def disconnect(call: Invocation, connection_id: str, *, purge: bool) -> None:
    """``tokenward disconnect``: end a connection, and say what became of its tokens."""
    query = {"purge": "true"} if purge else None
    answer = open_client(call).delete(connection_path(connection_id), query)
    if call.as_json:
        say_json(answer)
        return
    say(f"{connection_id} is disconnected{' and removed' if purge else ''}: its tokens are erased.")
    say(_REVOCATIONS.get(answer["revocation"], ""))


def token(
    call: Invocation, connection_id: str, *, min_ttl: str | None, as_json: bool, as_header: bool
) -> None:
    """``tokenward token``: the bare access token, or in the shape that was asked for."""
    if as_json and as_header:
        raise CommandError("Give --json or --header, not both.", Exit.USAGE)
    seconds = ceil(read_duration(min_ttl or "0", option="--min-ttl").total_seconds())
    query = {"min_ttl": str(seconds)} if seconds else None
    body = open_client(call).get(connection_path(connection_id, "token"), query)
    if as_header:
        say(f"Authorization: {_scheme(body)} {body['access_token']}")
    elif as_json or call.as_json:
        say_json(body)
    else:
        say(str(body["access_token"]))
    if body.get("warning") and not (as_json or call.as_json):
        complain(f"Warning: {body['warning']}")


def providers(call: Invocation, name: str | None) -> None:
    """``tokenward providers``: what is configured, with the redirect URI to register."""
    client = open_client(call)
    if name is not None:
        from urllib.parse import quote

        provider = client.get(f"/v1/providers/{quote(name, safe='')}")
        if call.as_json:
            say_json(provider)
        else:
            say_pairs((key, cell(value)) for key, value in provider.items())
        return
    answer = client.get("/v1/providers")
    found = answer["providers"]
    if call.as_json:
        say_json(answer)
    elif not found:
        say("No provider is configured yet. Add one under 'providers' in the configuration;")
        say("config.example.yaml shows how.")
    else:
        say_table(
            ("NAME", "SERVER", "SCOPES", "REDIRECT URI TO REGISTER THERE"),
            (
                (
                    provider["name"],
                    cell(provider["issuer"] or provider["token_endpoint"]),
                    cell(provider["scopes"]),
                    provider["redirect_uri"],
                )
                for provider in found
            ),
        )


def say_connection(call: Invocation, connection: Mapping[str, Any]) -> None:
    """Print one connection."""
    if call.as_json:
        say_json(connection)
        return
    now = SystemClock().now()
    say_pairs(_pairs(connection, now))


def all_connections(client: ApiClient, filters: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield all connections that ``filters`` leave, page by page."""
    query = {**filters, "limit": _PAGE}
    while True:
        page = client.get("/v1/connections", query)
        yield from page["connections"]
        if page["next_cursor"] is None:
            return
        query["cursor"] = page["next_cursor"]


def _row(connection: Mapping[str, Any], now: datetime) -> tuple[str, ...]:
    return (
        connection["id"],
        connection["provider"],
        connection["status"],
        cell(connection["label"]),
        relative(connection["expires_at"], now),
        relative(connection["refresh_at"], now),
        _brief(connection["last_error"], now),
    )


def _pairs(connection: Mapping[str, Any], now: datetime) -> Iterator[tuple[str, str]]:
    for name, value in connection.items():
        if name in _TIMES:
            yield name, "-" if value is None else f"{value} ({relative(value, now)})"
        elif name in _ERRORS:
            yield name, _error(value, now)
        else:
            yield name, cell(value)


def _brief(error: Mapping[str, Any] | None, now: datetime) -> str:
    """Return an error in the width of a column; ``show`` has all of it."""
    return "-" if error is None else f"{error['code']}, {relative(error['at'], now)}"


def _error(error: Mapping[str, Any] | None, now: datetime) -> str:
    if error is None:
        return "-"
    at = error.get("at")
    when = f" ({relative(at, now)})" if at else ""
    return f"{error['code']}: {error['description']}{when}"


def _scheme(body: Mapping[str, Any]) -> str:
    """Return the scheme of the header: servers that say ``bearer`` mean RFC 6750's ``Bearer``."""
    kind = str(body["token_type"])
    return "Bearer" if kind.lower() == "bearer" else kind
