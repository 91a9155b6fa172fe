"""Where the socket goes, and the URL that leads there."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.errors import StorageError
from daemon.persistence.embedded.unix_socket import (
    connection_url,
    socket_directory,
    socket_file,
    usable,
)

RUNTIME = [Path("/run/user/1000"), Path("/tmp")]  # noqa: S108 - only compared, never used


@pytest.mark.parametrize(
    ("directory", "expected"),
    [
        ("/var/lib/tokenward/postgres/socket", True),
        ("/home/a.b/.local/state/token-ward_1/socket", True),
        ("/" + "x" * 92, True),  # 107 bytes with the file's name
        ("/" + "x" * 93, False),
        ("/with,comma", False),
        ("/with space", False),
        ('/with"quote', False),
        ("/fünf", False),
        ("relative", False),
    ],
)
def test_a_path_is_usable_only_if_kernel_and_clients_take_it(
    directory: str,
    expected: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """At most 107 bytes, and nothing that a list of directories gives a meaning to."""
    assert usable(Path(directory)) is expected


def test_the_socket_lies_beside_the_data_where_it_fits() -> None:
    """An ordinary state directory needs no other place."""
    root = Path("/var/lib/tokenward/postgres")
    assert socket_directory(root, RUNTIME) == root / "socket"


@given(st.text(st.characters(codec="ascii", categories=["L"]), min_size=100, max_size=150))
def test_a_long_root_falls_back_to_one_place_of_its_own(name: str) -> None:
    """The fallback is usable, the same at every start, and another for another root."""
    directory = socket_directory(Path("/", name), RUNTIME)
    assert usable(directory)
    assert directory.parent == RUNTIME[0]
    assert directory == socket_directory(Path("/", name), RUNTIME)
    assert directory != socket_directory(Path("/", name, "more"), RUNTIME)


def test_without_any_usable_place_the_error_says_what_to_do() -> None:
    """A root too long, with no runtime directory, asks for a shorter state_dir."""
    with pytest.raises(StorageError, match="shorter state_dir"):
        socket_directory(Path("/", "x" * 120), [])


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_url_survives_every_character(password: str, database: str) -> None:
    """What goes into the URL comes out of it."""
    sockets = Path("/s/a b,c&d=e?f%2f")
    parts = urlsplit(
        connection_url(role="tokenward", password=password, database=database, sockets=sockets)
    )
    assert unquote(parts.password or "") == password
    assert unquote(parts.path[1:]) == database
    assert parse_qs(parts.query) == {"host": [str(sockets)], "port": ["5432"]}


def test_the_socket_file_has_the_name_that_clients_expect() -> None:
    """Clients append the name to the directory by themselves."""
    assert socket_file(Path("/s")) == Path("/s/.s.PGSQL.5432")
