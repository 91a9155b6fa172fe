"""Keeps out of a long-lived process what only a terminal needs.

structlog imports rich where it is installed, for tracebacks in colour: 3 MB in every sidecar, and
they would show the values of variables, tokens among them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast


@contextmanager
def absent(package: str) -> Iterator[None]:
    """Let what is imported meanwhile find that ``package`` is not installed.

    One that is imported already stays.
    """
    if package in sys.modules:
        yield
        return
    # What the import system takes as "not there" (Python's reference, 5.3.1).
    cast("dict[str, None]", sys.modules)[package] = None
    try:
        yield
    finally:
        del sys.modules[package]
