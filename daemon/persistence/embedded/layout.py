"""What lies where under the state directory, every directory 0700 and every file 0600.

Where root gives ``postgres/`` to an account, the files that root writes must lie elsewhere: in a
directory of its own the account could put a link in their place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from daemon.domain.errors import StorageError
from daemon.persistence.embedded.identity import Identity

# The last messages, of which one says why.
_TAIL = 8192


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies."""

    state_dir: Path

    @property
    def root(self) -> Path:
        """What belongs to the user that PostgreSQL runs as."""
        return self.state_dir / "postgres"

    @property
    def lock(self) -> Path:
        """The file whose lock says that a daemon uses this state directory."""
        return self.state_dir / "postgres.lock"

    @property
    def log(self) -> Path:
        """What PostgreSQL says."""
        return self.state_dir / "postgres.log"

    @property
    def cluster(self) -> Path:
        """The directory that exists only whole."""
        return self.root / "cluster"

    @property
    def data(self) -> Path:
        """PostgreSQL's data directory."""
        return self.cluster / "data"

    @property
    def password(self) -> Path:
        """The password of both roles, mode 0600."""
        return self.cluster / "password"

    @property
    def partial(self) -> Path:
        """A cluster in the making; what a killed daemon left there is thrown away."""
        return self.root / "cluster.partial"

    def major(self) -> int | None:
        """Return the major version of the cluster, ``None`` where there is none yet."""
        if not self.cluster.exists():
            return None
        try:
            return int((self.data / "PG_VERSION").read_text().strip())
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{self.data} is not a PostgreSQL data directory: put it back from a backup, or "
                f"remove {self.cluster} to begin with an empty database"
            ) from error

    def read_password(self) -> str:
        """Return the cluster's password. Raises StorageError where its file is lost."""
        try:
            return self.password.read_text("ascii").strip()
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{self.password} cannot be read: put it back from a backup, or remove "
                f"{self.cluster} to begin with an empty database"
            ) from error


def make_private(directory: Path) -> None:
    """Make a directory and its missing parents for us alone; what exists stays as it is."""
    for missing in reversed([p for p in (directory, *directory.parents) if not p.exists()]):
        missing.mkdir(mode=0o700)


def write_private(path: Path, text: str) -> None:
    """Write a new file that only its owner may read, durably."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def take_over(tree: Path, identity: Identity) -> None:
    """Give ``tree`` to whom PostgreSQL runs as, if it belongs to somebody else. Follows no link."""
    if tree.lstat().st_uid == identity.owner:
        return
    for _, directories, files, handle in os.fwalk(tree, follow_symlinks=False):
        for name in (*directories, *files):
            owner = (identity.owner, identity.owner_group)
            os.chown(name, *owner, dir_fd=handle, follow_symlinks=False)
    os.chown(tree, identity.owner, identity.owner_group, follow_symlinks=False)


def open_log(layout: Layout) -> IO[bytes]:
    """Open the log to append: only then may it be cut while PostgreSQL writes."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    return os.fdopen(os.open(layout.log, flags, 0o600), "ab")


def bound_log(layout: Layout, limit: int) -> None:
    """Keep the log's last part under another name and begin anew, once it exceeds ``limit`` bytes.

    Lines written between the copy and the cut are lost; the process keeps its open file.
    """
    if log_size(layout) <= limit:
        return
    previous = layout.log.with_suffix(".log.1")
    # On a full disk the cut matters more than the copy.
    with contextlib.suppress(OSError):
        previous.unlink(missing_ok=True)
        write_private(previous, "")
        shutil.copyfile(layout.log, previous)
    with contextlib.suppress(OSError):
        os.truncate(layout.log, 0)


def log_size(layout: Layout) -> int:
    """Return the length of the log in bytes, 0 where there is none."""
    try:
        return layout.log.stat().st_size
    except OSError:
        return 0


def complaint(layout: Layout, *, since: int) -> str:
    """Return the line behind position ``since`` that most likely says why PostgreSQL ended."""
    size = log_size(layout)
    try:
        with layout.log.open("rb") as file:
            file.seek(max(since if since <= size else 0, size - _TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"no log: {error.strerror}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marks = ("FATAL:", "PANIC:", "error:", "cannot run")
    serious = [line for line in lines if any(mark in line for mark in marks)]
    return (serious or lines or ["it said nothing"])[-1]


def sync(directory: Path) -> None:
    """Make renames in ``directory`` durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock_state(layout: Layout) -> int:
    """Take the state directory for this process and return the lock's file descriptor.

    Closing it gives the directory back, and so does the end of the process, however it ends.
    Raises StorageError where another process has it.
    """
    make_private(layout.root)
    layout.root.chmod(0o700)
    handle = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
        os.close(handle)
        raise StorageError(
            f"another tokenward (process {owner}) uses {layout.state_dir}: "
            "stop it, or give this one a state_dir of its own"
        ) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle
