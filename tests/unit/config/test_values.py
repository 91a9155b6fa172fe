"""Single values that are accepted, and what becomes of them."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.config.settings import Address
from daemon.config.values import (
    InvalidValueError,
    address,
    duration,
    is_host_name,
    is_loopback,
    rate,
    text,
)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("2h", 7200),
        ("0.5s", 0.5),
        ("30", 30),
        (30, 30),
        (0, 0),
        (1.5, 1.5),
    ],
)
def test_duration(value: object, seconds: float) -> None:
    """A duration is a number with a unit, or a number of seconds."""
    assert duration(value) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "value", [True, None, [], {}, math.nan, math.inf, -1, 10**30, "", "s", "1w"]
)
def test_no_duration(value: object) -> None:
    """What is no duration is refused, numbers beyond reason included."""
    with pytest.raises(InvalidValueError):
        duration(value)


@pytest.mark.parametrize(
    ("value", "per_second"), [("10/s", 10), ("600/m", 10), ("1800/h", 0.5), ("0.5/s", 0.5)]
)
def test_rate(value: str, per_second: float) -> None:
    """A rate is counted in events a second."""
    assert rate(value) == pytest.approx(per_second)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("127.0.0.1:7420", Address("127.0.0.1", 7420)),
        ("[::1]:7420", Address("::1", 7420)),
        ("localhost:0", Address("localhost", 0)),
        ("0.0.0.0:1", Address("0.0.0.0", 1)),  # noqa: S104 - only parsed
        ("tokens.svc.cluster.local:65535", Address("tokens.svc.cluster.local", 65535)),
    ],
)
def test_address(value: str, expected: Address) -> None:
    """An address is read, and printed as it was written."""
    assert address(value) == expected
    assert str(expected) == value


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("0.0.0.0", False),  # noqa: S104 - only compared
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:  # noqa: FBT001 - a table's column
    """Only what can be nothing but this machine is a loopback host."""
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("host", "valid"),
    [
        ("a", True),
        ("a-b.example", True),
        ("_srv.example", True),
        ("1.example", True),
        ("127.1", False),
        ("0x7f000001", False),
        ("2130706433", False),
        ("-a.example", False),
        ("a..b", False),
        ("a" * 64, False),
        ("", False),
    ],
)
def test_host_name(host: str, valid: bool) -> None:  # noqa: FBT001 - a table's column
    """A name is a DNS name, never an address in disguise."""
    assert is_host_name(host) is valid


@given(
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text())
)
def test_readers_are_total(value: object) -> None:
    """Any value is read or refused; no other error comes out."""
    for reader in (text, duration, rate, address):
        try:
            reader(value)
        except InvalidValueError as error:
            assert str(error)  # noqa: PT017 - either end is right
