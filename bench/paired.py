"""Paired rounds and what follows from them: medians of ratios with their quartiles, as a table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import orjson

Measure = Callable[[], Awaitable["Round"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round: what was done in how many seconds. ``cpu`` is seconds of the server's CPU.

    ``p50`` and ``p99`` are latencies in seconds, 0 where none were taken.
    """

    requests: int
    seconds: float
    cpu: float
    p50: float = 0.0
    p99: float = 0.0

    @property
    def rate(self) -> float:
        """Return requests a second."""
        return self.requests / self.seconds

    @property
    def cpu_each(self) -> float:
        """Return CPU seconds a request."""
        return self.cpu / self.requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A median between its quartiles."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def spread(values: Sequence[float]) -> Spread:
    """Return the median and quartiles of ``values``."""
    if len(values) < 2:
        return Spread(low=values[0], middle=values[0], high=values[0])
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(low=low, middle=middle, high=high)


async def in_turns(measures: Mapping[str, Measure], *, pairs: int) -> dict[str, list[Round]]:
    """Run every measure once a turn, in alternating order, after one turn that does not count."""
    rounds: dict[str, list[Round]] = {name: [] for name in measures}
    for turn in range(pairs + 1):
        names = list(measures)[:: 1 if turn % 2 else -1]
        for name in names:
            found = await measures[name]()
            if turn:
                rounds[name].append(found)
    return rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Ours against a yardstick. Ratios of one pair each: above 1 is faster, cheaper is below 1."""

    rate: Spread
    cpu: Spread
    p99: Spread | None

    @classmethod
    def of(cls, ours: Sequence[Round], yardstick: Sequence[Round]) -> Comparison:
        """Compare round by round."""
        pairs = list(zip(ours, yardstick, strict=True))
        timed = all(theirs.p99 for _, theirs in pairs)
        return cls(
            rate=spread([mine.rate / theirs.rate for mine, theirs in pairs]),
            cpu=spread([mine.cpu_each / theirs.cpu_each for mine, theirs in pairs]),
            p99=spread([mine.p99 / theirs.p99 for mine, theirs in pairs]) if timed else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a figure must reach: at least ``bound``, or at most where ``is_ceiling``."""

    what: str
    value: float
    bound: float
    is_ceiling: bool = False

    @property
    def met(self) -> bool:
        """Tell whether it is reached."""
        return self.value <= self.bound if self.is_ceiling else self.value >= self.bound

    def __str__(self) -> str:
        sign = "≤" if self.is_ceiling else "≥"
        verdict = "met" if self.met else "MISSED"
        return f"{verdict:6}  {self.what}: {self.value:.3g} (goal {sign} {self.bound:g})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one measurement found: rows of a table, all with the same columns, and its goals."""

    name: str
    rows: Sequence[Mapping[str, str | float]]
    goals: Sequence[Goal]

    def show(self) -> None:
        """Print the table, the goals, and one line of JSON."""
        print(f"\n## {self.name}\n")
        print(table(self.rows))
        print()
        for goal in self.goals:
            print(goal)
        goals = [
            {"what": g.what, "value": round(g.value, 4), "bound": g.bound, "met": g.met}
            for g in self.goals
        ]
        line = {"bench": self.name, "rows": [dict(row) for row in self.rows], "goals": goals}
        print(orjson.dumps(line).decode(), flush=True)


def table(rows: Sequence[Mapping[str, str | float]]) -> str:
    """Return rows as aligned text; numbers to the right."""
    cells = [list(rows[0])] + [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def summary(rounds: Sequence[Round]) -> dict[str, str | float]:
    """Return the medians of rounds, for a table: rates, microseconds of CPU, milliseconds."""
    return {
        "req/s": round(median(r.rate for r in rounds)),
        "cpu µs": round(median(r.cpu_each for r in rounds) * 1e6, 1),
        "p50 ms": round(median(r.p50 for r in rounds) * 1e3, 3),
        "p99 ms": round(median(r.p99 for r in rounds) * 1e3, 3),
    }
