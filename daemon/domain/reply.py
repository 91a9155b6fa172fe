"""What came back from a stranger: a whole HTTP reply, or none and what is known about the request.

Values, because the journal stores them and a pure parser reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Fault(StrEnum):
    """Why a request has no whole reply."""

    URL = "url"
    """The URL cannot be used."""
    NAME = "name"
    """The host name could not be resolved."""
    CONNECT = "connect"
    """Refused, no route, or no connection within the connect timeout."""
    ADDRESS = "address"
    """The name resolves only to addresses that this request may not reach."""
    CERTIFICATE = "certificate"
    """The server's certificate is not valid for this host."""
    TLS = "tls"
    """The TLS handshake failed for another reason."""
    LATE = "late"
    """Connected, but ``may_send`` said that the time to send has passed."""
    TIMEOUT = "timeout"
    """The hard timeout passed before the last byte."""
    DISCONNECTED = "disconnected"
    """The connection broke before the last byte."""
    OVERSIZE = "oversize"
    """More body than the cap."""
    MALFORMED = "malformed"
    """Not HTTP, more or longer headers than allowed, or a content coding that cannot be undone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawReply:
    """A whole reply. ``headers`` has lower-case names; values of a repeated one joined by ``, ``.

    ``body`` is without content coding. Both may hold tokens and cookies.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoReply:
    """No whole reply came. ``sent`` is false only where provably no byte of the request left."""

    sent: bool
    fault: Fault
