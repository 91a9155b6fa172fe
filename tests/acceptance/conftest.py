"""What most acceptance tests begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.postgres import Cluster
from tests.support.tokenward import Tokenward


@pytest.fixture
def daemon(tmp_path: Path, postgres_cluster: Cluster, database_url: str) -> Tokenward:
    """A daemon on an empty external database, not yet started.

    Using it as a context manager starts it and ends it before its database is dropped.
    """
    del postgres_cluster
    return Tokenward(tmp_path, {"database": {"url": database_url}})
