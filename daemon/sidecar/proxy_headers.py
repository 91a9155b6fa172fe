"""Which headers pass the proxy, in either direction (RFC 9110 7.6.1). Pure.

Ours are added after everything else was dropped, so no caller's header can take their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aiohttp import hdrs
from multidict import CIMultiDict, CIMultiDictProxy

from daemon.domain.errors import Problem
from daemon.oauth.token_request import USER_AGENT

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    }
)
# The caller's own credential and state, what names it or claims to speak for others, and framing,
# which is made anew.
_NOT_SENT = _HOP_BY_HOP | {
    "authorization",
    "cookie",
    "cookie2",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "via",
    "x-forwarded",
    "x-real-ip",
}
_NOT_SENT_PREFIXES = ("proxy-", "x-forwarded-", "tokenward-", "sec-fetch-")
# State for a browser, and rules for an origin: this one is ours, not the API's.
_NOT_RETURNED = _HOP_BY_HOP | {
    "alt-svc",
    "clear-site-data",
    "content-length",
    "expect-ct",
    "nel",
    "origin-agent-cluster",
    "public-key-pins",
    "report-to",
    "reporting-endpoints",
    "service-worker-allowed",
    "set-cookie",
    "set-cookie2",
    "strict-transport-security",
}
_NOT_RETURNED_PREFIXES = ("proxy-", "access-control-", "tokenward-")


def sent_headers(headers: CIMultiDictProxy[str], added: Mapping[str, str]) -> CIMultiDict[str]:
    """Return what goes to the API: the caller's headers that pass, then ours in their place.

    Raises:
        Problem: 400 where a value is not UTF-8.
    """
    passed = _passed(headers, _NOT_SENT, _NOT_SENT_PREFIXES)
    for name, value in added.items():
        passed[name] = value
    # aiohttp would ask for gzip, which a caller that does not may be unable to read.
    passed.setdefault(hdrs.ACCEPT_ENCODING, "identity")
    # GitHub refuses requests without one.
    passed.setdefault(hdrs.USER_AGENT, USER_AGENT)
    return passed


def returned_headers(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return what the caller gets of an API's headers."""
    return _passed(headers, _NOT_RETURNED, _NOT_RETURNED_PREFIXES)


def check_headers(headers: CIMultiDictProxy[str]) -> None:
    """Return where every value can be sent on as it came.

    Raises:
        Problem: 400 ``bad_request``.
    """
    for value in headers.values():
        # In C for all but the rarest.
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise Problem(
                400, "bad_request", "A header's value is not UTF-8. Encode it, or remove it."
            )


def wants_upgrade(headers: CIMultiDictProxy[str]) -> bool:
    """Tell whether another protocol is asked for, such as WebSocket (RFC 9110 7.8)."""
    return hdrs.UPGRADE in headers and "upgrade" in _options(headers)


def _passed(
    headers: CIMultiDictProxy[str], dropped: frozenset[str], prefixes: tuple[str, ...]
) -> CIMultiDict[str]:
    if hdrs.CONNECTION in headers:
        dropped = dropped.union(_options(headers))
    passed: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        lower = name.lower()
        if lower not in dropped and not lower.startswith(prefixes):
            passed.add(name, value)
    return passed


def _options(headers: CIMultiDictProxy[str]) -> Iterable[str]:
    """Return the names in ``Connection``: headers that are for the next hop only."""
    values = ",".join(headers.getall(hdrs.CONNECTION, ()))
    return {option.strip().lower() for option in values.split(",")}
