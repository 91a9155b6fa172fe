"""A migration's statements, one by one, and which locks each takes while others work.

For ``migrate --dry-run`` and for what runs outside a transaction. It reads the SQL of our own files
and no other: comments, quotes and dollar quotes are understood, everything else is words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# What a semicolon may stand in; the order matters, for the first that matches is taken.
_PART = re.compile(
    r"""
    --[^\n]*                          # a comment, dropped
    | /\*.*?\*/                       # another, not nested
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | (?P<tag>\$\w*\$).*?(?P=tag)
    | ;
    | [^-/'"$;]+ | .
    """,
    re.VERBOSE | re.DOTALL,
)
_NAME = r'(?:IF (?:NOT )?EXISTS )?(?:ONLY )?(?P<table>[\w."]+)'
_REFERENCES = re.compile(r"\bREFERENCES (?P<table>[\w.\"]+)", re.IGNORECASE)
# The manual, section 13.3 and the statements' pages. Nobody waits for what nobody knows of yet.
_KINDS = (
    (r"CREATE TABLE " + _NAME, "its own table only"),
    (r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY .*?\bON " + _NAME, "nobody waits"),
    (r"CREATE (?:UNIQUE )?INDEX .*?\bON " + _NAME, "writes to {table} wait until it is built"),
    (r"DROP INDEX CONCURRENTLY " + _NAME, "nobody waits"),
    (r"ALTER TABLE " + _NAME, "everything on {table} waits, for a moment unless it is rewritten"),
    (r"(?:INSERT INTO|DELETE FROM) " + _NAME, "writes to the same rows of {table} wait"),
    (r"UPDATE " + _NAME, "writes to the same rows of {table} wait"),
)
_UNKNOWN = "not known: read the statement"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One statement on one line, the table it changes (``None``: not known), and who waits."""

    text: str
    table: str | None
    waits: str


def statements(sql: str) -> list[str]:
    """Return the statements of ``sql`` in order, without comments and without semicolons."""
    found, current = [], ""
    for part in _PART.finditer(sql):
        text = part.group()
        if text == ";":
            found.append(current.strip())
            current = ""
        elif not text.startswith(("--", "/*")):
            current += text
    return [statement for statement in (*found, current.strip()) if statement]


def steps(sql: str) -> Iterator[Step]:
    """Yield what each statement of ``sql`` changes, and who waits for it meanwhile."""
    own: set[str] = set()
    for statement in statements(sql):
        text = " ".join(statement.split())
        table, waits = _judged(text)
        if table is not None and text.upper().startswith("CREATE TABLE "):
            own.add(table)
            others = sorted({m["table"] for m in _REFERENCES.finditer(text)} - own)
            if others:
                waits = f"writes to {', '.join(others)} wait for a moment"
        elif table in own:
            waits = _KINDS[0][1]
        yield Step(text=text, table=table, waits=waits)


def _judged(text: str) -> tuple[str | None, str]:
    for pattern, waits in _KINDS:
        match = re.match(pattern, text, re.IGNORECASE)
        if match is not None:
            return match["table"], waits.format(table=match["table"])
    return None, _UNKNOWN
