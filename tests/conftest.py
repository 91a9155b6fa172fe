"""Fixtures that more than one tier of tests needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import Cluster, running_cluster

# `database`: a Database on a fresh, migrated database.
pytest_plugins = ["tests.support.database"]


@pytest.fixture(scope="session")
def postgres_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real PostgreSQL for this test process."""
    with running_cluster(tmp_path_factory.mktemp("postgres")) as cluster:
        yield cluster


@pytest.fixture
def database_url(postgres_cluster: Cluster) -> Iterator[str]:
    """The URL of an empty database that only this test uses."""
    url = postgres_cluster.create_database()
    yield url
    postgres_cluster.drop_database(url)
