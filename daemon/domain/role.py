"""What one process of a fleet is for.

Its hard idea: a process that only serves sends nothing, so its loss loses nothing, and it needs
neither a client secret nor a disk.
"""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """The ``--role`` of ``tokenward run``."""

    ALL = "all"
    """Everything."""
    SERVE = "serve"
    """Hands out tokens; asks those that refresh for what a caller needs now."""
    REFRESH = "refresh"
    """As all, but not there for callers: ready without a token in memory."""

    @property
    def refreshes(self) -> bool:
        """Tell whether this process may ask a provider for tokens, and so needs a journal."""
        return self is not Role.SERVE

    @property
    def serves(self) -> bool:
        """Tell whether this process is there for callers: tokens are read before they ask."""
        return self is not Role.REFRESH
