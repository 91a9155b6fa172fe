"""One sink's file: looked at, replaced whole, removed. Blocking; it is called in a thread.

The one hard idea: everything happens relative to one open directory, which was judged once it was
open. So no link that is put in the way between a check and its use leads anywhere else, and a
crash leaves the old file or the new one under the name, never a part of one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from daemon.domain.errors import TokenwardError
from daemon.domain.sink import Present, Sink

# No access token is longer; what is larger was not written by us and need not be read whole.
_LARGEST = 256 * 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class SinkError(TokenwardError):
    """A sink's file could not be brought up to date; the text says why and never what is in it."""


class SinkFile:
    """The file of one sink. No two calls at once."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._name = sink.path.name

    @property
    def draft_name(self) -> str:
        """Return the name of what is being written; always the same, so that none is left over."""
        return f".{self._name}.tokenward"

    def look(self) -> Present | None:
        """Return what is there, and remove what a crash left half written.

        Raises:
            SinkError: it cannot be told, or may not be touched.
        """
        with self._directory() as directory:
            self._remove_draft(directory)
            try:
                return self._read(directory)
            except FileNotFoundError:
                return None

    def write(self, content: bytes) -> None:
        """Replace the file by one that holds ``content``; on the disk once this returns.

        Raises:
            SinkError: the file is as it was before.
        """
        with self._directory() as directory:
            self._remove_draft(directory)
            try:
                self._write_draft(directory, content)
                os.rename(self.draft_name, self._name, src_dir_fd=directory, dst_dir_fd=directory)
            except OSError:
                with suppress(OSError):
                    self._remove_draft(directory)
                raise
            _sync(directory)

    def remove(self) -> None:
        """Remove the file, if it is there.

        Raises:
            SinkError: it may still be there.
        """
        with self._directory() as directory:
            self._remove_draft(directory)
            try:
                # Refuses what is no regular file: nothing like that was made here.
                self._check(os.stat(self._name, dir_fd=directory, follow_symlinks=False))
                os.unlink(self._name, dir_fd=directory)
            except FileNotFoundError:
                return
            _sync(directory)

    @contextmanager
    def _directory(self) -> Iterator[int]:
        """Open the directory and judge it; what the system refuses inside becomes a SinkError."""
        place = self._sink.path.parent
        try:
            directory = os.open(place, _DIRECTORY)
            try:
                self._judge(directory)
                yield directory
            finally:
                os.close(directory)
        except OSError as error:
            raise SinkError(f"{self._sink.path}: {_words(error)}.") from error

    def _judge(self, directory: int) -> None:
        """Refuse a directory where every user of the machine may exchange files of others."""
        refused = refused_directory(self._sink, os.fstat(directory).st_mode)
        if refused is not None:
            raise SinkError(refused)

    def _check(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise SinkError(
                f"{self._sink.path} is a link, a directory or a device, and is left alone; remove "
                "it, or choose another path."
            )

    def _read(self, directory: int) -> Present:
        self._check(os.stat(self._name, dir_fd=directory, follow_symlinks=False))
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self._name, flags, dir_fd=directory)
        except PermissionError:
            # It is replaced, which needs a right at the directory only.
            return Present(content=b"", mode=-1, owner=-1, group=-1)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            self._check(found)
            return Present(
                content=file.read(_LARGEST),
                mode=stat.S_IMODE(found.st_mode),
                owner=found.st_uid,
                group=found.st_gid,
            )

    def _remove_draft(self, directory: int) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.draft_name, dir_fd=directory)

    def _write_draft(self, directory: int, content: bytes) -> None:
        sink = self._sink
        descriptor = os.open(self.draft_name, _NEW, 0o600, dir_fd=directory)
        with os.fdopen(descriptor, "wb") as file:
            # Before there is anything to read in it.
            if sink.owner is not None or sink.group is not None:
                owner = -1 if sink.owner is None else sink.owner
                group = -1 if sink.group is None else sink.group
                os.fchown(file.fileno(), owner, group)
            os.fchmod(file.fileno(), sink.mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _sync(directory: int) -> None:
    """Make a new name last; some network file systems do that by themselves and say EINVAL."""
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _words(error: OSError) -> str:
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        return "its directory is a symbolic link or no directory; write the real path"
    return (error.strerror or type(error).__name__).lower()


def refused_directory(sink: Sink, mode: int) -> str | None:
    """Return why a token may not be put into the sink's directory, whose mode is ``mode``. Pure."""
    is_shared = mode & stat.S_IWOTH and not mode & stat.S_ISVTX
    if not is_shared or sink.allow_shared_directory:
        return None
    return (
        f"{sink.path.parent} may be written by everybody, who could then put another file into the "
        "token's place; chmod o-w it, or set allow_shared_directory: true where nobody else "
        "reaches it, as in a pod."
    )
