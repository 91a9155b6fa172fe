"""A stuck, closed or full log stream costs lines, never time."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TextIO

import pytest
import structlog

from daemon.config.settings import Log
from daemon.telemetry.log_stream import LogStream
from daemon.telemetry.logs import configure_logging

LINE = "x" * 999


def notice(count: int) -> str:
    """Say how many lines were lost."""
    return f"lost {count}"


class Pipe:
    """A pipe that nobody reads until told."""

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        self._is_open = True
        self.stream: TextIO = os.fdopen(writer, "w")
        self.capacity = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)

    def fill(self) -> None:
        """Leave no room, so that the next writer blocks."""
        descriptor = self.stream.fileno()
        os.set_blocking(descriptor, False)
        with suppress(BlockingIOError):
            while True:
                os.write(descriptor, b"." * 4096)
        os.set_blocking(descriptor, True)

    def read_until(self, text: str) -> str:
        """Read up to and with ``text``; returns sooner where the writer has gone."""
        received = b""
        while text.encode() not in received and (part := os.read(self._reader, 65536)):
            received += part
        return received.decode()

    def close_reader(self) -> None:
        """Let writers have EPIPE."""
        if self._is_open:
            os.close(self._reader)
            self._is_open = False

    def close(self) -> None:
        """Close both ends."""
        self.close_reader()
        self.stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Return a pipe, closed at the end."""
    made = Pipe()
    yield made
    made.close()


def test_a_reader_that_stopped_costs_lines_not_time(pipe: Pipe) -> None:
    """Logging returns at once although nobody reads; lines are dropped, counted and told later."""
    pipe.fill()
    out = LogStream(pipe.stream, notice=notice, limit=50_000)
    for _ in range(80):
        out.write(LINE)
    assert out.dropped == 30
    assert pipe.read_until("lost 30\n").count(LINE) >= 1
    pipe.close_reader()
    out.close(timeout=30)


def test_the_whole_pipeline_survives_a_stuck_reader(pipe: Pipe) -> None:
    """Log calls return although standard output is stuck, and closing gives up in time."""
    pipe.fill()
    pipeline = configure_logging(Log(), stream=pipe.stream)
    count = 0
    while not pipeline.dropped:
        structlog.get_logger().info("happened", text="x" * 15_000)
        count += 1
    structlog.get_logger().info("happened", text="x" * 15_000)
    assert pipeline.dropped == 2
    pipeline.close(timeout=0.01)
    # What was still queued is lost, and known to be.
    assert pipeline.dropped == count + 1


def test_a_closed_reader_is_survived(pipe: Pipe) -> None:
    """EPIPE drops the line and nothing else happens."""
    out = LogStream(pipe.stream, notice=notice)
    pipe.close_reader()
    out.write("one")
    out.write("two")
    out.close(timeout=30)
    assert out.dropped == 2


def test_a_closed_stream_does_not_lead_into_another_file(pipe: Pipe) -> None:
    """Closing sys.stdout does not redirect the log to whatever gets its number next."""
    out = LogStream(pipe.stream, notice=notice)
    pipe.stream.close()
    out.write("still here")
    assert pipe.read_until("\n") == "still here\n"
    out.close(timeout=30)
    assert out.dropped == 0


def test_close_writes_what_is_queued(pipe: Pipe) -> None:
    """Nothing is lost at an orderly end, and nothing is taken after it."""
    out = LogStream(pipe.stream, notice=notice)
    for number in range(100):
        out.write(str(number))
    out.close(timeout=30)
    out.write("late")
    pipe.stream.close()
    assert pipe.read_until("late").split() == [str(number) for number in range(100)]
    assert out.dropped == 1


def test_a_pipe_made_non_blocking_by_others_is_waited_for(pipe: Pipe) -> None:
    """EAGAIN is not an error: the thread waits, and every line arrives whole."""
    os.set_blocking(pipe.stream.fileno(), False)
    out = LogStream(pipe.stream, notice=notice)
    count = pipe.capacity // len(LINE) + 100
    for _ in range(count):
        out.write(LINE)
    out.write("end")
    received = pipe.read_until("end\n").splitlines()
    out.close(timeout=30)
    assert received == [LINE] * count + ["end"]


class FullDisk(io.StringIO):
    """A stream without a descriptor that has no room until told."""

    def __init__(self) -> None:
        super().__init__()
        self.is_full = True
        self.refused = threading.Event()

    def write(self, text: str) -> int:
        """Refuse, or take ``text``."""
        if self.is_full:
            self.refused.set()
            raise OSError(errno.ENOSPC, "no space left on device")
        return super().write(text)


def test_writing_goes_on_once_there_is_room() -> None:
    """After ENOSPC the next lines are written, with a word on how many were lost."""
    disk = FullDisk()
    out = LogStream(disk, notice=notice)
    out.write("lost one")
    assert disk.refused.wait(30)
    disk.is_full = False
    out.write("kept")
    out.close(timeout=30)
    assert disk.getvalue() == "kept\nlost 1\n"
    assert out.dropped == 1


def test_any_character_can_be_written(pipe: Pipe) -> None:
    """A broken surrogate is escaped instead of raising."""
    out = LogStream(pipe.stream, notice=notice)
    out.write("ä\ud800")
    out.close(timeout=30)
    pipe.stream.close()
    assert pipe.read_until("\n") == "ä\\ud800\n"
