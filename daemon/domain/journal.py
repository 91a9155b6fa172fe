"""A token reply as the journal keeps it: raw, with what is needed to store its tokens later."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from daemon.domain.reply import RawReply


class Purpose(StrEnum):
    """What the request was for."""

    REFRESH = "refresh"
    EXCHANGE = "exchange"


@dataclass(frozen=True, slots=True, kw_only=True)
class JournaledReply:
    """One reply. ``generation`` is that of the refresh token sent, 0 for a code.

    ``scopes`` are those requested; ``sent_at`` is when the request left.
    """

    attempt: str
    purpose: Purpose
    connection_id: str
    provider: str
    generation: int
    scopes: tuple[str, ...]
    sent_at: datetime
    reply: RawReply
