"""A sink: a file that holds a connection's current access token, and when it is to change.

The one hard idea: nobody knows is no news. While the database cannot be asked a file stays as it
is, unless this process wrote it and knows that its token is past its expiry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from math import inf
from pathlib import Path

# A file that somebody else removed or wrote over is put right within this many seconds; it is
# also how late a machine that was suspended notices an expiry.
LOOK_AGAIN = 10.0
# The first retry is soon, because a volume may just not be mounted yet; the cap is what an
# application waits at most once the disk is well again.
FIRST_RETRY = 0.5
LONGEST_RETRY = 30.0


# Nobody but the daemon's own user, until somebody says who else.
DEFAULT_MODE = 0o600


class SinkFormat(StrEnum):
    """What the file holds."""

    TOKEN = "token"
    """The access token and nothing else, no line break."""
    JSON = "json"
    """The members of the token body that do not age: no ``expires_in``, no ``warning``."""
    HEADER = "header"
    """One line, ``Authorization: Bearer …``."""


class SinkSignal(StrEnum):
    """What may be sent to a process after a change."""

    HUP = "SIGHUP"
    USR1 = "SIGUSR1"
    USR2 = "SIGUSR2"
    TERM = "SIGTERM"


@dataclass(frozen=True, slots=True, kw_only=True)
class PidFileSignal:
    """A signal for the process whose number is in ``pid_file``."""

    pid_file: Path
    signal: SinkSignal = SinkSignal.HUP


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """One file to keep, as configured.

    ``mode`` are permission bits; ``owner`` and ``group`` are numbers, ``None`` leaves what the
    kernel gives. ``command`` is an argument vector that begins with an absolute path.
    """

    connection: str
    path: Path
    format: SinkFormat = SinkFormat.TOKEN
    mode: int = DEFAULT_MODE
    owner: int | None = None
    group: int | None = None
    allow_shared_directory: bool = False
    command: tuple[str, ...] = ()
    signal: PidFileSignal | None = None

    @property
    def tells(self) -> bool:
        """Tell whether anybody is to hear of a change."""
        return bool(self.command) or self.signal is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the file should hold: ``content`` until ``until`` (epoch seconds, may be infinite)."""

    content: bytes = field(repr=False)
    until: float


@dataclass(frozen=True, slots=True)
class Nothing:
    """The connection has no token that may be used: no file."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The database cannot be asked."""


Held = Wanted | Nothing | Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """What is at the path: a file's content and what else makes it right or wrong."""

    content: bytes = field(repr=False)
    mode: int
    owner: int
    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What this process left at the path, and until when that token is good (epoch seconds)."""

    present: Present | None
    until: float


class Action(Enum):
    """What to do with the file."""

    WRITE = auto()
    KEEP = auto()
    REMOVE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now, and after how many seconds to look again if nothing is heard before."""

    action: Action
    look_in: float


def decide(
    sink: Sink, held: Held, present: Present | None, *, now: float, left: Left | None
) -> Decision:
    """Decide what becomes of a sink's file at ``now`` (epoch seconds). Pure."""
    if isinstance(held, Unknown):
        until = inf if left is None else left.until
        action = Action.REMOVE if present is not None and until <= now else Action.KEEP
        return Decision(action=action, look_in=_wait(until, now))
    if isinstance(held, Nothing) or held.until <= now:
        action = Action.KEEP if present is None else Action.REMOVE
        return Decision(action=action, look_in=LOOK_AGAIN)
    is_right = present is not None and present.content == held.content
    if present is not None and is_right:
        # A file system that keeps no modes would otherwise be written to for ever.
        is_right = _fits(sink, present) or (left is not None and present == left.present)
    action = Action.KEEP if is_right else Action.WRITE
    return Decision(action=action, look_in=_wait(held.until, now))


def _fits(sink: Sink, present: Present) -> bool:
    return (
        present.mode == sink.mode
        and sink.owner in {None, present.owner}
        and sink.group in {None, present.group}
    )


def _wait(until: float, now: float) -> float:
    """Return the seconds to the next look: at the expiry, which is never looked past."""
    left = until - now
    return min(left, LOOK_AGAIN) if left > 0 else LOOK_AGAIN
