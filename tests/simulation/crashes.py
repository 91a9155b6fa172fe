"""The exhaustive part: one refresh, and a crash at each callback of its process in turn.

Between two callbacks a process has reached an ``await``; a crash anywhere else looks the same from
outside. Pairs: the process that recovers is killed as well, at each of its callbacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tests.simulation.loop import Life
from tests.simulation.machines import Machine
from tests.simulation.plan import PROFILES, STRICT, Plan
from tests.simulation.provider_model import Profile
from tests.simulation.results import Result
from tests.simulation.run import Mutant, Simulation

_LIFETIME = 60.0
# The refresh is due at 45 s at the latest, and takes less than this.
_REFRESHED = 47.0
_HORIZON = 50.0
_RESTART = 4.0
# Callbacks of a process from its start until it has recovered, on the whole.
_RECOVERY = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashes:
    """Where the processes of the first machine end: the first one's callback, the second's, …."""

    steps: tuple[int, ...]
    is_power: bool


class CrashRun(Simulation):
    """A run without any fault but these crashes."""

    def __init__(self, plan: Plan, crashes: Crashes, mutant: Mutant | None = None) -> None:
        super().__init__(plan, mutant)
        self._crashes = crashes
        self._left = list(crashes.steps)

    def start(self, machine: Machine) -> None:
        """Start a process, and say when it ends."""
        super().start(machine)
        life = machine.life
        if machine is self.machines[0] and self._left and isinstance(life, Life):
            life.halts_at = self._left.pop(0)
            life.on_halt = partial(
                self.kill, machine, power=self._crashes.is_power, restart=_RESTART
            )

    def heal(self) -> None:
        """End every fault; crashes that have not come yet still do."""
        self.are_faults_over = True


def profiles() -> Sequence[Profile]:
    """Return every profile once."""
    return tuple(dict.fromkeys(PROFILES))


def pair_profiles() -> Sequence[Profile]:
    """Return those for pairs: one that may not be asked again, and one that may for a while."""
    return (STRICT, profiles()[2])


def plan_for(profile: Profile, *, machines: int) -> Plan:
    """Return a run in which nothing goes wrong, and the first machine refreshes."""
    seeds = (_plan(profile, machines=machines, seed=seed) for seed in range(100))
    return next(plan for plan in seeds if _clean_run(plan)[1])


def _plan(profile: Profile, *, machines: int, seed: int) -> Plan:
    return Plan(
        seed=seed,
        is_safety=False,
        is_scrambled=False,
        is_asynchronous=False,
        machines=machines,
        profiles=(profile,),
        lifetime=_LIFETIME,
        request_timeout=5.0,
        horizon=_HORIZON,
        statement_faults=0.0,
        request_faults=0.0,
        lost_notifications=0.0,
        drifts=(1.0,) * machines,
        errors=(0.0,) * machines,
        actions=(),
    )


def callbacks(plan: Plan) -> int:
    """Return how many callbacks the first machine's process runs until the refresh is over."""
    return _clean_run(plan)[0]


def _clean_run(plan: Plan) -> tuple[int, bool]:
    """Return the first machine's callbacks, and whether it was the one that refreshed."""
    clean = CrashRun(plan, Crashes(steps=(), is_power=False))
    clean.begin()
    clean.run_on(_REFRESHED)
    first = clean.machines[0]
    assert first.life is not None
    owners = {committed.owner for committed in clean.books.claims.values()}
    clean.loop.close()
    return first.life.steps, owners == {first.disk.owner}


def single(
    profile: Profile, *, machines: int, is_power: bool, mutant: Mutant | None = None
) -> Iterator[tuple[Crashes, Result]]:
    """Run with one crash, at each callback in turn."""
    plan = plan_for(profile, machines=machines)
    for step in range(1, callbacks(plan) + 1):
        crashes = Crashes(steps=(step,), is_power=is_power)
        yield crashes, CrashRun(plan, crashes, mutant).run()


def pairs(profile: Profile, *, every: int = 1) -> Iterator[tuple[Crashes, Result]]:
    """Run on two machines with two crashes: the second while the first is being got over."""
    plan = plan_for(profile, machines=2)
    for first in range(1, callbacks(plan) + 1, every):
        for second in range(1, _RECOVERY + 1, every):
            crashes = Crashes(steps=(first, second), is_power=first % 2 == 0)
            yield crashes, CrashRun(plan, crashes).run()
