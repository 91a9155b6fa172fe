"""What happened in a run: lines in order, counts of what was met, and one hash of all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from hashlib import blake2b


class ViolationError(AssertionError):
    """A proof obligation does not hold. ``obligation`` is its name (``PO1`` … ``PO10``)."""

    def __init__(self, obligation: str, what: str) -> None:
        super().__init__(f"{obligation}: {what}")
        self.obligation = obligation


class Trace:
    """The lines of one run. ``met`` counts faults, branches and excuses by name."""

    def __init__(self, now: Callable[[], float], steps: Callable[[], int]) -> None:
        self.lines: list[str] = []
        self.met: Counter[str] = Counter()
        self._now = now
        self._steps = steps

    def tell(self, who: str, what: str) -> None:
        """Add a line."""
        self.lines.append(f"{self._now():12.6f} {self._steps():6d} {who:10s} {what}")

    def count(self, name: str) -> None:
        """Count that something was met."""
        self.met[name] += 1

    def digest(self) -> str:
        """Return what two equal runs have in common, and nothing else."""
        return blake2b("\n".join(self.lines).encode(), digest_size=12).hexdigest()
