"""Everything that is in a database, as text: for what must not be there, and what must not move."""

from __future__ import annotations

import asyncpg

_TABLES = "SELECT format('%I', tablename) FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"


async def dump(url: str) -> dict[str, list[str]]:
    """Return the rows of each table, in order; octets appear as hexadecimal digits."""
    connection = await asyncpg.connect(url)
    try:
        names = [str(row[0]) for row in await connection.fetch(_TABLES)]
        return {
            name: [
                str(row[0])
                for row in await connection.fetch(f"SELECT t::text FROM {name} t ORDER BY 1")
            ]
            for name in names
        }
    finally:
        await connection.close()
