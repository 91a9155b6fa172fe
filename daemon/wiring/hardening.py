"""What the process does to itself before it reads a secret: no core, no debugger, no open files.

Root is not kept out by any of it; who has the same user id is.
"""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

# Of the kernel's interface; not in the standard library.
_PR_SET_DUMPABLE = 4
_OTHERS = 0o077


def harden() -> None:
    """Let nobody but root look into this process, and nothing it makes be read by others.

    Without the dumpable flag the kernel writes no core, also to no program that collects them,
    and refuses ptrace and ``/proc/PID/mem`` and ``environ`` to the same user. Programs that are
    started inherit limit and mask, and get the flag back.
    """
    os.umask(_OTHERS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def open_state_dir(path: Path) -> str | None:
    """Return what to say of a state directory that others may enter; ``None`` where none may."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return f"{path} is open to other users; run: chmod 700 {path}" if mode & _OTHERS else None
