"""Daemons by fork: a process that has imported everything forks for each start.

Most of what a start costs is importing, and a campaign of thousands of starts need not do that
thousands of times. A child is a process like any other: it runs the command line from its first
line on, and SIGKILL ends it as it ends any.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import daemon
from tests.support.tokenward import ROOT, Process, Tokenward

_LOOK_EVERY = 0.01


class Child:
    """One daemon, a child of the nursery."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        """Return a number once it has ended. Its parent, not we, knows the exit code."""
        return None if Path(f"/proc/{self.pid}").exists() else 0

    def wait(self, timeout: float | None = None) -> int:
        """Block until it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not.
        """
        give_up = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if give_up is not None and time.monotonic() > give_up:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(_LOOK_EVERY)
        return 0

    def send_signal(self, number: int, /) -> None:
        """Send a signal; nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Nursery:
    """The process that forks. A context manager; its children do not end with it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaigns.nursery"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def fork(self, program: list[str], *, home: Path, log: Path) -> Child:
        """Start ``python -m PROGRAM`` with its arguments; its output is appended to ``log``."""
        asked, told = self._process.stdin, self._process.stdout
        if asked is None or told is None:
            raise AssertionError("the nursery has no pipes")
        order = {"program": program, "home": str(home), "log": str(log)}
        asked.write(json.dumps(order).encode() + b"\n")
        asked.flush()
        return Child(int(told.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=10)


class ForkedTokenward(Tokenward):
    """A daemon that is forked."""

    nursery: Nursery | None = None

    def launch(self, arguments: list[str]) -> Process:
        """Start the process."""
        if self.nursery is None:
            return super().launch(arguments)
        return self.nursery.fork(arguments, home=self.directory, log=self.log_path)


def main() -> None:
    """Import the daemon; then fork for each line of standard input, and print the child's id."""
    for module in pkgutil.walk_packages(daemon.__path__, "daemon."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    # Nobody waits for the children: they vanish when they end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        pid = os.fork()
        if pid == 0:
            _be(json.loads(line))
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def _be(order: dict[str, Any]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update({"PATH": os.defpath, "HOME": str(order["home"])})
    program = [str(word) for word in order["program"]]
    sys.argv = ["python", *program[1:]]
    code: object = 1
    try:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
