"""A token reply as the journal keeps it: raw, with what is needed to store its tokens later."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from daemon.domain.reply import RawReply


class Purpose(StrEnum):
    """What the request was for."""

    REFRESH = "refresh"
    EXCHANGE = "exchange"


@dataclass(frozen=True, slots=True, kw_only=True)
class JournaledReply:
    """One reply.

    ``generation`` is the connection's when the request was sent: only on top of it may the reply
    be stored. ``scopes`` are those requested; ``sent_at`` is when the request left. ``epoch`` is
    the connection's then: a disconnect since then wins. ``fields`` are those that the request was
    made with; an exchange makes them the connection's. ``was_in_doubt`` is the claim's.

    Of an exchange, ``caller`` made the connect URL, and ``callback`` are the redirect's other
    parameters, which may name the account; ``None`` where an earlier version kept it.
    """

    attempt: str
    purpose: Purpose
    connection_id: str
    provider: str
    generation: int
    scopes: tuple[str, ...]
    sent_at: datetime
    reply: RawReply
    epoch: int = 0
    fields: Mapping[str, str] = field(default_factory=dict)
    was_in_doubt: bool = False
    caller: str = ""
    callback: Mapping[str, str] | None = field(default=None, repr=False)


class ReplyJournal(Protocol):
    """Where replies are safe before they are parsed."""

    def reserved(self) -> AbstractAsyncContextManager[None]:
        """Hold room for one reply. Entering raises JournalError: then nothing may be sent."""

    async def keep(self, entry: JournaledReply) -> bool:
        """Return once the reply is on the disk; ``False`` where the disk refused it."""

    async def settled(self, attempt: str, *, stored: bool = True) -> None:
        """Note that the database has what ``keep`` was given. Never raises.

        Not ``stored``: nothing of it became the connection's, and it must never be stored later.
        """


class JournalHistory(Protocol):
    """What the journal still has, settled or not: a database may forget what it was given."""

    def replies(self) -> AsyncIterator[JournaledReply]:
        """Return the replies of a day or more, newest first, without those not to be stored."""

    def is_settled(self, attempt: str) -> bool:
        """Tell whether ``settled`` was called for an attempt, here or before a restart."""
