"""What the probes are told (port: ``daemon.sidecar.ops.Health``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class DaemonHealth:
    """Started, ready, alive: answered from memory."""

    def __init__(
        self,
        *,
        cached: Callable[[], int],
        database: Callable[[], str | None],
        serves: bool = True,
        keys: Callable[[], str | None] = lambda: None,
    ) -> None:
        """``serves``: it is there for callers, and so not ready while it has nothing for them.

        ``keys`` says which encryption keys are missing, if any are: what is cached can be served.
        """
        self._keys = keys
        self._cached = cached
        self._serves = serves
        self._database = database
        self._started = False
        self._stopping = False

    @property
    def started(self) -> bool:
        """Tell whether the first full start is done."""
        return self._started

    def has_started(self) -> None:
        """Note that the first full start is done."""
        self._started = True

    def is_stopping(self) -> None:
        """Note that no new work is wanted."""
        self._stopping = True

    def ready(self) -> Sequence[str]:
        """Return why tokens cannot be served now."""
        if self._stopping:
            return ["stopping"]
        if not self._started:
            away = self._database()
            return [f"starting: {away}" if away else "starting"]
        if not self._serves or self._cached():
            return []
        away, trouble = self._database(), self._keys()
        reasons = [f"no token is cached and the database is away: {away}"] if away else []
        return [*reasons, f"no token is cached, and {trouble}"] if trouble else reasons

    def alive(self) -> Sequence[str]:
        """Return nothing: that this runs is the proof."""
        return []
