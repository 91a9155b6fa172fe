"""Which PostgreSQL may serve which cluster, and what is said where none can."""

from __future__ import annotations

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daemon.domain.errors import StorageError
from daemon.persistence.embedded.binaries import Binaries, major_in, newest_first
from daemon.persistence.embedded.cluster import server_command, server_settings
from daemon.persistence.embedded.identity import Identity, RunAs, spawn
from daemon.persistence.embedded.installation import Trial, advice, fits
from daemon.persistence.embedded.server import restart_delay

ROOT = Path("/state/postgres")
ACCOUNT = Identity(run_as=RunAs.ACCOUNT, uid=101, gid=104, owner=101, owner_group=104)


def trial(major: int | None, complaint: str = "") -> Trial:
    """Return a trial of one directory."""
    return Trial(directory=Path("/pg/bin"), identity=ACCOUNT, major=major, complaint=complaint)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 15),
        ("postgres (PostgreSQL) 18.6", 18),
        ("postgres (PostgreSQL) 19beta1", 19),
        ("postgres (EnterpriseDB) 15.1", None),
        ("", None),
    ],
)
def test_the_major_version_is_read_from_the_version_line(line: str, expected: int | None) -> None:
    """Distributions append their own words; another product is no PostgreSQL."""
    assert major_in(line) == expected


def test_versions_are_sorted_as_numbers() -> None:
    """Ten is newer than nine."""
    directories = [Path(f"/usr/lib/postgresql/{version}/bin") for version in ("9.6", "15", "10")]
    assert [d.parent.name for d in newest_first(directories)] == ["15", "10", "9.6"]


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        (15, None, True),
        (18, None, True),
        (14, None, False),
        (None, None, False),
        (15, 15, True),
        (18, 15, False),
        (14, 14, True),
        (None, 15, False),
    ],
)
def test_a_cluster_is_served_by_its_own_major_version_only(
    found: int | None,
    wanted: int | None,
    expected: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """A new cluster takes any supported version, an existing one exactly its own."""
    assert fits(trial(found), wanted) is expected


@pytest.mark.parametrize(
    ("trials", "major", "expected"),
    [
        ([], None, "no PostgreSQL 15 or newer is installed"),
        ([], 16, "no PostgreSQL 16 is installed"),
        ([trial(14)], None, "only PostgreSQL 14 is installed: install PostgreSQL 15 or newer"),
        ([trial(15), trial(18), trial(15)], 16, "made by PostgreSQL 16, but only 15, 18 is"),
        ([trial(18)], 16, "Debian: postgresql-16"),
        ([trial(None, "no permission")], None, "as uid 101: no permission"),
        ([trial(None)], None, "ordinary user"),
    ],
)
def test_the_advice_names_the_cause_and_the_way_out(
    trials: list[Trial], major: int | None, expected: str
) -> None:
    """Whatever is missing, the text says so and offers the external database too."""
    text = advice(trials, root=ROOT, major=major)
    assert expected in text
    assert "database.url" in text


def test_the_server_listens_on_its_socket_only() -> None:
    """No TCP address, a private socket, and durable whatever the cluster's files say."""
    settings = server_settings(major=15, name="n", sockets=Path("/s"), durable=True)
    assert settings["listen_addresses"] == ""
    assert settings["unix_socket_directories"] == "/s"
    assert settings["unix_socket_permissions"] == "0700"
    assert [settings[n] for n in ("fsync", "synchronous_commit", "full_page_writes")] == ["on"] * 3
    assert "io_method" not in settings


def test_only_a_version_that_knows_a_setting_gets_it() -> None:
    """An unknown setting would keep an older server from starting."""
    assert server_settings(major=18, name="n", sockets=Path("/s"), durable=False)["io_method"]


def test_the_command_line_gives_every_setting() -> None:
    """Settings on the command line override the cluster's files."""
    command = server_command(
        Binaries(directory=Path("/pg/bin"), major=15), ROOT, {"port": "1", "jit": "off"}
    )
    assert command == [Path("/pg/bin/postgres"), "-D", ROOT, "-c", "port=1", "-c", "jit=off"]


@pytest.mark.parametrize(
    ("restarts", "seconds"), [(0, 0.1), (1, 0.2), (5, 3.2), (9, 30), (999, 30)]
)
def test_restarts_come_slower_and_slower_up_to_a_bound(restarts: int, seconds: float) -> None:
    """The first restart is prompt, a server that cannot live is not hammered."""
    assert restart_delay(restarts) == pytest.approx(seconds)


def test_a_server_is_not_started_from_a_passing_thread() -> None:
    """The kernel would end it with the thread: refused loudly instead of restarted forever."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        started = thread.submit(
            spawn,
            ["/bin/true"],
            identity=ACCOUNT,
            directory=ROOT,
            death_signal=signal.SIGINT,
            output=subprocess.DEVNULL,
        )
        with pytest.raises(StorageError, match="main thread"):
            started.result()
