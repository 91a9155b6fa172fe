"""A migration's statements, what they wait for, and the rule that a schema only grows."""

from __future__ import annotations

import pytest

from daemon.persistence.migrations import bundled, parse
from daemon.persistence.statements import statements, steps
from tests.support.expansion import FROZEN, breaches


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("", []),
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1;\n\nSELECT 2;\n", ["SELECT 1", "SELECT 2"]),
        ("-- a; comment\nSELECT 1; -- and; another\n/* a; third */ SELECT 2", 2),
        ("SELECT ';'; SELECT 'it''s; so'; SELECT \"a;b\"", 3),
        ("DO $$ BEGIN PERFORM 1; END; $$; SELECT $x$ ; $$ ; $x$;", 2),
        ("SELECT 1 - 2 / 3, $1;", ["SELECT 1 - 2 / 3, $1"]),
    ],
)
def test_statements_are_told_apart(sql: str, expected: list[str] | int) -> None:
    """A semicolon ends a statement, but not in a comment, a string, a name or a body."""
    found = statements(sql)
    assert (len(found) if isinstance(expected, int) else found) == expected


@pytest.mark.parametrize(
    ("sql", "table", "waits"),
    [
        ("CREATE TABLE a (id int)", "a", "its own table only"),
        ("CREATE TABLE IF NOT EXISTS a (id int)", "a", "its own table only"),
        ("CREATE TABLE a (id int REFERENCES b (id))", "a", "writes to b wait for a moment"),
        ("CREATE UNIQUE INDEX i\n ON b (id)", "b", "writes to b wait until it is built"),
        ("CREATE INDEX CONCURRENTLY i ON b (id)", "b", "nobody waits"),
        ("DROP INDEX CONCURRENTLY IF EXISTS i", "i", "nobody waits"),
        ("ALTER TABLE b ADD c int", "b", "everything on b waits"),
        ("UPDATE b SET c = 1", "b", "writes to the same rows of b wait"),
        ("INSERT INTO b VALUES (1)", "b", "writes to the same rows of b wait"),
        ("GRANT SELECT ON b TO c", None, "not known"),
    ],
)
def test_who_waits_is_told(sql: str, table: str | None, waits: str) -> None:
    """Each statement names its table and who waits for it; an unknown one says so."""
    (step,) = steps(sql)
    assert step.table == table
    assert step.waits.startswith(waits)


def test_nobody_waits_for_a_table_that_is_new() -> None:
    """What follows the creation of a table, on that table, is in nobody's way."""
    found = list(
        steps("CREATE TABLE a (id int); CREATE INDEX i ON a (id); ALTER TABLE a ADD b int")
    )
    assert {step.waits for step in found} == {"its own table only"}


def test_each_bundled_statement_is_understood() -> None:
    """The dry run knows what every statement that comes with the package does."""
    unknown = [s.text for one in bundled() for s in steps(one.sql) if s.table is None]
    assert unknown == []


def test_the_schema_only_grows() -> None:
    """Within a major, no migration takes from the version before it what that one writes or reads.

    The first of a major may do anything: an older version refuses to run beside it.
    """
    majors: set[int] = set()
    found: dict[str, list[str]] = {}
    for one in bundled():
        if one.major in majors and one.version not in FROZEN:
            found[str(one)] = breaches(one)
        majors.add(one.major)
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


HEAD = b"-- major: 1\n"
ALONE = HEAD + b"-- transaction: none\n"


@pytest.mark.parametrize(
    "sql",
    [
        HEAD + b"DROP TABLE events;",
        HEAD + b"ALTER TABLE events DROP COLUMN detail;",
        HEAD + b"ALTER TABLE events RENAME COLUMN detail TO details;",
        HEAD + b"ALTER TABLE events RENAME TO history;",
        HEAD + b"ALTER TABLE events ADD a int, DROP detail;",
        HEAD + b"ALTER TABLE events ALTER COLUMN detail TYPE text;",
        HEAD + b"ALTER TABLE events ALTER detail SET NOT NULL;",
        HEAD + b"ALTER TABLE events ADD author text NOT NULL;",
        HEAD + b"ALTER TABLE events ADD author text UNIQUE;",
        HEAD + b"ALTER TABLE events ADD CONSTRAINT c CHECK (id > 0);",
        HEAD + b"CREATE INDEX events_at ON events (at);",
        HEAD + b"CREATE INDEX CONCURRENTLY events_at ON events (at);",
        ALONE + b"CREATE INDEX CONCURRENTLY events_at ON events (at);",
        ALONE
        + b"DROP INDEX CONCURRENTLY IF EXISTS i; CREATE UNIQUE INDEX CONCURRENTLY i ON a (b);",
        ALONE + b"CREATE TABLE a (id int);",
        HEAD + b"TRUNCATE events;",
        HEAD + b"CREATE TRIGGER t BEFORE INSERT ON events EXECUTE FUNCTION f();",
    ],
)
def test_what_takes_something_away_is_found(sql: bytes) -> None:
    """Each way to break the version before, or to hold up its writes, is a breach."""
    assert len(breaches(parse("0009_x.sql", sql))) == 1


@pytest.mark.parametrize(
    "sql",
    [
        HEAD + b"CREATE TABLE a (id int PRIMARY KEY); CREATE UNIQUE INDEX i ON a (id);",
        HEAD + b"ALTER TABLE events ADD a int, ADD COLUMN b text NOT NULL DEFAULT 'x, y';",
        HEAD + b"ALTER TABLE events ADD IF NOT EXISTS a numeric(3, 1);",
        HEAD + b"UPDATE events SET detail = '{}' WHERE id = 1;",
        ALONE
        + b"DROP INDEX CONCURRENTLY IF EXISTS i;\nCREATE INDEX CONCURRENTLY i ON events (at);",
        ALONE + b"CREATE TABLE IF NOT EXISTS a (id int);",
    ],
)
def test_what_only_adds_is_no_breach(sql: bytes) -> None:
    """A table, an optional column, an index that is built beside the work."""
    assert breaches(parse("0009_x.sql", sql)) == []
