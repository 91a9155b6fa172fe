"""What a sweep of faults goes through, and what it found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from tests.support.wire import Fault


class Flow(StrEnum):
    """What the daemon is doing when the database fails."""

    CONNECT = "connect"
    REFRESH = "refresh"
    DISCONNECT = "disconnect"
    START = "start"
    FIRST_START = "first start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run: which request of which flow fails, and how."""

    flow: Flow
    fault: Fault
    number: int


@dataclass
class SweepReport:
    """What a sweep found; ``wrong`` must stay empty."""

    requests: dict[Flow, int] = field(default_factory=dict)
    points: Counter[Flow] = field(default_factory=Counter)
    met: Counter[Flow] = field(default_factory=Counter)
    slowest: dict[Flow, tuple[float, str]] = field(default_factory=dict)
    left_over: int = 0
    wrong: list[str] = field(default_factory=list)

    def took(self, point: Point, seconds: float, met: str | None) -> None:
        """Note one run."""
        self.points[point.flow] += 1
        self.met[point.flow] += met is not None
        if seconds > self.slowest.get(point.flow, (0.0, ""))[0]:
            self.slowest[point.flow] = (seconds, f"{point.fault} {point.number}: {met}")

    def __str__(self) -> str:
        """Return a few lines for people."""
        lines = [
            f"{flow}: {self.requests.get(flow, 0)} requests to the database; {points} runs, "
            f"{self.met[flow]} met their fault; slowest {self.slowest[flow][0]:.1f} s "
            f"({self.slowest[flow][1]})"
            for flow, points in self.points.items()
        ]
        lines.append(f"grants that a repeated login has left at the server: {self.left_over}")
        lines.append(f"wrong: {len(self.wrong)}")
        return "\n".join([*lines, *(f"  WRONG: {line}" for line in self.wrong)])
