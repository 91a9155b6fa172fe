"""The machines of a run: what outlives a process (clock, disk, links), and its process if any."""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation.clocks import MachineClock
from tests.simulation.disk_model import Disk
from tests.simulation.loop import Life


@dataclass(eq=False, kw_only=True)
class Machine:
    """One machine. ``volume`` rises when its disk is replaced by an empty one.

    ``cuts`` counts what keeps it from the database now; ``back_since`` is when the last thing
    ended that kept its process from working, ``started_at`` when that was started.
    """

    name: str
    clock: MachineClock
    disk: Disk
    life: Life | None = None
    volume: int = 0
    cuts: int = 0
    back_since: float = 0.0
    started_at: float = 0.0
    statement_faults: int = 0

    @property
    def is_working(self) -> bool:
        """Tell whether a process runs here and reaches the database."""
        life = self.life
        return life is not None and life.is_running and self.cuts == 0
