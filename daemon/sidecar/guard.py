"""What a request must look like before anybody asks who sent it (contract 4, RFC 9110 7.2).

Keeps browsers out: a page of a foreign site can make its visitor's browser send requests here,
by a form, a fetch, or a name of its own that resolves to 127.0.0.1 (DNS rebinding). Such requests
carry a foreign ``Host``, an ``Origin``, or a ``Sec-Fetch-Site`` that says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import AddressValueError, IPv4Address
from urllib.parse import unquote_to_bytes

from aiohttp import hdrs

from daemon.domain.connection import CONNECTION_ID
from daemon.domain.errors import Problem
from daemon.sidecar.access import unknown_connection

_HOST_SYNTAX = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/\s]+)(?::[0-9]{1,5})?", re.ASCII)
_LOOPBACK_NAMES = frozenset({"localhost", "[::1]"})
# Accepted values of Host that are remembered: more than any honest set of callers sends.
_REMEMBERED = 64


class Guard:
    """Decides by a request's target and headers alone; a pure function with a small memory.

    ``hosts`` are names accepted beside the loopback ones. Any port is accepted with a good name:
    behind rebinding stands a foreign *name*, whatever the port, while an honest caller may come
    through a forwarded port.
    """

    __slots__ = ("_known_hosts", "_names")

    def __init__(self, *, hosts: Iterable[str] = ()) -> None:
        self._names = frozenset(name.lower() for name in hosts) | _LOOPBACK_NAMES
        self._known_hosts: set[str] = set()

    def check(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        *,
        unix_socket: bool = False,
        is_page: bool = False,
    ) -> None:
        """Return where the request may go on to be authenticated.

        ``target`` is the request target as sent (RFC 9112 3.2), still encoded; ``headers`` must
        look names up without regard to case. Over a Unix socket, which no browser reaches by a
        name, ``Host`` is not judged. ``is_page`` says that an operator page is asked for, whose
        forms send its own origin; to every other route no page may send anything.

        Raises:
            Problem: 400 ``bad_request``, 403 ``cross_origin``, 421 ``misdirected_request``.
        """
        if not target.startswith("/") or not target.isascii() or "%00" in target:
            raise _bad_target()
        if not unix_socket:
            host = headers.get(hdrs.HOST)
            if host not in self._known_hosts:
                self._judge_host(host)
        origin = headers.get(hdrs.ORIGIN)
        if origin is not None and not (is_page and origin == f"http://{headers.get(hdrs.HOST)}"):
            raise _cross_origin()
        site = headers.get("Sec-Fetch-Site")
        if site is not None and site not in ("none", "same-origin"):
            raise _cross_origin()
        if method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in headers:
            raise _cross_origin()

    def _judge_host(self, host: str | None) -> None:
        if host is None or not is_accepted_host(host, self._names):
            raise _misdirected()
        if len(self._known_hosts) < _REMEMBERED:
            self._known_hosts.add(host)


def is_accepted_host(host: str, names: frozenset[str] = _LOOPBACK_NAMES) -> bool:
    """Tell whether a ``Host`` value is one of ``names`` or a loopback address, with any port.

    Only literal loopback addresses in their one canonical form count: no name that merely
    resolves to one, no trailing dot, no ``127.1``.
    """
    match = _HOST_SYNTAX.fullmatch(host)
    if match is None:
        return False
    name = match[1].lower()
    if name in names:
        return True
    try:
        return IPv4Address(name).is_loopback
    except AddressValueError:
        return False


def connection_id_from(segment: str) -> str:
    """Return the connection id in one raw path segment, as sent: percent-decoded once, strictly.

    Raises:
        Problem: 404 ``unknown_connection`` for everything that is no id, so that a slash, a dot
            segment or a look-alike letter is answered like an id that nobody has.
    """
    if CONNECTION_ID.fullmatch(segment) is not None:
        return segment
    if "%" in segment and segment.isascii():
        # Broken escapes stay as they are and then fail the pattern, which has no per cent sign.
        decoded = unquote_to_bytes(segment).decode("ascii", "replace")
        if CONNECTION_ID.fullmatch(decoded) is not None:
            return decoded
    raise unknown_connection("")


def _bad_target() -> Problem:
    return Problem(
        400,
        "bad_request",
        "The request target must be a path that begins with '/', in ASCII and without '%00'. "
        "Ask this server directly, not as a proxy.",
    )


def _misdirected() -> Problem:
    return Problem(
        421,
        "misdirected_request",
        "The Host header does not name this server. "
        "Use 127.0.0.1, localhost or [::1] as the host of the URL.",
    )


def _cross_origin() -> Problem:
    return Problem(
        403,
        "cross_origin",
        "The headers say that a web page of another origin sent this, which is never answered. "
        "Call from a program on this machine, without the headers Origin and Sec-Fetch-Site.",
    )
