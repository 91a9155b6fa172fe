"""``python -m tests.simulation --seeds 100000``: many runs, with a report for people."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable

from tests.simulation import crashes
from tests.simulation.mutants import MUTANTS
from tests.simulation.plan import plan_of
from tests.simulation.provider_model import Profile
from tests.simulation.results import Result, silent_logs
from tests.simulation.run import run

_MUTANT_SEEDS = 1000
_PROGRESS = 10.0


class Report:
    """Counts runs, tells of progress, and shows each violation with the end of its trace."""

    def __init__(self) -> None:
        self.runs = 0
        self.failed: list[str] = []
        self.met: Counter[str] = Counter()
        self._began = self._told = time.monotonic()

    def add(self, name: str, result: Result) -> None:
        """Take in a run."""
        self.runs += 1
        self.met += result.met
        if result.violation is not None:
            self.failed.append(name)
            tail = "\n".join(result.tail)
            _say(f"\n{name}: {result.violation}\n{tail}\n")
        now = time.monotonic()
        if now - self._told > _PROGRESS:
            self._told = now
            _say(f"{self.runs} runs, {len(self.failed)} violations, {now - self._began:.0f} s")

    def finish(self) -> int:
        """Print what was met and what failed; return the exit code."""
        for name, count in sorted(self.met.items()):
            _say(f"{count:9d}  {name}")
        took = time.monotonic() - self._began
        _say(f"{self.runs} runs in {took:.0f} s, {len(self.failed)} violations {self.failed[:20]}")
        return 1 if self.failed else 0


def main() -> int:
    """Run what was asked for; 1 where an obligation did not hold or a mutant was not caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--crashes", action="store_true", help="every crash at every await")
    parser.add_argument("--mutants", action="store_true", help="the first seed for each mutant")
    arguments = parser.parse_args()
    with silent_logs():
        if arguments.mutants:
            return _search_mutants()
        report = Report()
        if arguments.crashes:
            _crash_everywhere(report)
        else:
            for seed in range(arguments.first, arguments.first + arguments.seeds):
                report.add(f"seed {seed}", run(plan_of(seed)))
        return report.finish()


def _crash_everywhere(report: Report) -> None:
    for profile in crashes.profiles():
        for machines in (1, 2):
            for is_power in (False, True):
                found = crashes.single(profile, machines=machines, is_power=is_power)
                _add_all(report, profile, found)
    for profile in crashes.pair_profiles():
        _add_all(report, profile, crashes.pairs(profile))


def _add_all(
    report: Report, profile: Profile, found: Iterable[tuple[crashes.Crashes, Result]]
) -> None:
    for where, result in found:
        report.add(f"{profile.name} {where}", result)


def _search_mutants() -> int:
    """Find the first seed that catches each mutant, and where the real thing passes."""
    escaped = 0
    for mutant in MUTANTS:
        for seed in range(_MUTANT_SEEDS):
            violation = run(plan_of(seed), mutant).violation
            if violation is not None and run(plan_of(seed)).violation is None:
                _say(f"{seed:6d}  {mutant.name}: {violation}")
                break
        else:
            escaped += 1
            _say(f"        {mutant.name}: not caught")
    return 1 if escaped else 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
