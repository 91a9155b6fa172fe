"""Names of connections."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.clock import system_entropy
from daemon.domain.connection import ID_LETTERS, is_connection_id, new_connection_id


@pytest.mark.parametrize("text", ["a", "0", "acme-1", "A.b_c:d@e-f", "x" * 128, "con_0aZ"])
def test_names(text: str) -> None:
    """Letters, digits and a few marks may name a connection."""
    assert is_connection_id(text)


@pytest.mark.parametrize(
    "text",
    ["", "-a", ".a", "_a", "x" * 129, "a b", "a/b", "a\n", "\na", "ä", "a%41", "a\0", "\u0661"],
)
def test_no_names(text: str) -> None:
    """Nothing else may: no newline at the end, no digit of another script."""
    assert not is_connection_id(text)


@given(st.text(max_size=3))
def test_id_letters_are_the_letters_of_ids(text: str) -> None:
    """``ID_LETTERS`` and the pattern of ids say the same."""
    assert is_connection_id("a" + text) == all(letter in ID_LETTERS for letter in text)


@given(st.binary(min_size=17, max_size=17))
def test_new_ids_are_ids(octets: bytes) -> None:
    """Whatever chance says, a new id has its promised form."""
    made = new_connection_id(lambda size: octets[:size])
    assert re.fullmatch(r"con_[0-9A-Za-z]{22}", made)
    assert is_connection_id(made)


def test_new_ids_differ() -> None:
    """Two new ids are never the same."""
    assert len({new_connection_id(system_entropy) for _ in range(1000)}) == 1000
