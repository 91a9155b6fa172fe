"""The daemon with an end in it: it kills itself with SIGKILL at a named moment, the n-th time.

``python -m tests.campaigns.doomed refresh/claim:after 2 ARMED --config FILE run`` is the real
daemon, with one function wrapped from outside; calls count while the file ARMED exists. Nothing of
this is in the product.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import Any

from daemon.cli.commands import main as daemon_main


class Doing(StrEnum):
    """What the daemon does when it ends."""

    REFRESH = "refresh"
    START = "start"
    CONNECT = "connect"
    DISCONNECT = "disconnect"


@dataclass(frozen=True, slots=True)
class Doom:
    """One moment: before a function runs, after it has, or (``torn``) in its middle."""

    doing: Doing
    name: str
    place: str
    moment: str

    def __str__(self) -> str:
        """Return what the command line takes."""
        return f"{self.doing}/{self.name}:{self.moment}"


_REFRESH = {
    "claim": "daemon.persistence.refreshes:PostgresRefreshes.claim",
    "attempt": "daemon.refresh.attempts:Attempts._run",
    "request": "daemon.refresh.sending:RefreshRequests.refresh",
    "first byte": "daemon.oauth.outbound:_before_first_byte",
    "reading": "daemon.oauth.outbound:_read",
    "keeping": "daemon.persistence.journal:Journal.keep",
    "sealing": "daemon.persistence.journal:seal_reply",
    "group": "daemon.persistence.journal_files:JournalFiles.write",
    "append": "daemon.persistence.segments:Segment.append",
    "sync": "os:fdatasync",
    "parsing": "daemon.oauth.token_endpoint:read_reply",
    "decision": "daemon.refresh.policy:decide",
    "commit": "daemon.refresh.committing:Committing.commit",
    "settlement": "daemon.persistence.settlements:Settlements.settle",
    "note": "daemon.persistence.journal:Journal.settled",
    "memory": "daemon.refresh.cache:TokenCache.put",
    "publication": "daemon.persistence.notifications:Notifier.publish",
    "notification": "daemon.persistence.notifications:Notifier._send",
}
_START = {
    "opening": "daemon.persistence.journal:Journal.open",
    "journal read": "daemon.persistence.journal:read_at_start",
    "new segment": "daemon.persistence.journal_files:JournalFiles._new_segment",
    "recovery": "daemon.refresh.recovery:Recovery.run",
    "claim again": "daemon.refresh.replaying:Replaying._claim",
    "conclusion": "daemon.refresh.attempts:Attempts.conclude",
    "settlement": "daemon.persistence.settlements:Settlements.settle",
    "note": "daemon.persistence.journal:Journal.settled",
    "doubt": "daemon.persistence.refreshes:PostgresRefreshes.abandoned_by",
}
_CONNECT = {
    "begin": "daemon.persistence.authorizations:PostgresAuthorizations.begin",
    "state": "daemon.persistence.authorizations:PostgresAuthorizations.consume",
    "first byte": "daemon.oauth.outbound:_before_first_byte",
    "reading": "daemon.oauth.outbound:_read",
    "append": "daemon.persistence.segments:Segment.append",
    "parsing": "daemon.oauth.token_endpoint:read_reply",
    "completion": "daemon.persistence.authorizations:PostgresAuthorizations.complete",
    "note": "daemon.persistence.journal:Journal.settled",
}
_DISCONNECT = {
    "end": "daemon.persistence.life:ConnectionLife.disconnect",
    "revocation": "daemon.upkeep.revoking:Revoking._send",
    "revoked": "daemon.persistence.revocations:PostgresRevocations.done",
}
_TORN = Doom(Doing.REFRESH, "append", _REFRESH["append"], "torn")


def dooms() -> list[Doom]:
    """Return every named moment."""
    places = {
        Doing.REFRESH: _REFRESH,
        Doing.START: _START,
        Doing.CONNECT: _CONNECT,
        Doing.DISCONNECT: _DISCONNECT,
    }
    found = [
        Doom(doing, name, place, moment)
        for doing, named in places.items()
        for name, place in named.items()
        for moment in ("before", "after")
    ]
    return [*found, _TORN]


def doom(name: str) -> Doom:
    """Return the moment of a name.

    Raises:
        KeyError: there is none.
    """
    return {str(one): one for one in dooms()}[name]


def function_of(place: str) -> tuple[Any, str, Callable[..., Any]]:
    """Return where a function is (module or class), its name there, and itself.

    Raises:
        AttributeError: the product has moved it; name its new place here.
    """
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, last = path.split(".")
    for name in classes:
        owner = getattr(owner, name)
    return owner, last, getattr(owner, last)


def arrange(moment: Doom, *, nth: int, armed: Path) -> None:
    """Wrap the function so that its ``nth`` call while ``armed`` exists ends this process."""
    owner, name, function = function_of(moment.place)
    calls = count(1)

    def is_it() -> bool:
        return armed.exists() and next(calls) == nth

    if moment.moment == "torn":
        wrapped = _torn(function, is_it)
    elif inspect.iscoroutinefunction(function):
        wrapped = _awaited(function, moment.moment, is_it)
    else:
        wrapped = _called(function, moment.moment, is_it)
    setattr(owner, name, wrapped)


def _awaited(
    function: Callable[..., Any], moment: str, is_it: Callable[[], bool]
) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapped(*arguments: Any, **named: Any) -> Any:
        ends = is_it()
        if ends and moment == "before":
            _end()
        result = await function(*arguments, **named)
        if ends:
            _end()
        return result

    return wrapped


def _called(
    function: Callable[..., Any], moment: str, is_it: Callable[[], bool]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        ends = is_it()
        if ends and moment == "before":
            _end()
        result = function(*arguments, **named)
        if ends:
            _end()
        return result

    return wrapped


def _torn(append: Callable[..., Any], is_it: Callable[[], bool]) -> Callable[..., Any]:
    """Write half of what was to be appended, then end."""

    @functools.wraps(append)
    def wrapped(segment: Any, content: bytes) -> Any:
        if not is_it():
            return append(segment, content)
        append(segment, content[: len(content) // 2])
        return _end()

    return wrapped


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Arrange the end, then be the daemon."""
    name, nth, armed, *arguments = sys.argv[1:]
    arrange(doom(name), nth=int(nth), armed=Path(armed))
    daemon_main(arguments)


if __name__ == "__main__":
    main()
