"""[refresh] How many replies in a row tell that a database has all the older ones, too.

The hard idea: what a database forgets are its last commits. If it has those of many replies in a
row, it has every commit before them; only a commit much later than its reply could be missing.
"""

from __future__ import annotations

from datetime import datetime, timedelta

# A reply is committed within seconds, or, where the database is away, before others are sent: its
# commit is tried again every 5 s. Neither so many replies nor so long a time come in between.
_ENOUGH = 5_000
_LATEST_COMMIT = timedelta(minutes=2)


class Stretch:
    """Replies in a row of which the database has everything."""

    def __init__(self) -> None:
        self._count = 0
        self._newest: datetime | None = None
        self._oldest: datetime | None = None

    def add(self, sent_at: datetime) -> None:
        """Take in one more; they come newest first, give or take what was in flight at once."""
        self._count += 1
        self._newest = max(sent_at, self._newest or sent_at)
        self._oldest = min(sent_at, self._oldest or sent_at)

    def is_enough(self) -> bool:
        """Tell whether a commit can hardly be younger than all of these and its reply older."""
        if self._newest is None or self._oldest is None:
            return False
        return self._count >= _ENOUGH and self._newest - self._oldest >= _LATEST_COMMIT
