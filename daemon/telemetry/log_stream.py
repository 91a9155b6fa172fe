"""The way of a log line out of the process: a bounded queue and one thread that may block.

The hard idea: whoever logs never waits. Where the reader of our output is stuck, gone, or its
disk is full, lines are dropped and counted, and the count is told as soon as writing works again.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, RLock, Thread
from typing import TextIO

LIMIT = 4 * 1024 * 1024
"""Characters that may wait: some ten thousand lines, and little beside the 80 MB of the daemon."""

# One system call's worth, a pipe's usual capacity.
_BATCH = 64 * 1024
# How long a line waits for others to be written with it.
_GATHER_SECONDS = 0.005


class LogStream:
    """Writes lines to ``stream`` from a thread of its own.

    ``notice`` renders the line that tells how many lines were lost. Any thread may call any
    method, also from a finalizer that interrupts another call (hence ``RLock``, ``SimpleQueue``).
    """

    def __init__(self, stream: TextIO, *, notice: Callable[[int], str], limit: int = LIMIT) -> None:
        self._sink = _sink(stream)
        self._notice = notice
        self._limit = limit
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._lock = RLock()
        self._waiting_lines = 0
        self._waiting_size = 0
        self._dropped = 0
        self._told = 0
        self._closed = False
        self._closing = Event()
        self._thread = Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Return how many lines were lost since the start."""
        return self._dropped

    def write(self, line: str) -> None:
        """Queue ``line``, which needs no line end; never blocks, never raises."""
        line += "\n"
        with self._lock:
            if self._closed or self._waiting_size + len(line) > self._limit:
                self._dropped += 1
                return
            self._waiting_lines += 1
            self._waiting_size += len(line)
        self._queue.put(line)

    def close(self, *, timeout: float) -> None:
        """Write what is queued, for at most ``timeout`` seconds; what then remains is dropped."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._queue.put(None)
        self._closing.set()
        self._thread.join(timeout)
        with self._lock:
            self._dropped += self._waiting_lines
            self._waiting_lines = 0

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._next_batch()
            if batch:
                self._deliver(batch)
        self._sink.close()

    def _next_batch(self) -> tuple[list[str], bool]:
        """Wait for a line and return it with those behind it; ``False`` is the end."""
        batch: list[str] = []
        size = 0
        line = self._queue.get()
        if line is not None:
            # Waking this thread costs whoever logs as much as the rest of its line.
            self._closing.wait(_GATHER_SECONDS)
        with suppress(Empty):
            while line is not None:
                batch.append(line)
                size += len(line)
                if size >= _BATCH:
                    return batch, True
                line = self._queue.get_nowait()
            return batch, False
        return batch, True

    def _deliver(self, batch: list[str]) -> None:
        is_written = self._try("".join(batch))
        with self._lock:
            self._waiting_size -= sum(map(len, batch))
            # After close() has given up, these lines are already counted as dropped.
            if self._waiting_lines:
                self._waiting_lines -= len(batch)
                self._dropped += 0 if is_written else len(batch)
            lost = self._dropped
        if is_written and lost > self._told and self._try(self._notice(lost - self._told) + "\n"):
            self._told = lost

    def _try(self, text: str) -> bool:
        try:
            self._sink.write(text)
        except (OSError, ValueError):
            # EPIPE, ENOSPC, EIO, a closed file: the disk may have room again for the next line.
            return False
        return True


class _DescriptorSink:
    """Writes to a duplicate of a file descriptor, past Python's buffers.

    A buffer keeps what it failed to write, fails again at every flush, and a last time at exit.
    The duplicate stays ours where somebody closes ``sys.stdout`` and its number is used again.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_torn = False
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)

    def write(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        if self._is_torn:
            data = memoryview(b"\n" + data)
        while data:
            try:
                written = os.write(self._descriptor, data)
            except BlockingIOError:
                # Another process that shares the pipe has made it non-blocking.
                self._room.poll()
                continue
            # Set while a line is half out: if the rest fails, the next one starts on a new line.
            self._is_torn = data[written - 1] != ord("\n")
            data = data[written:]

    def close(self) -> None:
        os.close(self._descriptor)


class _TextSink:
    """Writes to a stream that has no file descriptor."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def close(self) -> None:
        """Leave the stream open: it is not ours."""


def _sink(stream: TextIO) -> _DescriptorSink | _TextSink:
    try:
        stream.flush()
        return _DescriptorSink(os.dup(stream.fileno()))
    except (OSError, ValueError, AttributeError):
        return _TextSink(stream)
