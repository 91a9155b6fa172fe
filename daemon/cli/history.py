"""``tokenward events``: what happened to connections, and what happens to them from now on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from daemon.cli.caller import open_client
from daemon.cli.client import ApiClient, connection_path
from daemon.cli.invocation import Invocation
from daemon.cli.printing import cell, plain, say, say_json

_PAGE = 200


def events(call: Invocation, connection_id: str | None, *, follow: bool, limit: int) -> None:
    """Print the newest ``limit`` events, oldest first, then with ``follow`` each as it happens.

    With ``--output json`` each event is one line.
    """
    client = open_client(call)
    past = _past(client, connection_id, limit)
    if not (past or follow or call.as_json):
        say("Nothing has happened yet.")
    for event in reversed(past):
        _say_event(call, event)
    if follow:
        # Ctrl-C is how following ends.
        with suppress(KeyboardInterrupt):
            for event in _from_now_on(client, past):
                if connection_id in {None, event["connection"]}:
                    _say_event(call, event)


def _past(client: ApiClient, connection_id: str | None, limit: int) -> list[dict[str, Any]]:
    """Return up to ``limit`` events, newest first."""
    path = "/v1/events" if connection_id is None else connection_path(connection_id, "events")
    found: list[dict[str, Any]] = []
    query: dict[str, str] = {}
    while len(found) < limit:
        query["limit"] = str(min(_PAGE, limit - len(found)))
        page = client.get(path, query)
        found += page["events"]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    return found


def _from_now_on(client: ApiClient, past: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield events after the newest that was printed, so that none is missed in between."""
    query = {"after": past[0]["id"]} if past else None
    yield from client.follow("/v1/events", query)


def _say_event(call: Invocation, event: Mapping[str, Any]) -> None:
    if call.as_json:
        say_json(event)
        return
    detail = " ".join(f"{name}={cell(value)}" for name, value in event["detail"].items())
    say(plain(f"{event['at']}  {event['type']:<38}  {event['connection']}  {detail}".rstrip()))
