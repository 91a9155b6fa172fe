"""A database that refuses to store a reply: it is neither lost nor asked for again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.persistence.cipher import TokenCipher
from tests.support.polling import eventually
from tests.support.refreshing_replica import running, strict_provider
from tests.support.strict_server import StrictServer

REFUSES = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'access-1-2 refused' USING ERRCODE = '{}'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON token_sets EXECUTE FUNCTION refuse();
"""


@pytest.mark.parametrize(
    ("code", "is_told"), [("42501", True), ("53100", False), ("25006", False), ("XX001", False)]
)
async def test_a_refused_commit(
    migrated_url: str, tmp_path: Path, cipher: TokenCipher, *, code: str, is_told: bool
) -> None:
    """Memory serves the new token, and it is stored when the database lets it."""
    async with StrictServer() as server:
        provider = strict_provider(server)
        async with running(migrated_url, tmp_path, cipher, provider) as here:
            await here.add("a", server.grant())
            await here.database.execute(REFUSES.format(code))
            with capture_logs() as logs:
                flight = asyncio.create_task(here.refresh("a"))

                async def served() -> bool:
                    entry = here.cache.get("a")
                    return entry is not None and entry.generation == 2

                await eventually(served)
                assert (await here.stored("a"))[0] == 1
                assert len(here.journal) == 1
                await here.database.execute("DROP TRIGGER refuse ON token_sets")
                assert await flight is None
            assert server.is_good((await here.stored("a"))[1])
            assert server.sent_twice() == {}
            told = [log for log in logs if log["event"] == "refresh_reply_not_stored"]
            assert len(told) == int(is_told)
            assert "access-1-2" not in str(told)
