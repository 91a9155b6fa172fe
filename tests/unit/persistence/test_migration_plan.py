"""Which migrations a database still needs, and which databases are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.domain.errors import SchemaError, SchemaTooNewError
from daemon.persistence.migrations import Applied, Migration, bundled, parse, plan, read_folder


def migration(version: int, *, major: int = 1, checksum: str = "") -> Migration:
    """Return a migration as a file would give it."""
    return Migration(
        version=version, name="x", major=major, checksum=checksum or f"sum{version}", sql=""
    )


def applied(version: int, *, major: int = 1, checksum: str = "") -> Applied:
    """Return the row that ``migration`` with the same arguments leaves."""
    return Applied(version=version, name="x", major=major, checksum=checksum or f"sum{version}")


KNOWN = (migration(1), migration(2), migration(3, major=2))


@pytest.mark.parametrize(
    ("rows", "versions"),
    [
        ([], [1, 2, 3]),
        ([applied(1)], [2, 3]),
        ([applied(2), applied(1)], [3]),
        ([applied(1), applied(2), applied(3, major=2)], []),
        # A newer minor: only added things.
        ([applied(1), applied(2), applied(3, major=2), applied(4, major=2)], []),
    ],
)
def test_what_is_left_is_planned(rows: list[Applied], versions: list[int]) -> None:
    """What is known and not applied is planned in order; a newer minor is left alone."""
    assert [m.version for m in plan(KNOWN, rows)] == versions


def test_a_newer_major_is_refused() -> None:
    """A database of a newer major is refused by a typed error that names it."""
    rows = [applied(1), applied(2), applied(3, major=2), applied(4, major=3)]
    with pytest.raises(SchemaTooNewError, match=r"schema 3\.4.*knows major 2"):
        plan(KNOWN, rows)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([applied(1, checksum="other")], "0001_x was applied .* with other content"),
        ([applied(1), applied(3, major=2)], "lacks migration 0002"),
        ([applied(2)], "lacks migration 0001"),
    ],
)
def test_another_history_is_refused(rows: list[Applied], said: str) -> None:
    """A changed file or a gap is refused with the number it concerns."""
    with pytest.raises(SchemaError, match=said):
        plan(KNOWN, rows)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("1_x.sql", b"-- major: 1\n", "NNNN_words.sql"),
        ("0001-x.sql", b"-- major: 1\n", "NNNN_words.sql"),
        ("0001_x.sql", b"SELECT 1;\n-- major: 1\n", "first line"),
        ("0001_x.sql", b"-- major: 0\n", "first line"),
        ("0001_x.sql", b"-- major: 1\nSELECT 1;\n  commit ;\n", "transactions"),
        ("0001_x.sql", b"-- major: 1\nBEGIN;\n", "transactions"),
    ],
)
def test_a_bad_file_is_refused(name: str, content: bytes, said: str) -> None:
    """A misnamed file, a missing header or transaction control is an error that names the file."""
    with pytest.raises(SchemaError, match=said) as raised:
        parse(name, content)
    assert name in str(raised.value)


def test_a_function_body_is_no_transaction() -> None:
    """The BEGIN and END of PL/pgSQL are not transaction control."""
    body = b"-- major: 2\nDO $$\nBEGIN\n  PERFORM 1;\nEND;\n$$;\n"
    assert parse("0007_do_it.sql", body).major == 2


@pytest.mark.parametrize("names", [["0002_b.sql"], ["0001_a.sql", "0003_c.sql"]])
def test_numbers_run_without_gap(tmp_path: Path, names: list[str]) -> None:
    """A folder whose numbers do not run from 1 without gap is refused."""
    for name in names:
        (tmp_path / name).write_text("-- major: 1\n")
    with pytest.raises(SchemaError, match="missing or there twice"):
        read_folder(tmp_path)


def test_the_bundled_migrations_are_in_order() -> None:
    """The files that come with the package can be read and start a schema."""
    assert plan(bundled(), []) == bundled()
    assert bundled()[0].version == 1
