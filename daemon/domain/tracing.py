"""Spans: how long the steps of one thing took, for whoever has a trace of it. A port.

The one hard idea: what is not asked for costs nothing. Code says what it does to a ``Tracer``, and
the one that is there by default does nothing with it; a plain token read does not even say it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from enum import Enum, auto
from typing import Final, Protocol
from urllib.parse import urlsplit

Attribute = str | int | bool
NO_ATTRIBUTES: Final[Mapping[str, Attribute]] = {}


# RFC 9110 and RFC 5789. Others would be names that callers choose.
_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)


def method_of(text: str) -> str:
    """Return a method as spans have it: ``_OTHER`` for what is not registered."""
    return text if text in _METHODS else "_OTHER"


def host_of(url: str) -> str:
    """Return a URL's host, for ``server.address``; empty where there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class SpanKind(Enum):
    """What a span is about, as OpenTelemetry has it."""

    INTERNAL = auto()
    SERVER = auto()
    """A request that came to us."""
    CLIENT = auto()
    """A request that we sent."""


class Span(Protocol):
    """One step that is going on."""

    def set(self, name: str, value: Attribute) -> None:
        """Add an attribute. Never a secret, a query string, or the value of a field."""

    def fail(self, kind: str) -> None:
        """Say that it did not work; ``kind`` is one word of a closed set, never a text."""


class Tracer(Protocol):
    """Where steps are told. Never blocks, never raises."""

    def span(
        self,
        name: str,
        attributes: Mapping[str, Attribute] = NO_ATTRIBUTES,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        began_ago: float = 0.0,
        withheld: Iterable[str] = (),
    ) -> AbstractContextManager[Span]:
        """Return a step below the one that is going on; it ends with the ``with`` block.

        ``began_ago`` in seconds: it began before. ``withheld`` are values of the connection's that
        may be part of a host; here and below no host that holds one is told. An exception that
        leaves the block is told by its type only.
        """

    def incoming(self, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        """Let steps inside the block be below the caller's (W3C ``traceparent``)."""

    def outgoing(self, headers: MutableMapping[str, str]) -> None:
        """Put the step that is going on into the headers of a request, for who receives it."""


class _Nothing:
    """A span that nobody sees."""

    def set(self, name: str, value: Attribute) -> None:
        """Do nothing."""

    def fail(self, kind: str) -> None:
        """Do nothing."""


_NOTHING: Final = nullcontext(_Nothing())
_NOWHERE: Final = nullcontext(None)


class NoTracer:
    """The tracer that is there where tracing is off."""

    def span(
        self,
        name: str,
        attributes: Mapping[str, Attribute] = NO_ATTRIBUTES,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        began_ago: float = 0.0,
        withheld: Iterable[str] = (),
    ) -> AbstractContextManager[Span]:
        """Return what does nothing."""
        del name, attributes, kind, began_ago, withheld
        return _NOTHING

    def incoming(self, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        """Return what does nothing."""
        del headers
        return _NOWHERE

    def outgoing(self, headers: MutableMapping[str, str]) -> None:
        """Leave the headers as they are: a caller's own ``traceparent`` passes the proxy."""


NO_TRACER: Final[Tracer] = NoTracer()
