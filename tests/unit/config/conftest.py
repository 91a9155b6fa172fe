"""A desk for every test that loads a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.configuration import Desk


@pytest.fixture(name="desk")
def _desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)
