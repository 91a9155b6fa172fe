"""What the proxy answers where it does not send, or gets no answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from aiohttp import hdrs, web

from daemon.domain.allowed_hosts import Target
from daemon.domain.errors import Problem
from daemon.domain.reply import Fault
from daemon.oauth.outbound import fault_of
from daemon.sidecar.proxy_body import CallerError
from daemon.sidecar.proxy_headers import wants_upgrade
from daemon.sidecar.proxy_target import host_not_allowed

_REFUSED_METHODS = frozenset({hdrs.METH_TRACE, hdrs.METH_CONNECT})
_BROKEN = "{} closed the connection or sent what is no HTTP, before its answer began."
_WORDS: Mapping[Fault, str] = MappingProxyType(
    {
        Fault.NAME: (
            "The host name {} could not be resolved. Check its spelling and this machine's DNS."
        ),
        Fault.CONNECT: "No connection to {} could be made. Check this machine's network.",
        Fault.CERTIFICATE: "The TLS certificate of {} is not valid for it, so nothing was sent.",
        Fault.TLS: "No TLS session with {} could be made (version 1.2 or later is needed).",
    }
)


def refuse_method(request: web.BaseRequest) -> None:
    """Return where a request is one that can be sent on.

    Raises:
        Problem: 405, 417 or 501, which say why not.
    """
    if request.method in _REFUSED_METHODS:
        raise Problem(
            405,
            "method_not_allowed",
            f"{request.method} is not sent on: it is meant for the next server only. Use another "
            "method.",
            headers={hdrs.ALLOW: "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"},
        )
    if wants_upgrade(request.headers):
        raise Problem(
            501,
            "upgrade_not_supported",
            "The proxy speaks HTTP only; WebSocket and other upgrades are not sent on. Get the "
            "token from /token and connect to the API directly.",
        )
    expected = request.headers.get(hdrs.EXPECT)
    if expected is not None and expected.lower() != "100-continue":
        raise Problem(417, "expectation_failed", "The only Expect that is met is 100-continue.")


def trouble(error: BaseException, place: Target, failure: CallerError | None) -> Exception:
    """Return what to raise for a request to ``place`` that has no answer.

    ``failure`` is what went wrong with the caller's body, where that was the cause.
    """
    if failure is not None:
        return failure.problem or ConnectionError("the caller is gone")
    if isinstance(error, TimeoutError):
        return Problem(
            504,
            "upstream_timeout",
            f"{place.authority} did not answer in time. Whether it processed the request is "
            "unknown.",
        )
    fault = fault_of(error, sending=True)
    if fault is Fault.ADDRESS:
        return host_not_allowed(
            f"{place.host} leads only to addresses that may not be reached (private, loopback, "
            "link-local and the like), so nothing was sent. If that is right, set "
            "allow_private_hosts: true for this provider."
        )
    return no_answer(place, fault)


def no_answer(place: Target, fault: Fault = Fault.DISCONNECTED) -> Problem:
    """Return the answer where an API gave none that can be sent on."""
    return Problem(502, "upstream_failed", _WORDS.get(fault, _BROKEN).format(place.authority))
