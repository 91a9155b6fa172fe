"""What happened in a run: lines in order, counts of what was met, and one hash of all of it."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from typing import NoReturn

from tests.simulation.loop import SimulatedLoop


class ViolationError(AssertionError):
    """A proof obligation does not hold. ``obligation`` is its name (``PO1`` … ``PO10``)."""

    def __init__(self, obligation: str, what: str) -> None:
        super().__init__(f"{obligation}: {what}")
        self.obligation = obligation


class Trace:
    """The lines of one run. ``met`` counts faults, branches and excuses by name;
    ``violation`` is the first one found.
    """

    def __init__(self, loop: SimulatedLoop) -> None:
        self.lines: list[str] = []
        self.met: Counter[str] = Counter()
        self.violation: ViolationError | None = None
        self._loop = loop

    def tell(self, who: str, what: str) -> None:
        """Add a line."""
        self.lines.append(f"{self._loop.time():12.6f} {self._loop.steps:6d} {who:10s} {what}")

    def count(self, name: str) -> None:
        """Count that something was met."""
        self.met[name] += 1

    def fail(self, obligation: str, what: str) -> NoReturn:
        """End the run. The code under test may catch what is raised: nothing runs after it."""
        error = ViolationError(obligation, what)
        if self.violation is None:
            self.violation = error
            self.tell("VIOLATION", str(error))
            self._loop.end()
        raise error

    def digest(self) -> str:
        """Return what two equal runs have in common, and nothing else."""
        return blake2b("\n".join(self.lines).encode(), digest_size=12).hexdigest()
