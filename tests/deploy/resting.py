"""What daemons take while nothing is asked of them: `python -m tests.deploy.resting`.

One of each role on one database, with ten connections. Where this is root, the serving one is in a
memory cgroup: what the kubelet would count, its files being in memory for another process already.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.deploy.footprint import footprint
from tests.support.postgres import running_cluster
from tests.support.token_server import TokenServer
from tests.support.tokenward import Tokenward

CONNECTIONS = 10
_CGROUPS = Path("/sys/fs/cgroup")


class Cgroup:
    """A memory cgroup of version 1 or 2."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def launcher(self) -> tuple[str, ...]:
        """Return what starts a process in it."""
        return ("/bin/sh", "-c", f'echo $$ > {self.directory}/cgroup.procs; exec "$@"', "sh")

    def working_set(self) -> float:
        """Return what is used and was looked at lately, in MiB: the kubelet's number."""
        used = next(
            self.directory / name
            for name in ("memory.current", "memory.usage_in_bytes")
            if (self.directory / name).exists()
        )
        lines = (self.directory / "memory.stat").read_text().splitlines()
        stat = dict(line.split() for line in lines)
        inactive = int(stat.get("total_inactive_file", stat["inactive_file"]))
        return (int(used.read_text()) - inactive) / 2**20


@contextmanager
def cgroup() -> Iterator[Cgroup | None]:
    """A cgroup that goes away again; ``None`` where none can be made."""
    version1 = _CGROUPS / "memory"
    directory = (version1 if version1.is_dir() else _CGROUPS) / "tokenward-resting"
    try:
        directory.mkdir()
    except OSError:
        yield None
        return
    try:
        yield Cgroup(directory) if (directory / "memory.stat").exists() else None
    finally:
        directory.rmdir()


async def look(directory: Path, database_url: str, group: Cgroup | None, seconds: float) -> None:
    """Start, connect, rest, print."""
    async with TokenServer(expires_in=3600) as server:
        settings: dict[str, Any] = {
            "database": {"url": database_url},
            "encryption": {
                "keys": [{"id": "1", "secret": base64.b64encode(bytes(32)).decode()}],
            },
            "providers": {"acme": server.provider()},
        }
        daemons = {}
        for role in ("all", "refresh", "serve"):
            daemons[role] = Tokenward(directory / role, settings)
            daemons[role].arguments = ("--role", role)
        if group:
            daemons["serve"].launcher = group.launcher
        async with daemons["all"] as first, daemons["refresh"], daemons["serve"] as serving:
            for number in range(CONNECTIONS):
                name = f"acme-{number}"
                await first.create("acme", id=name, tokens={"refresh_token": name})
                await first.until_served(name)
                await serving.until_served(name)
            found = await asyncio.gather(*(_rest(each, seconds) for each in daemons.values()))
            for role, text in zip(daemons, found, strict=True):
                sys.stdout.write(f"{role:8} {text}\n")
            if group:
                sys.stdout.write(
                    f"serve    working set of its cgroup {group.working_set():.1f} MiB\n"
                )


async def _rest(daemon: Tokenward, seconds: float) -> str:
    assert daemon.process is not None
    return str(await asyncio.to_thread(footprint, daemon.process.pid, seconds=seconds))


def main(arguments: Sequence[str]) -> None:
    """Look for a while."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    seconds = parser.parse_args(arguments).seconds
    with (
        tempfile.TemporaryDirectory() as name,
        running_cluster(Path(name) / "postgres") as cluster,
        cgroup() as group,
    ):
        asyncio.run(look(Path(name), cluster.create_database(), group, seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
