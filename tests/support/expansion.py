"""The rule for migrations within one major: they only add (docs/upgrading.md).

``breaches`` judges one file; ``future`` makes one that adds to every table what a later version
might.
"""

from __future__ import annotations

import re

from daemon.persistence.migrations import Migration, parse
from daemon.persistence.statements import statements

# Applied before the first release, on tables that nobody had filled: their plain indexes stay.
FROZEN = frozenset({2})

_SAFE = ("CREATE TABLE ", "INSERT INTO ", "UPDATE ")
_INDEX = re.compile(r"CREATE (UNIQUE )?INDEX (CONCURRENTLY )?(?:IF NOT EXISTS )?(\w+) ON (\w+)")
_ADDED = re.compile(r"ADD (?:COLUMN )?(?:IF NOT EXISTS )?(?!CONSTRAINT\b|CHECK\b|UNIQUE\b)\w+ ")


def breaches(migration: Migration) -> list[str]:
    """Return why the version before cannot go on beside a migration; empty: it can."""
    texts = [" ".join(statement.split()) for statement in statements(migration.sql)]
    own = {_created(text) for text in texts}
    found = (_breach(text, own, texts[:place], migration) for place, text in enumerate(texts))
    return [reason for reason in found if reason is not None]


def _created(text: str) -> str | None:
    match = re.match(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)", text)
    return match[1] if match else None


def _breach(text: str, own: set[str | None], before: list[str], migration: Migration) -> str | None:
    """Return what is wrong with one statement."""
    index = _INDEX.match(text)
    if index is not None:
        return _index_breach(index, own, before, migration)
    if text.startswith("ALTER TABLE "):
        table, _, changes = text.removeprefix("ALTER TABLE ").partition(" ")
        wrong = [one for one in _parts(changes) if not _only_adds(one)]
        return f"{table}: {wrong[0]}" if wrong and table not in own else None
    if text.startswith("DROP INDEX CONCURRENTLY IF EXISTS ") and migration.alone:
        return None
    if not text.startswith(_SAFE):
        return f"not known to be safe: {text}"
    if migration.alone and _created(text) and "IF NOT EXISTS" not in text:
        return f"cannot be run again: {text}"
    return None


def _index_breach(
    index: re.Match[str], own: set[str | None], before: list[str], migration: Migration
) -> str | None:
    unique, concurrently, name, table = index.groups()
    if table in own:
        return None
    if unique:
        return f"{name} refuses rows that the version before writes"
    if not (concurrently and migration.alone):
        return f"{name} holds up every write to {table}: CONCURRENTLY, outside a transaction"
    if f"DROP INDEX CONCURRENTLY IF EXISTS {name}" not in before:
        return f"{name} may be left half-built by a failure: drop it first"
    return None


def _only_adds(change: str) -> bool:
    """Tell whether one part of an ALTER TABLE adds a column that older inserts may leave out."""
    upper = change.upper()
    if not _ADDED.match(change) or "UNIQUE" in upper or "PRIMARY KEY" in upper:
        return False
    return "NOT NULL" not in upper or "DEFAULT" in upper


def _parts(changes: str) -> list[str]:
    """Split at commas outside parentheses and quotes."""
    parts, depth, quoted, current = [], 0, False, ""
    for letter in changes:
        quoted ^= letter == "'"
        depth += 0 if quoted else {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and not depth and not quoted:
            parts.append(current.strip())
            current = ""
        else:
            current += letter
    return [*parts, current.strip()]


def future(
    known: tuple[Migration, ...], tables: list[str], *, major: int | None = None
) -> Migration:
    """Return a migration after ``known`` that adds two columns to each of ``tables``, and a table.

    ``major`` is that of the last one before it unless it is given.
    """
    added = "ADD added_later text, ADD added_with_default text NOT NULL DEFAULT 'x'"
    lines = [
        f"-- major: {major or known[-1].major}",
        "CREATE TABLE later (id bigint PRIMARY KEY);",
        *(f"ALTER TABLE {table} {added};" for table in tables),
        "",
    ]
    return parse(f"{len(known) + 1:04}_the_future.sql", "\n".join(lines).encode())
