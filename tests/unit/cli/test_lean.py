"""A package that is kept out."""

from __future__ import annotations

import sys

import pytest

from daemon.cli.lean import absent

NAME = "this"


def test_an_absent_package_cannot_be_imported_meanwhile() -> None:
    """The import fails as for a package that is not installed, and works afterwards."""
    sys.modules.pop(NAME, None)
    with absent(NAME), pytest.raises(ImportError):
        __import__(NAME)
    assert NAME not in sys.modules


def test_what_is_imported_already_stays() -> None:
    """Nobody who uses it loses it."""
    with absent("sys"):
        assert sys.modules["sys"] is sys
    assert sys.modules["sys"] is sys


def test_absent_also_ends_with_an_error() -> None:
    """An import that fails leaves nothing behind."""
    sys.modules.pop(NAME, None)
    message = "elsewhere"
    with pytest.raises(RuntimeError), absent(NAME):
        raise RuntimeError(message)
    assert NAME not in sys.modules
