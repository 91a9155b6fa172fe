"""Which key encrypts, given what everybody has."""

from __future__ import annotations

import pytest

from daemon.domain.errors import KeyringError
from daemon.persistence.agreement import ReplicaKeys, encrypting
from tests.support.clock import START


def replica(keys: str | None, *, is_live: bool = True) -> ReplicaKeys:
    """Return another replica, whose keys are letters."""
    return ReplicaKeys(
        owner=f"with-{keys}",
        seen_at=START,
        is_live=is_live,
        key_ids=None if keys is None else tuple(keys),
    )


@pytest.mark.parametrize(
    ("own", "in_use", "others", "chosen"),
    [
        # An empty database, or a fleet of one.
        ("A", "", (), "A"),
        ("BA", "A", (), "B"),
        # The new one waits for the last of the others; the one before goes on.
        ("BA", "A", (replica("A"),), "A"),
        ("BA", "A", (replica("BA"), replica("A")), "A"),
        ("BA", "A", (replica("BA"), replica("AB")), "B"),
        ("CBA", "A", (replica("BA"),), "B"),
        # A version that does not say what it has, has what is in use.
        ("BA", "A", (replica(None),), "A"),
        # What is in use everybody has, or would not have started.
        ("BA", "AB", (replica("A"),), "B"),
        ("AB", "AB", (), "A"),
        # Who is gone does not count.
        ("BA", "A", (replica("A", is_live=False),), "B"),
    ],
)
def test_the_first_key_that_all_have(
    own: str, in_use: str, others: tuple[ReplicaKeys, ...], chosen: str
) -> None:
    """The first of the configuration encrypts as soon as every live replica can decrypt with it."""
    assert encrypting(tuple(own), in_use=set(in_use), others=others) == chosen


def test_no_common_key_is_an_error() -> None:
    """Of replicas that have no key in common none may write."""
    with pytest.raises(KeyringError, match="with-B"):
        encrypting(("A",), in_use=(), others=[replica("B")])
