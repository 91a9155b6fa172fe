"""Which addresses may be connected to; the corpus has most of the rows."""

from __future__ import annotations

import json
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.oauth.addresses import AddressRefusedError, guarded_sockets, is_refused

_ROWS = json.loads(
    (Path(__file__).parents[2] / "corpora" / "proxy_targets.json").read_text(encoding="utf-8")
)
REFUSED = [row["input"] for row in _ROWS if row["kind"] == "address"]
ALWAYS = [
    row["input"] for row in _ROWS if row["kind"] == "address_private" and "status" in row["expect"]
]


@pytest.mark.parametrize("text", REFUSED)
def test_special_addresses(text: str) -> None:
    """What is not global unicast is refused."""
    assert is_refused(ip_address(text), allow_private=False)


@pytest.mark.parametrize("text", ALWAYS)
def test_what_no_provider_may_reach(text: str) -> None:
    """Link-local, metadata, multicast and the like are refused whatever the provider says."""
    assert is_refused(ip_address(text), allow_private=True)
    assert is_refused(ip_address(text), allow_private=False)


@pytest.mark.parametrize(
    "text",
    [
        *("10.0.0.1", "127.0.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd12::1"),
        *("::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::1"),
    ],
)
def test_private_addresses_where_allowed(text: str) -> None:
    """``allow_private_hosts`` opens private and loopback networks."""
    assert not is_refused(ip_address(text), allow_private=True)


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
)
def test_global_addresses(text: str) -> None:
    """Global unicast is reached, through NAT64 too."""
    assert not is_refused(ip_address(text), allow_private=False)


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_embedded_addresses_are_judged_as_themselves(number: int, allow_private: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    """No way of writing an IPv4 address inside an IPv6 one gets around its refusal."""
    plain = IPv4Address(number)
    if is_refused(plain, allow_private=allow_private):
        for prefix in ("::ffff:0:0", "64:ff9b::", "::"):
            inside = IPv6Address(int(IPv6Address(prefix)) + number)
            if inside != IPv6Address("::1"):
                assert is_refused(inside, allow_private=allow_private)
        sixtofour = IPv6Address((0x2002 << 112) | (number << 80) | 1)
        assert is_refused(sixtofour, allow_private=allow_private)


@given(st.integers(0, 2**128 - 1))
def test_allowing_private_hosts_only_ever_opens(number: int) -> None:
    """What may be reached without it may be reached with it."""
    address = IPv6Address(number)
    if not is_refused(address, allow_private=False):
        assert not is_refused(address, allow_private=True)


@pytest.mark.parametrize(
    "place",
    [("127.0.0.1", 80), ("fe80::1", 80, 0, 3), ("fd00::1", 80, 0, 3), ("localhost", 80)],
)
def test_no_socket_is_made_for_a_refused_address(place: tuple[object, ...]) -> None:
    """Names, scopes and refused addresses raise before a socket exists."""
    family = socket.AF_INET6 if len(place) > 2 else socket.AF_INET
    with pytest.raises(AddressRefusedError):
        guarded_sockets(allow_private=False)((family, socket.SOCK_STREAM, 6, "", place))


def test_a_socket_of_the_right_kind() -> None:
    """A good address gets a socket of its family."""
    info = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2606:4700::1", 443, 0, 0))
    with guarded_sockets(allow_private=False)(info) as made:
        assert (made.family, made.type) == (socket.AF_INET6, socket.SOCK_STREAM)
