"""Where the server's Unix socket is: beside the data, or in a private runtime directory.

The kernel takes at most 107 bytes for a socket's path, and state directories can be longer.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from daemon.domain.errors import StorageError
from daemon.persistence.embedded.identity import Identity

PORT = 5432
"""Part of the socket's name and nothing more: no TCP port is opened."""

# sun_path has 108 bytes, the last of them NUL.
_PATH_LIMIT = 107
# PostgreSQL and its clients split lists of directories at commas and honour quotes.
_PLAIN = re.compile(r"/[A-Za-z0-9._/+=@~-]*")


def socket_file(directory: Path) -> Path:
    """Return the path of the socket in ``directory``."""
    return directory / f".s.PGSQL.{PORT}"


def socket_lock(directory: Path) -> Path:
    """Return the path of the lock file that PostgreSQL puts beside its socket."""
    return directory / f".s.PGSQL.{PORT}.lock"


def usable(directory: Path) -> bool:
    """Tell whether a socket in ``directory`` can be named to the kernel and to every client."""
    fits = len(os.fsencode(socket_file(directory))) <= _PATH_LIMIT
    return fits and _PLAIN.fullmatch(str(directory)) is not None


def socket_directory(root: Path, runtime: Sequence[Path]) -> Path:
    """Return the socket directory for the state under ``root``: always the same one for one root.

    ``runtime`` are directories to fall back to, the best first. Raises StorageError where no
    path is usable.
    """
    name = f"tokenward-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}"
    for directory in (root / "socket", *(place / name for place in runtime)):
        if usable(directory):
            return directory
    raise StorageError(f"{root} is too long for a Unix socket: choose a shorter state_dir")


def runtime_directories(environ: Mapping[str, str], *, privileged: bool) -> Sequence[Path]:
    """Return where short-lived private files of this user go, the best place first."""
    own = Path("/run") if privileged else Path(environ.get("XDG_RUNTIME_DIR", "/nonexistent"))
    places = (own, Path(tempfile.gettempdir()), Path("/tmp"))  # noqa: S108 - a fresh 0700 directory
    return [place for place in places if os.access(place, os.W_OK | os.X_OK)]


def renew(directory: Path, identity: Identity) -> None:
    """Make the directory anew, mode 0700, for the server's user alone.

    Whatever was left there goes: sockets and lock files of a killed server. A directory of
    somebody else's, made to catch us in a shared ``/tmp``, is refused with StorageError.
    """
    try:
        owner = directory.lstat().st_uid
    except FileNotFoundError:
        owner = None
    if owner not in {None, os.geteuid(), identity.owner}:
        raise StorageError(f"{directory} belongs to uid {owner}: remove it")
    if owner is not None:
        shutil.rmtree(directory)
    directory.mkdir(mode=0o700)
    if identity.owner != os.geteuid():
        os.chown(directory, identity.owner, identity.owner_group)


def connection_url(*, role: str, password: str, database: str, sockets: Path) -> str:
    """Return the URL for asyncpg and libpq alike. It holds the password."""
    return (
        f"postgresql://{quote(role, safe='')}:{quote(password, safe='')}@/"
        f"{quote(database, safe='')}?host={quote(str(sockets), safe='')}&port={PORT}"
    )
