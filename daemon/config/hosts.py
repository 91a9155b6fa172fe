"""Hosts where a provider's token may go: how an entry of ``allowed_hosts`` is written."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

from daemon.config.values import InvalidValueError, text
from daemon.domain.allowed_hosts import HostNotAllowedError, read_target

_ENTRY = re.compile(r"(?P<any>\*\.)?(?P<host>\[[^\[\]]*\]|[^:*\[\]]+)(?::(?P<port>[0-9]+))?")
_WORDS = (
    "must be a host such as api.example.com, with :PORT where that is not 443, or *.example.com "
    "for all hosts below one; an IPv6 address stands in brackets"
)


def allowed_host(value: object) -> str:
    """Return an entry in its one form: lower case, addresses at their shortest, no ``:443``.

    What is accepted is what :func:`daemon.domain.allowed_hosts.is_allowed` can match.
    """
    entry = text(value)
    if not entry.isascii():
        raise InvalidValueError("must be ASCII; write the name in its xn-- form")
    if entry.strip("*") in {"", "."}:
        raise InvalidValueError("would allow every host; name those that are meant")
    if "/" in entry:
        raise InvalidValueError("must be a host alone, without https:// and without a path")
    if "@" in entry:
        raise InvalidValueError("must not contain a user name or password before the host")
    match = _ENTRY.fullmatch(entry)
    host = "" if match is None else _host(match["host"])
    if match is None or not host:
        raise InvalidValueError(_WORDS)
    if match["any"] and ("." not in host or _address(host)):
        raise InvalidValueError(
            "must have a domain of at least two parts after *., such as *.example.com"
        )
    return (match["any"] or "") + host + _port(match["port"])


def is_private_host(host: str) -> bool:
    """Tell whether ``host`` (IPv6 in brackets) is one that only this machine or network has.

    Names are not resolved: that is done for each request.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return (address := _address(host)) is not None and not ip_address(address).is_global


def host_of(entry: str) -> str:
    """Return the host of an entry, without its port."""
    head, _, tail = entry.rpartition(":")
    return head if head and tail.isdigit() and not head.endswith(":") else entry


def _host(text: str) -> str:
    """Return ``text`` as a host that every reader reads alike; empty where it is none."""
    host = text.lower()
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1])}]"
        except ValueError:
            return ""
    try:
        return read_target(f"https://{host}/").host
    except HostNotAllowedError:
        return ""


def _address(host: str) -> str | None:
    try:
        return str(ip_address(host.strip("[]")))
    except ValueError:
        return None


def _port(digits: str | None) -> str:
    if digits is None:
        return ""
    port = int(digits) if len(digits) <= 5 else 0  # noqa: PLR2004 - digits of the highest port
    if not 0 < port <= 65535:  # noqa: PLR2004 - the highest port
        raise InvalidValueError("must have a port from 1 to 65535, or none")
    return "" if port == 443 else f":{port}"  # noqa: PLR2004 - the port of https
