"""Which addresses a request that carries a token may reach, judged at the connect itself.

The one hard idea: a name is checked nowhere, because it can resolve to something else the next
time. The address that is about to be connected to is, and so is an IPv4 address inside an IPv6
one, which some gateway on the way unwraps.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any

Address = IPv4Address | IPv6Address
AddressInfo = tuple[int, int, int, str, Any]
SocketFactory = Callable[[AddressInfo], socket.socket]

# Never, whatever the provider says: no API lives there, and some clouds give out the machine's
# own credentials at these.
_NEVER: tuple[IPv4Network | IPv6Network, ...] = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this host (RFC 791 3.2): Linux connects to itself
            "169.254.0.0/16",  # link-local; 169.254.169.254 is most clouds' metadata service
            "224.0.0.0/4",  # multicast
            "255.255.255.255/32",  # broadcast
            "100.100.100.200/32",  # Alibaba Cloud's metadata service
            "168.63.129.16/32",  # Azure's, although a global address
            "192.0.0.192/32",  # Oracle Cloud's
            "::/128",
            "::ffff:0:0:0/96",  # SIIT, obsolete (RFC 2765): embeds an IPv4 address
            "64:ff9b:1::/48",  # local NAT64 (RFC 8215): whatever its operator decided
            "fe80::/10",  # link-local
            "fec0::/10",  # site-local, deprecated (RFC 3879)
            "ff00::/8",  # multicast
            "fd00:ec2::254/128",  # Amazon's metadata service
            "fd20:ce::254/128",  # Google's
        ),
    )
)
# Not global unicast (the IANA special-purpose registry, RFC 6890): only for providers that say
# ``allow_private_hosts``. Python's own ``is_global`` differs between its versions.
_NOT_GLOBAL: tuple[IPv4Network | IPv6Network, ...] = tuple(
    map(
        ip_network,
        (
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared (RFC 6598)
            "127.0.0.0/8",
            "172.16.0.0/12",
            "192.0.0.0/24",  # IETF protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays, deprecated (RFC 7526)
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarking
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "240.0.0.0/4",  # reserved
            "2001::/23",  # IETF protocol assignments: Teredo, ORCHID, benchmarking
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, deprecated
            "3fff::/20",  # documentation
        ),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_LOOPBACK = IPv6Address("::1")
_COMPATIBLE = IPv6Network("::/96")
_NAT64 = IPv6Network("64:ff9b::/96")


class AddressRefusedError(OSError):
    """The address of a connect is none that this request may reach. Nothing was sent.

    An ``OSError``, so that other addresses of the same name are tried. The text has no address:
    aiohttp merges equal errors of several addresses into one, and keeps its type.
    """

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "the address is not one that may be connected to")


def is_refused(address: Address, *, allow_private: bool) -> bool:
    """Tell whether a connect to ``address`` is refused. Pure.

    Without ``allow_private`` only global unicast addresses are reached. With it all but link-local,
    multicast, unspecified, deprecated and metadata addresses are. An address that embeds an IPv4
    address (mapped, NAT64, 6to4, Teredo) is refused where that one is.
    """
    if _is_in(address, _NEVER):
        return True
    if isinstance(address, IPv4Address):
        return not allow_private and _is_in(address, _NOT_GLOBAL)
    if address == _LOOPBACK:
        return not allow_private
    if (
        address.scope_id is not None
        or address in _COMPATIBLE
        or any(is_refused(each, allow_private=allow_private) for each in _embedded(address))
    ):
        return True
    return not (allow_private or _is_global(address))


def guarded_sockets(*, allow_private: bool) -> SocketFactory:
    """Return a ``TCPConnector(socket_factory=…)``, which is asked for each address of each connect.

    Raises (when called):
        AddressRefusedError: the address may not be reached. No socket is made.
    """

    def new_socket(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, place = info
        try:
            address = ip_address(place[0])
        except ValueError:
            raise AddressRefusedError from None
        # The scope of a link-local address stands in a member of its own.
        has_scope = family == socket.AF_INET6 and len(place) > 3 and place[3] != 0  # noqa: PLR2004 - (address, port, flow, scope)
        if has_scope or is_refused(address, allow_private=allow_private):
            raise AddressRefusedError
        return socket.socket(family=family, type=kind, proto=protocol)

    return new_socket


def _is_in(address: Address, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for network in networks)


def _is_global(address: IPv6Address) -> bool:
    """Tell whether ``address`` is global unicast, where what it embeds is."""
    if address.ipv4_mapped is not None or address in _NAT64:
        return True
    return address in _GLOBAL_UNICAST and not _is_in(address, _NOT_GLOBAL)


def _embedded(address: IPv6Address) -> list[IPv4Address]:
    """Return the IPv4 addresses that a gateway could read out of ``address``."""
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return list(address.teredo)
    if address in _NAT64:
        return [IPv4Address(address.packed[12:])]
    return []
