"""``tokenward connect``: ask for a connect URL, bring a person there, wait until they are back."""

from __future__ import annotations

import time
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.cli.caller import open_client
from daemon.cli.calls import read_duration, say_connection
from daemon.cli.client import ApiClient, RefusedError, connection_path
from daemon.cli.exits import CommandError, Exit
from daemon.cli.invocation import Invocation
from daemon.cli.printing import complain, say

# Quick for somebody who watches, cheap for the daemon that is asked.
_POLL_SECONDS = 0.5

# Only a person can make a connection of any other status active.
_REFRESHED = frozenset({"active", "failing"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to connect, and how to bring the person there."""

    provider: str
    id: str | None = None
    scopes: Sequence[str] = ()
    metadata: Sequence[str] = ()
    fields: Sequence[str] = ()
    return_url: str | None = None
    browser: bool = True
    timeout: str = "30m"


def connect(call: Invocation, wanted: Wanted) -> None:
    """Create the connection, or reconnect the one that has the id; print it once it is active."""
    patience = read_duration(wanted.timeout, option="--timeout").total_seconds()
    client = open_client(call)
    before, url = _begin(client, wanted)
    connection_id = str(before["id"])
    tell = complain if call.as_json else say
    tell(f"Open this URL in a browser to connect {connection_id}:")
    tell(f"  {url}")
    if wanted.browser and open_in_browser(url, call.environ):
        tell("It was opened in your browser.")
    tell("Waiting until that is done (Ctrl-C stops waiting; the URL stays valid) …")
    try:
        connection = _wait(client, before, seconds=patience)
    except KeyboardInterrupt:
        raise CommandError(
            f"Stopped waiting. 'tokenward show {connection_id}' tells whether it is connected.",
            Exit.REAUTHORIZE,
        ) from None
    say_connection(call, connection)


def open_in_browser(url: str, environ: Mapping[str, str]) -> bool:
    """Open ``url`` where there is a screen to show it; tell whether that was tried.

    Without one, a text browser would take over the terminal.
    """
    has_screen = any(environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return has_screen and webbrowser.open(url)


def is_connected(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Tell whether a person has connected since the connection looked like ``before``. Pure.

    A connection that works goes on being refreshed while the person is away, and a refresh
    raises the generation as well; but only an authorization also changes the connection itself.
    """
    if after["status"] != "active" or after["generation"] <= before["generation"]:
        return False
    if before["status"] not in _REFRESHED:
        return True
    # RFC 3339 in UTC: the order of the texts is that of the times.
    changed_at, refreshed_at = str(after["updated_at"]), str(after["last_refreshed_at"])
    return changed_at != before["updated_at"] or changed_at >= refreshed_at


def _begin(client: ApiClient, wanted: Wanted) -> tuple[Mapping[str, Any], str]:
    """Return the connection as it is now, and the connect URL."""
    body: dict[str, object] = {"provider": wanted.provider}
    if wanted.id is not None:
        body["id"] = wanted.id
    if wanted.scopes:
        body["scopes"] = list(wanted.scopes)
    if wanted.metadata:
        body["metadata"] = dict(_pair(text, "--metadata") for text in wanted.metadata)
    if wanted.fields:
        body["fields"] = dict(_pair(text, "--field") for text in wanted.fields)
    if wanted.return_url is not None:
        body["return_url"] = wanted.return_url
    try:
        created = client.post("/v1/connections", body)
    except RefusedError as error:
        if error.code != "connection_exists" or wanted.id is None:
            raise
        return _begin_again(client, wanted, wanted.id)
    return created, created["connect_url"]


def _begin_again(
    client: ApiClient, wanted: Wanted, connection_id: str
) -> tuple[Mapping[str, Any], str]:
    connection = client.get(connection_path(connection_id))
    if connection["provider"] != wanted.provider:
        raise CommandError(
            f"{connection_id} is a connection of the provider {connection['provider']}. Choose "
            f"another --id, or reconnect it with: tokenward connect {connection['provider']} "
            f"--id {connection_id}",
            Exit.USAGE,
        )
    if wanted.scopes or wanted.metadata or wanted.fields:
        raise CommandError(
            f"{connection_id} exists already, and connecting again changes neither its scopes nor "
            "its metadata and fields. Leave --scope, --metadata and --field out, or choose another "
            "--id.",
            Exit.USAGE,
        )
    body = {} if wanted.return_url is None else {"return_url": wanted.return_url}
    answer = client.post(connection_path(connection_id, "authorize"), body)
    return connection, answer["connect_url"]


def _wait(client: ApiClient, before: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
    connection_id = str(before["id"])
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = client.get(connection_path(connection_id))
        except RefusedError as error:
            if error.merged_into is None:
                raise
            complain(f"That account was connected already, as {error.merged_into}.")
            return client.get(connection_path(error.merged_into))
        if is_connected(before, connection):
            return connection
        if time.monotonic() >= deadline:
            raise CommandError(
                f"Nobody has connected {connection_id} in time. Open the URL above while it is "
                f"valid, or get a new one with: tokenward connect {connection['provider']} "
                f"--id {connection_id}",
                Exit.REAUTHORIZE,
            )
        time.sleep(_POLL_SECONDS)


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise CommandError(f"{option} takes NAME=VALUE, as in {option} team=7.", Exit.USAGE)
    return name, value
