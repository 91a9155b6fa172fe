"""The supervisor against real PostgreSQL: every way to start, to die and to come back."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.errors import StorageError
from daemon.persistence.embedded import launch
from daemon.persistence.embedded.binaries import installed_directories
from daemon.persistence.embedded.cluster import SUPERUSER
from daemon.persistence.embedded.identity import (
    Identity,
    RunAs,
    possible_identities,
    spawn,
)
from daemon.persistence.embedded.layout import Layout, bound_log, open_log
from daemon.persistence.embedded.processes import cluster_name, running
from daemon.persistence.embedded.server import EmbeddedPostgres, Options
from tests.support.postgres import QUICK, Cluster, running_cluster

IDENTITIES = possible_identities()
DIRECTORIES = list(installed_directories())
NOBODY = 65534
# Far beyond what any step takes on a busy machine; only a hang reaches it.
PATIENCE = 60.0
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def passable(directory: Path) -> bool:
    """Tell whether every account may go there."""
    return all(place.stat().st_mode & stat.S_IXOTH for place in (directory, *directory.parents))


with_open_programs = pytest.mark.skipif(
    not any(map(passable, DIRECTORIES)),
    reason="PostgreSQL's programs lie in a directory that is closed to other accounts",
)


def server(state_dir: Path, options: Options = QUICK) -> EmbeddedPostgres:
    """Return a supervisor for ``state_dir``."""
    return EmbeddedPostgres(state_dir, entropy=system_entropy, clock=SystemClock(), options=options)


def with_identity(identity: Identity) -> Options:
    """Return options that leave one identity to choose."""
    return Options(durable=False, identities=lambda: (identity,))


async def query(url: str, statement: str) -> object:
    """Run one statement on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - nothing tells us when a process has ended
            await asyncio.sleep(0.005)


@asynccontextmanager
async def watched(postgres: EmbeddedPostgres) -> AsyncIterator[None]:
    """Watch over a server as the daemon does."""
    task = asyncio.create_task(postgres.watch())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def postmaster(postgres: EmbeddedPostgres) -> int:
    """Return the pid of a server that was started."""
    assert postgres.pid is not None
    return postgres.pid


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended; a zombie has."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def events(logs: Sequence[Mapping[str, object]]) -> list[object]:
    """Return the names of the events that were logged."""
    return [entry["event"] for entry in logs]


def mode(path: Path) -> int:
    """Return the permission bits of a path."""
    return stat.S_IMODE(path.stat().st_mode)


def status(pid: int) -> str:
    """Return what the kernel says of a process."""
    return Path(f"/proc/{pid}/status").read_text()


@contextmanager
def process(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that does not outlive the test."""
    with subprocess.Popen(command, **options) as running_process:  # noqa: S603 - no shell
        try:
            yield running_process
        finally:
            running_process.kill()


def modes_open_to_others(directory: Path) -> list[Path]:
    """Return what group or others may use, symbolic links left out."""
    found = [directory, *directory.rglob("*")]
    return [p for p in found if not p.is_symlink() and stat.S_IMODE(p.lstat().st_mode) & 0o077]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with a stopped cluster, to copy: making one takes a second."""
    directory = tmp_path_factory.mktemp("made")
    with running_cluster(directory, options=QUICK, keep=True):
        return directory


@pytest.fixture
def state_dir(made_once: Path, tmp_path: Path) -> Path:
    """A state directory with an existing, stopped cluster."""
    return Path(shutil.copytree(made_once, tmp_path / "state"))


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A state directory that every account can pass through, as an operator may make it."""
    directory = Path(tempfile.mkdtemp(prefix="tw-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda d: d.parts[-2])
async def test_every_installed_postgres_serves(directory: Path, tmp_path: Path) -> None:
    """System packages and the wheel alike: made, started, asked, stopped, started again."""
    options = Options(directories=lambda: (directory,))
    async with server(tmp_path, options) as postgres:
        await query(postgres.url(), "CREATE TABLE kept AS SELECT 1")
    async with server(tmp_path, options) as postgres:
        assert await query(postgres.url(), "SELECT count(*) FROM kept") == 1
        assert await query(postgres.url(), "SHOW fsync") == "on"
        assert await query(postgres.url(), "SHOW listen_addresses") == ""
        assert await query(postgres.url(), "SELECT current_database()") == "tokenward"
    assert not running(cluster_name(Layout(tmp_path).data))


async def test_the_daemon_is_no_superuser_and_needs_its_password(state_dir: Path) -> None:
    """SQL injected into the daemon cannot leave the database; the socket alone opens nothing."""
    async with server(state_dir) as postgres:
        url = postgres.url()
        assert await query(url, "SELECT rolsuper FROM pg_roles WHERE rolname = user") is False
        assert await query(postgres.url(role=SUPERUSER), "SHOW is_superuser") == "on"
        password = Layout(state_dir).read_password()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await query(url.replace(password, "wrong"), "SELECT 1")
    assert password not in Layout(state_dir).log.read_text()


@pytest.mark.parametrize(
    "identity", [i for i in IDENTITIES if i.run_as != RunAs.ACCOUNT], ids=lambda i: str(i.run_as)
)
async def test_nothing_is_opened_to_others(identity: Identity, tmp_path: Path) -> None:
    """As anybody: below the state directory all is private, above it nothing changes."""
    above = [(p, p.stat().st_mode) for p in tmp_path.parents]
    state_dir = tmp_path / "new" / "state"
    async with server(state_dir, with_identity(identity)) as postgres:
        assert await query(postgres.url(), "SELECT 1") == 1
        assert modes_open_to_others(tmp_path / "new") == []
        assert Layout(state_dir).data.stat().st_uid == identity.owner
        assert Layout(state_dir).log.stat().st_uid == os.geteuid()
    assert [(p, p.stat().st_mode) for p in tmp_path.parents] == above


@as_root
@with_open_programs
async def test_an_account_serves_where_it_can_reach_the_state(reachable: Path) -> None:
    """With state that others may pass through, the account needs no right of root's."""
    identity = next(i for i in IDENTITIES if i.run_as == RunAs.ACCOUNT)
    async with server(reachable, with_identity(identity)) as postgres:
        assert await query(postgres.url(), "SELECT 1") == 1
        who = status(postmaster(postgres))
    assert f"Uid:\t{identity.uid}\t{identity.uid}" in who
    assert "CapEff:\t0000000000000000" in who
    assert mode(reachable) == 0o711
    assert modes_open_to_others(reachable / "postgres") == []


@as_root
async def test_an_account_that_cannot_reach_the_state_gets_advice(tmp_path: Path) -> None:
    """No directory is opened for it: the error says what to change."""
    identity = next(i for i in IDENTITIES if i.run_as == RunAs.ACCOUNT)
    before = mode(tmp_path)
    with pytest.raises(StorageError, match="state_dir that user can reach"):
        await server(tmp_path, with_identity(identity)).start()
    assert mode(tmp_path) == before


async def test_where_nothing_can_be_run_every_refusal_is_told(tmp_path: Path) -> None:
    """A broken installation, tried as everybody: the error lists what was tried and the way out."""
    broken = tmp_path / "bin"
    broken.mkdir()
    for name in ("postgres", "initdb"):
        (broken / name).write_text("no program")
    options = Options(directories=lambda: (broken,))
    with pytest.raises(StorageError, match="PostgreSQL cannot be run here") as refused:
        await server(tmp_path / "state", options).start()
    assert str(refused.value).count(f"{broken} as ") == len(IDENTITIES)
    assert "database.url" in str(refused.value)


@as_root
async def test_a_cluster_goes_from_one_identity_to_another(state_dir: Path) -> None:
    """A kernel update may forbid user namespaces, or allow them: the data is given on."""
    usable = [i for i in IDENTITIES if i.run_as != RunAs.ACCOUNT]
    for identity in (*usable, *usable):
        async with server(state_dir, with_identity(identity)) as postgres:
            await query(postgres.url(), "CREATE TABLE IF NOT EXISTS kept AS SELECT 1")
            assert await query(postgres.url(), "SELECT count(*) FROM kept") == 1


async def test_an_existing_cluster_starts_within_a_second(state_dir: Path) -> None:
    """Durable, as in production, and with everything that a start checks."""
    options, clock = Options(), SystemClock()
    async with server(state_dir, options):
        pass
    durations = []
    for _ in range(3):
        before = clock.boottime()
        async with server(state_dir, options):
            durations.append(clock.boottime() - before)
    assert min(durations) < 1.0


async def test_a_second_daemon_is_refused_and_disturbs_nothing(state_dir: Path) -> None:
    """One state directory, one daemon: the second hears who has it."""
    async with server(state_dir) as postgres:
        second = server(state_dir)
        with pytest.raises(StorageError, match=rf"process {os.getpid()}\) uses {state_dir}"):
            await second.start()
        await second.stop()
        assert await query(postgres.url(), "SELECT 1") == 1


async def test_start_and_stop_may_be_repeated(state_dir: Path) -> None:
    """A second start returns the same URL; a second stop does nothing; a start may follow."""
    postgres = server(state_dir)
    await postgres.stop()
    url, pid = await postgres.start(), postgres.pid
    assert (await postgres.start(), postgres.pid) == (url, pid)
    await postgres.stop()
    await postgres.stop()
    assert await postgres.start() == url
    await postgres.stop()


async def test_a_killed_postmaster_comes_back_under_the_same_url(state_dir: Path) -> None:
    """After kill -9 the watch says so, restarts it, and what was committed is there."""
    async with server(state_dir, Options()) as postgres, watched(postgres):
        url, pid = postgres.url(), postmaster(postgres)
        await query(url, "CREATE TABLE kept AS SELECT 1")
        with capture_logs() as logs:
            os.kill(pid, signal.SIGKILL)
            await until(lambda: "embedded_postgres_restarted" in events(logs))
        assert await query(url, "SELECT count(*) FROM kept") == 1
        assert postgres.pid != pid
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("embedded_postgres_died", "warning"),
        ("embedded_postgres_restarted", "warning"),
    ]
    assert logs[0]["exit_status"] == -signal.SIGKILL


async def test_children_that_outlive_the_postmaster_are_ended(state_dir: Path) -> None:
    """A stopped backend keeps the shared memory: it is killed, or no restart would succeed."""
    async with server(state_dir) as postgres, watched(postgres):
        url, pid = postgres.url(), postmaster(postgres)
        connection = await asyncpg.connect(url)
        backend = await connection.fetchval("SELECT pg_backend_pid()")
        os.kill(backend, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: is_gone(backend) and postgres.pid != pid)
        await until(lambda: Layout(state_dir).data.joinpath("postmaster.pid").exists())
        connection.terminate()
        async with asyncio.timeout(PATIENCE):
            assert await retried(url) == 1


async def retried(url: str) -> object:
    """Ask until the server answers."""
    while True:
        try:
            return await query(url, "SELECT 1")
        except (OSError, asyncpg.PostgresError):
            await asyncio.sleep(0.01)


async def test_the_watch_goes_on_while_no_restart_succeeds(state_dir: Path) -> None:
    """A data directory gone and come back: told, tried again, and served again."""
    async with server(state_dir) as postgres, watched(postgres):
        layout = Layout(state_dir)
        away = layout.root / "away"
        layout.cluster.rename(away)
        with capture_logs() as logs:
            os.kill(postmaster(postgres), signal.SIGKILL)
            await until(lambda: events(logs).count("embedded_postgres_restart_failed") > 1)
            away.rename(layout.cluster)
            await until(lambda: "embedded_postgres_restarted" in events(logs))
        assert await query(postgres.url(), "SELECT 1") == 1


async def test_an_orphaned_server_is_ended_by_the_next_daemon(state_dir: Path) -> None:
    """A live postmaster without a daemon: it shuts down, and its data is taken over."""
    orphaned = server(state_dir)
    await orphaned.start()
    await query(orphaned.url(), "CREATE TABLE kept AS SELECT 1")
    pid = postmaster(orphaned)
    assert orphaned._lock is not None
    os.close(orphaned._lock)  # As the kernel does when a daemon is killed.
    orphaned._lock = None
    async with server(state_dir) as postgres:
        assert is_gone(pid)
        assert await query(postgres.url(), "SELECT count(*) FROM kept") == 1
    await orphaned.stop()  # Reaps the process.


async def test_somebody_elses_server_on_our_data_is_left_alone(state_dir: Path) -> None:
    """What an operator started by hand is named in the error, not killed."""
    async with server(state_dir) as postgres:
        installation = postgres._installation
    assert installation is not None
    layout = Layout(state_dir)
    with open_log(layout) as log:
        by_hand = spawn(
            [
                *(installation.binaries.program("postgres"), "-D", layout.data),
                *("-c", "listen_addresses=", "-c", f"unix_socket_directories={state_dir}"),
            ],
            identity=installation.identity,
            directory=state_dir,
            death_signal=signal.SIGINT,
            output=log,
        )
    with by_hand as foreign:
        pid_file = layout.data / "postmaster.pid"
        await until(lambda: pid_file.exists() and "ready" in pid_file.read_text())
        with pytest.raises(StorageError, match=f"process {foreign.pid} serves"):
            await server(state_dir).start()
        assert foreign.poll() is None
        foreign.send_signal(signal.SIGINT)


async def test_a_pid_file_whose_pid_is_somebody_elses_is_no_obstacle(state_dir: Path) -> None:
    """After a crash the pid may belong to a bystander, who is neither believed nor touched."""
    with process(["/bin/sleep", "600"]) as bystander:
        pid_file = Layout(state_dir).data / "postmaster.pid"
        pid_file.write_text(
            f"{bystander.pid}\n{pid_file.parent}\n1700000000\n5432\n\n\n1 1\nready\n"
        )
        async with server(state_dir) as postgres:
            assert await query(postgres.url(), "SELECT 1") == 1
        assert bystander.poll() is None


async def test_a_cluster_half_made_is_made_again(tmp_path: Path) -> None:
    """A start cancelled in the middle of initdb leaves no cluster, no process and no lock."""
    layout, first = Layout(tmp_path), server(tmp_path)
    start = asyncio.create_task(first.start())
    await until((layout.partial / "data" / "PG_VERSION").exists)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert layout.partial.exists()
    assert not layout.cluster.exists()
    async with server(tmp_path) as postgres:
        assert await query(postgres.url(), "SELECT 1") == 1
        assert not layout.partial.exists()


async def test_a_cluster_of_another_version_is_not_touched(state_dir: Path) -> None:
    """PostgreSQL reads its own major version only: the error says which one to install."""
    (Layout(state_dir).data / "PG_VERSION").write_text("9\n")
    with pytest.raises(StorageError, match="made by PostgreSQL 9, but only"):
        await server(state_dir).start()


@pytest.mark.parametrize("lost", ["password", "data/PG_VERSION"])
async def test_a_damaged_cluster_is_named_and_kept(state_dir: Path, lost: str) -> None:
    """What cannot be used is never replaced by an empty database behind the operator's back."""
    layout = Layout(state_dir)
    (layout.cluster / lost).unlink()
    with pytest.raises(StorageError, match="from a backup"):
        await server(state_dir).start()
    assert layout.cluster.exists()


async def test_a_failed_start_says_why_and_leaves_the_way_free(state_dir: Path) -> None:
    """PostgreSQL's own words reach the operator; the next start may succeed."""
    bad = Options(durable=False, settings={"shared_buffers": "nonsense"})
    with pytest.raises(StorageError, match='invalid value for parameter "shared_buffers"'):
        await server(state_dir, bad).start()
    async with server(state_dir) as postgres:
        assert await query(postgres.url(), "SELECT 1") == 1


async def test_a_long_state_dir_gets_a_private_socket_elsewhere(tmp_path: Path) -> None:
    """A socket's path is short: the socket moves to a directory of our own, and goes with us."""
    state_dir = tmp_path / ("x" * 120)
    async with server(state_dir) as postgres:
        sockets = postgres._sockets()
        assert not sockets.is_relative_to(state_dir)
        assert mode(sockets) == 0o700
        assert await query(postgres.url(), "SELECT 1") == 1
    assert not sockets.exists()


def test_the_log_is_bounded_while_it_is_written(tmp_path: Path) -> None:
    """The last part stays readable under another name; the writer goes on at the beginning."""
    layout = Layout(tmp_path)
    with open_log(layout) as log:
        log.write(b"old\n" * 100)
        log.flush()
        bound_log(layout, 1000)
        bound_log(layout, 100)
        log.write(b"new\n")
    assert layout.log.read_bytes() == b"new\n"
    assert layout.log.with_suffix(".log.1").read_bytes() == b"old\n" * 100
    assert modes_open_to_others(layout.log) == []


def daemon_command(state_dir: Path) -> list[str]:
    """Return the command of a daemon reduced to its embedded PostgreSQL."""
    return [sys.executable, "-m", "tests.support.embedded_daemon", str(state_dir)]


def first_line(output: IO[bytes] | None) -> dict[str, object]:
    """Return what the daemon says once its server stands."""
    assert output is not None
    line: dict[str, object] = json.loads(output.readline())
    return line


async def test_a_killed_daemon_takes_its_server_along(tmp_path: Path) -> None:
    """After kill -9 its PostgreSQL ends by itself, and the next daemon has the data."""
    with process(daemon_command(tmp_path), **PIPES) as daemon:
        pid = first_line(daemon.stdout)["pid"]
        daemon.kill()
    assert isinstance(pid, int)
    async with server(tmp_path) as postgres:
        assert await query(postgres.url(), "SELECT word FROM kept") == "kept"
    assert is_gone(pid)


async def test_a_server_without_its_daemon_ends_unasked(state_dir: Path) -> None:
    """Nobody starts again: the kernel's signal alone shuts PostgreSQL down cleanly."""
    with process(daemon_command(state_dir), **PIPES) as daemon:
        first_line(daemon.stdout)
        name = cluster_name(Layout(state_dir).data)
        assert running(name)
        daemon.kill()
    await until(lambda: not running(name))
    assert "database system is shut down" in Layout(state_dir).log.read_text()


@as_root
def test_an_ordinary_user_needs_nothing_special(reachable: Path) -> None:
    """The same daemon as somebody else's process, on a directory of theirs, twice."""
    os.chown(reachable, NOBODY, NOBODY)
    # The right to search directories lets that user reach this checkout, wherever it lies.
    become = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), "9"]
    become += [RunAs.SEARCHING_ACCOUNT, str(NOBODY), str(NOBODY), str(Path.cwd())]
    command = [*become, *daemon_command(reachable)]
    for _ in range(2):
        done = subprocess.run(  # noqa: S603 - no shell
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        line = json.loads(done.stdout)
        assert (line["uid"], line["word"]) == (NOBODY, "kept")
    assert {p.lstat().st_uid for p in reachable.rglob("*")} == {NOBODY}


async def test_databases_of_the_test_cluster_are_apart(
    postgres_cluster: Cluster, database_url: str
) -> None:
    """Every database starts empty or as its template, and is gone after it was dropped."""
    await query(database_url, "CREATE TABLE mine AS SELECT 1")
    other = postgres_cluster.create_database()
    assert await query(other, "SELECT to_regclass('mine') IS NULL")
    copy = postgres_cluster.create_database(database_url.partition("?")[0].rpartition("/")[2])
    assert await query(copy, "SELECT count(*) FROM mine") == 1
    for url in (other, copy):
        postgres_cluster.drop_database(url)
        with pytest.raises(asyncpg.InvalidCatalogNameError):
            await query(url, "SELECT 1")
