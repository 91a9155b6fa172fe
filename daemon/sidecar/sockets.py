"""Unix sockets in the file system: made without a moment of wider rights, removed when stale."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_UCRED = struct.Struct("3i")
_BACKLOG = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundSocket:
    """A Unix socket and the file that names it. ``file`` is (device, inode) of that file."""

    socket: socket.socket
    path: Path
    file: tuple[int, int]

    def unlink(self) -> None:
        """Remove the file, unless a successor has put its own there by now."""
        with suppress(FileNotFoundError):
            status = self.path.lstat()
            if (status.st_dev, status.st_ino) == self.file:
                self.path.unlink()


def bind_unix_socket(path: Path, *, allowed_uids: Collection[int] = ()) -> BoundSocket:
    """Listen on a Unix socket at ``path``; replace a socket file on which nobody listens.

    The file gets mode 0600; 0666 where a uid other than ours is allowed, for then the peer's uid,
    which the kernel states, is what is judged.

    Raises:
        OSError: the path is too long, its directory is absent or closed, something else than a
            stale socket is there (``EEXIST``), or somebody listens there (``EADDRINUSE``).
    """
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the new file the mode of the socket's own inode, so there is no moment in
        # which others could connect, and no umask changed under the feet of other threads.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(os.fspath(path))
        if set(allowed_uids) - {os.geteuid()}:
            path.chmod(0o666)
        sock.listen(_BACKLOG)
        sock.settimeout(0)
        status = path.lstat()
    except BaseException:
        sock.close()
        raise
    return BoundSocket(socket=sock, path=path, file=(status.st_dev, status.st_ino))


def peer_uid_of(sock: socket.socket) -> int:
    """Return the uid that the process at the other end had when it connected (SO_PEERCRED)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(credentials)[1]
    return uid


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "something that is no socket is there", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Not blocking: a full backlog is a listener too.
        probe.settimeout(0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "another process listens there", str(path))
