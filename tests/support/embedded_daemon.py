"""A daemon reduced to its embedded PostgreSQL, as a process of its own that tests may kill.

``python -m tests.support.embedded_daemon STATE_DIR`` prints one JSON line once the server takes
connections, and stops it when its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import asyncpg

from daemon.domain.clock import SystemClock, system_entropy
from daemon.persistence.embedded.server import EmbeddedPostgres


async def main(state_dir: Path) -> None:
    """Run until standard input ends."""
    server = EmbeddedPostgres(state_dir, entropy=system_entropy, clock=SystemClock())
    async with server:
        connection = await asyncpg.connect(server.url())
        await connection.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 'kept' AS word")
        word = await connection.fetchval("SELECT word FROM kept")
        await connection.close()
        line = {"pid": server.pid, "uid": os.geteuid(), "word": word}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
