"""The file of a sink, on a real file system: whole or not at all, and nobody else's."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.domain.sink import Present, Sink
from daemon.upkeep.sink_files import SinkError, SinkFile

ROOT = Path(__file__).parents[2]
# Large enough for a kill to find a write under way.
_SIZE = 200_000
_WRITER = f"""
from pathlib import Path
import sys
from daemon.domain.sink import Sink
from daemon.upkeep.sink_files import SinkFile
file = SinkFile(Sink(connection="acme-1", path=Path(sys.argv[1])))
while True:
    for letter in b"ab":
        file.write(bytes([letter]) * {_SIZE})
        print(".", flush=True)
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def sink(tmp_path: Path) -> Sink:
    """A sink in a directory of its own."""
    return Sink(connection="acme-1", path=tmp_path / "token", mode=0o640)


def names(sink: Sink) -> list[str]:
    """Return what is in the sink's directory."""
    return sorted(path.name for path in sink.path.parent.iterdir())


def test_written_looked_at_and_removed(sink: Sink) -> None:
    """The file has the content and the mode, and leaves nothing beside it."""
    file = SinkFile(sink)
    assert file.look() is None
    previous = os.umask(0o077)
    try:
        file.write(b"first")
    finally:
        os.umask(previous)
    assert file.look() == Present(
        content=b"first", mode=0o640, owner=os.geteuid(), group=sink.path.stat().st_gid
    )
    file.write(b"second")
    assert sink.path.read_bytes() == b"second"
    assert names(sink) == ["token"]
    file.remove()
    file.remove()
    assert names(sink) == []


@needs_root
def test_owner_and_group_are_set(sink: Sink) -> None:
    """The file belongs to whom the configuration says."""
    SinkFile(replace(sink, owner=12, group=34)).write(b"x")
    found = sink.path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12, 34, 0o640)


def test_an_open_reader_keeps_the_whole_old_file(sink: Sink) -> None:
    """Who has opened the file reads what was in it, to its end."""
    file = SinkFile(sink)
    file.write(b"old" * 1000)
    with sink.path.open("rb") as reader:
        assert reader.read(3) == b"old"
        file.write(b"new")
        assert reader.read() == b"old" * 999


def test_what_a_crash_left_is_removed(sink: Sink) -> None:
    """A token that was being written does not stay under another name."""
    file = SinkFile(sink)
    (sink.path.parent / file.draft_name).write_bytes(b"half a tok")
    assert file.look() is None
    assert names(sink) == []


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory that everybody may write."""
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o777)
    yield directory
    directory.chmod(0o700)


def test_a_directory_for_everybody_is_refused(shared: Path) -> None:
    """Unless it is sticky, as /tmp is, or the operator says that nobody else reaches it."""
    sink = Sink(connection="acme-1", path=shared / "token")
    with pytest.raises(SinkError, match="written by everybody"):
        SinkFile(sink).write(b"x")
    SinkFile(replace(sink, allow_shared_directory=True)).write(b"x")
    shared.chmod(0o1777)
    SinkFile(sink).write(b"y")
    assert sink.path.read_bytes() == b"y"


def test_links_lead_nowhere(tmp_path: Path) -> None:
    """Neither a link at the path nor one in its directory's place is followed."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    real = tmp_path / "real"
    real.mkdir()
    (real / "token").symlink_to(victim)
    file = SinkFile(Sink(connection="acme-1", path=real / "token"))
    with pytest.raises(SinkError, match="left alone"):
        file.look()
    with pytest.raises(SinkError, match="left alone"):
        file.remove()
    (tmp_path / "link").symlink_to(real)
    with pytest.raises(SinkError, match="symbolic link"):
        SinkFile(Sink(connection="acme-1", path=tmp_path / "link" / "token")).write(b"x")
    # A link where the new file is being written is removed, not followed.
    (real / "token").unlink()
    (real / file.draft_name).symlink_to(victim)
    file.write(b"x")
    assert victim.read_bytes() == b"precious"
    assert (real / "token").read_bytes() == b"x"


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_no_file_is_left_alone(sink: Sink, kind: str) -> None:
    """A directory or a pipe at the path is an error, and looking does not wait for it."""
    if kind == "directory":
        sink.path.mkdir()
    else:
        os.mkfifo(sink.path)
    for work in (SinkFile(sink).look, SinkFile(sink).remove):
        with pytest.raises(SinkError, match="left alone"):
            work()
    assert names(sink) == ["token"]


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    """Directories are not made: nobody could say for whom."""
    file = SinkFile(Sink(connection="acme-1", path=tmp_path / "missing" / "token"))
    with pytest.raises(SinkError, match="no such file or directory"):
        file.write(b"x")


def test_a_full_disk_leaves_the_old_file(sink: Sink) -> None:
    """What does not fit is an error, the file is as it was, and nothing half done stays."""
    SinkFile(sink).write(b"old")
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from daemon.domain.sink import Sink; from daemon.upkeep.sink_files import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try: SinkFile(Sink(connection='a', path=Path(sys.argv[1]))).write(b'n' * 100)\n"
        "except SinkError as error: print(error)"
    )
    command = [sys.executable, "-c", program, str(sink.path)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)  # noqa: S603 - our own interpreter
    assert "file too large" in said.stdout
    assert sink.path.read_bytes() == b"old"
    assert names(sink) == ["token"]


def test_kill_9_in_the_middle(tmp_path: Path) -> None:
    """Whenever the writer is killed the file is the old one or the new one, and so for readers."""
    path = tmp_path / "token"
    whole = {bytes([letter]) * _SIZE for letter in b"ab"}
    looks = 0
    for round_number in range(6):
        with subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", _WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            # Each round a little later in the cycle of writing, syncing and renaming.
            give_up = time.monotonic() + 0.02 + round_number * 0.007
            while time.monotonic() < give_up:
                assert path.read_bytes() in whole
                looks += 1
            writer.send_signal(signal.SIGKILL)
        assert path.read_bytes() in whole
    assert looks > 6
    file = SinkFile(Sink(connection="acme-1", path=path))
    file.write(b"c")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"c", [path])
