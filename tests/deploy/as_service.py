"""Starts the daemon in this process as systemd would: the socket is descriptor 3, for this pid.

python as_service.py DESCRIPTOR ARGUMENTS…      (DESCRIPTOR -1: none is passed)
"""

from __future__ import annotations

import os
import sys

FIRST_DESCRIPTOR = 3


def main(arguments: list[str]) -> None:
    """Become the daemon."""
    descriptor = int(arguments[0])
    environment = dict(os.environ)
    if descriptor >= 0:
        os.dup2(descriptor, FIRST_DESCRIPTOR, inheritable=True)
        environment |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    environment["WATCHDOG_PID"] = str(os.getpid())
    command = [sys.executable, "-m", "daemon", *arguments[1:]]
    os.execve(sys.executable, command, environment)  # noqa: S606 - our own interpreter


if __name__ == "__main__":
    main(sys.argv[1:])
