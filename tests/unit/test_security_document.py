"""The threat model says for each claim what shows it, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
# From the first attacker to what remains.
_MODEL = DOCUMENT.partition("## (a)")[2].partition("## What remains")[0]
_ROW = re.compile(r"^\| (?!can or cannot|-)(.+) \|$", re.MULTILINE)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(tests/[\w/]+\.py)`", DOCUMENT))))
def test_what_shows_a_claim_exists(name: str) -> None:
    """A test that moves takes its mention along."""
    assert (ROOT / name).is_file()


@pytest.mark.parametrize("row", _ROW.findall(_MODEL), ids=lambda row: row[:40])
def test_every_claim_says_what_shows_it(row: str) -> None:
    """A test, that there is none, or that it is so by design."""
    shown = row.rsplit("|", 1)[-1]
    assert re.search(r"`tests/[\w/]+\.py`|\*not tested\*|by design", shown)


@pytest.mark.parametrize("attacker", "abcdefghi")
def test_every_attacker_is_looked_at(attacker: str) -> None:
    """Each has a section with claims."""
    section = DOCUMENT.partition(f"## ({attacker})")[2].partition("\n## ")[0]
    assert _ROW.search(section)


def test_reports_have_a_way() -> None:
    """SECURITY.md names the private way, and no address that nobody reads."""
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "private vulnerability reporting" in policy
    assert "@" not in policy
