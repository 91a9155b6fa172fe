"""A child process that is spoken to in JSON lines and that ends when its stdin does.

Its one hard idea: the pipe to its stdin is its lifeline. The kernel closes it however we end,
also by SIGKILL, so no signal handler and no supervisor is needed to leave nothing behind.
"""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from daemon.demo.authorization_server.node import AuthorizationServerError

# Generous: a busy machine may need seconds for what takes 0.3 s when idle.
_START_SECONDS = 60.0
_REPLY_SECONDS = 30.0
_STOP_SECONDS = 5.0
_REPLIES = frozenset({"listening", "failed", "command.done", "command.failed"})


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the child's stdout: what happened, when (seconds since 1970), and to what."""

    name: str
    at: float
    members: Mapping[str, object]


class LineChild:
    """A child process with a configuration line, commands and events.

    Methods block and are for one thread at a time; ``on_event`` is called in a thread of its
    own, in the order in which things happened.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, on_event: Callable[[Event], None] | None = None
    ) -> None:
        self._name = name
        self._command = tuple(command)
        self._on_event = on_event
        self._replies: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._stderr: IO[str] | None = None
        self._commands = 0

    def start(self, configuration: Mapping[str, object]) -> Event:
        """Start the child and return its ``listening`` event.

        Raises:
            AuthorizationServerError: it ended or said ``failed`` instead, or said nothing.
        """
        self._replies = queue.SimpleQueue()
        self._stderr = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - stop() closes it
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            # Ctrl-C is for us: the daemon still finishes refreshes in flight at this server.
            start_new_session=True,
        )
        self._reader = threading.Thread(
            target=self._read, args=(self._process, self._replies), name=self._name, daemon=True
        )
        self._reader.start()
        try:
            self._write(configuration)
            return self._expect("listening", _START_SECONDS)
        except BaseException:
            self.stop()
            raise

    def command(self, name: str, **members: object) -> object:
        """Send a command and return its result, after every event that came before it."""
        self._commands += 1
        self._write({"id": self._commands, "command": name, **members})
        return self._expect("command.done", _REPLY_SECONDS).members.get("result")

    def stop(self) -> None:
        """End the child; nothing happens where it is not running."""
        process, reader, stderr = self._process, self._reader, self._stderr
        self._process = self._reader = self._stderr = None
        if process is None:
            return
        try:
            _close(process.stdin)
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if reader is not None:
            reader.join()
        _close(process.stdout)
        _close(stderr)

    def _write(self, message: Mapping[str, object]) -> None:
        if self._process is None or self._process.stdin is None:
            raise AuthorizationServerError(f"The {self._name} is not running: start it first.")
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def _expect(self, name: str, seconds: float) -> Event:
        try:
            event = self._replies.get(timeout=seconds)
        except queue.Empty:
            raise AuthorizationServerError(
                f"The {self._name} did not answer within {seconds:.0f} s. Try again"
                " when the machine is less busy."
            ) from None
        if event is None:
            # The next command has nothing to wait for either.
            self._replies.put(None)
            raise self._ended()
        if event.name != name:
            raise AuthorizationServerError(
                _explanation(self._name, str(event.members.get("error", event.name)))
            )
        return event

    def _ended(self) -> AuthorizationServerError:
        said = ""
        if self._stderr is not None:
            self._stderr.seek(0)
            said = "\n".join(line.rstrip() for line in self._stderr.readlines()[-8:])
        return AuthorizationServerError(f"The {self._name} has ended unexpectedly. {said}".rstrip())

    def _read(
        self, process: subprocess.Popen[str], replies: queue.SimpleQueue[Event | None]
    ) -> None:
        try:
            for line in process.stdout or ():
                event = _parsed(line)
                if event.name in _REPLIES:
                    replies.put(event)
                elif self._on_event is not None:
                    self._on_event(event)
        finally:
            # Also where ``on_event`` raised: nobody may wait for a reply that cannot come.
            replies.put(None)


def _parsed(line: str) -> Event:
    members = json.loads(line)
    return Event(name=members.pop("event"), at=members.pop("at"), members=members)


def _explanation(name: str, error: str) -> str:
    if error == "EADDRINUSE":
        return f"The {name}'s port is in use: stop what listens there, or choose another port."
    return f"The {name} refused: {error}"


def _close(stream: IO[str] | None) -> None:
    if stream is None:
        return
    try:
        stream.close()
    except BrokenPipeError:
        # Unwritten bytes for a child that has ended already: nobody misses them.
        return
