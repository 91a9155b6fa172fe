"""What is said of keys: which are needed by what, and which may go."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from daemon.cli.key_report import (
    Known,
    as_json,
    changing,
    counted,
    lacking,
    not_first,
    removable,
    report,
)
from daemon.persistence.agreement import ReplicaKeys
from tests.support.clock import START

DONE = Known(at_hand=("B", "A"), stored=("A", "B"), in_use=frozenset("B"))


def replica(
    keys: str | None = "BA",
    *,
    encrypts: str = "B",
    journal: str = "B",
    is_live: bool = True,
    ago: timedelta = timedelta(seconds=1),
) -> ReplicaKeys:
    """Return a replica whose keys are letters."""
    return ReplicaKeys(
        owner="other",
        seen_at=START - ago,
        is_live=is_live,
        key_ids=None if keys is None else tuple(keys),
        encrypts=tuple(encrypts),
        journal_keys=tuple(journal),
    )


def needs(known: Known, key_id: str = "A") -> tuple[str, ...]:
    """Return why a key may not be removed."""
    return next(key.needed for key in report(known, now=START) if key.id == key_id)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, None),
        ({"replicas": [replica()]}, None),
        ({"ciphertexts": {"A": {"orphans": 2, "token_sets": 1}}}, "3 ciphertexts"),
        ({"in_use": frozenset("AB")}, "counts as in use"),
        ({"journal": {"A": 4}}, "4 replies in the journal of this"),
        ({"replicas": [replica(None)]}, "upgrade it"),
        ({"replicas": [replica("AB")]}, "first key of replica other"),
        ({"replicas": [replica(encrypts="AB")]}, "still encrypts"),
        ({"replicas": [replica(journal="AB")]}, "journal of replica other"),
        ({"replicas": [replica(journal="A", is_live=False)]}, "start it again"),
        (
            {"replicas": [replica("AB", journal="A", is_live=False, ago=timedelta(hours=25))]},
            None,
        ),
        # The live replica's journal is this one: told once.
        ({"replicas": [replica(journal="A")], "journal": {"A": 1}}, "journal of replica other"),
    ],
)
def test_what_needs_an_old_key(more: dict[str, Any], why: str | None) -> None:
    """Each thing that needs a key is named; where there is none, the key may go."""
    found = needs(replace(DONE, **more))
    assert len(found) == (why is not None)
    assert why is None or why in found[0]


def test_every_key_is_reported_once() -> None:
    """Configured, stored and needed keys are there, the encrypting one first, each with a word."""
    known = Known(
        at_hand=("B", "N"),
        stored=("A", "O", "B"),
        in_use=frozenset("AB"),
        ciphertexts={"A": {"token_sets": 7}, "B": {"token_sets": 1, "revocations": 2}},
    )
    keys = report(known, now=START)
    assert [(key.id, key.encrypts, removable(key)) for key in keys] == [
        ("B", True, "no"),
        ("N", False, "yes"),
        ("A", False, "missing"),
        ("O", False, "gone"),
    ]
    assert [key.is_missing for key in keys] == [False, False, True, False]
    assert counted(keys[0].ciphertexts) == "revocations 2, token_sets 1"
    assert counted({}) == "none"
    listed = as_json(keys, [replica(), replica(None)])
    assert [key["known"] for key in listed["keys"]] == [True, False, True, True]
    assert listed["replicas"][1]["keys"] is None


def test_who_is_not_ready_for_a_rotation() -> None:
    """Replicas without the key, with another one first, or still writing with another are named."""
    ready, late, old = replica(), replica("AB", encrypts="A"), replica("A", encrypts="A")
    dead = replica("A", is_live=False)
    assert lacking([ready, late, old, dead, replica(None)], "B") == [old, replica(None)]
    assert not_first([ready, late, old, dead], "B") == [late, old]
    assert list(changing([ready, late, dead, replica(encrypts="BA")], "B")) == ["other", "other"]
