"""What a seed stands for: how many machines, which profiles, which faults and when."""

from __future__ import annotations

import random  # noqa: TID251 - a simulation's chance is its seed
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

from daemon.domain.provider import RotationKind
from tests.simulation.provider_model import Profile

STATIC = Profile(kind=RotationKind.STATIC)
OVERLAP = Profile(kind=RotationKind.OVERLAP)
STRICT = Profile(kind=RotationKind.STRICT)
PROFILES = (
    STATIC,
    OVERLAP,
    Profile(kind=RotationKind.GRACE, grace=30.0),
    Profile(kind=RotationKind.GRACE, grace=60.0, repeats=True),
    Profile(kind=RotationKind.GRACE, grace=600.0),
    Profile(kind=RotationKind.GRACE, grace=10.0),
    STRICT,
    STRICT,
    STRICT,
)
# A request that was overtaken makes replies that come too late: such servers tell them apart.
_NEWEST_ONLY = (
    Profile(kind=RotationKind.OVERLAP, newest_only=True),
    Profile(kind=RotationKind.GRACE, grace=600.0, newest_only=True),
)
_REFRESHES = 3
_SHORTEST_HORIZON = 240.0


class Kind(StrEnum):
    """What the simulation does to a machine, a connection or the world.

    Those that end in ``soon`` happen in the middle of the machine's next attempt.
    """

    KILL = "kill"
    KILL_SOON = "kill soon"
    POWER_LOSS = "power loss"
    POWER_LOSS_SOON = "power loss soon"
    VOLUME_LOSS_SOON = "volume loss soon"
    KILL_TWICE_SOON = "kill twice soon"
    PAUSE = "pause"
    PAUSE_SOON = "pause soon"
    SUSPEND_SOON = "suspend soon"
    CLOCK_STEP = "clock step"
    PARTITION = "partition"
    PARTITION_SOON = "partition soon"
    DATABASE_OUTAGE = "database outage"
    DATABASE_OUTAGE_SOON = "database outage soon"
    FAILOVER = "failover"
    FAILOVER_SOON = "failover soon"
    PROVIDER_OUTAGE = "provider outage"
    DISK_FULL = "disk full"
    DISK_ERROR = "disk error"
    DISCONNECT = "disconnect"
    DISCONNECT_SOON = "disconnect soon"
    RECONNECT = "reconnect"
    RECONNECT_SOON = "reconnect soon"
    DRAIN = "drain"
    DRAIN_SOON = "drain soon"
    REVOKED_BY_USER = "revoked by the user"
    PURGE_SOON = "purge soon"
    """A connection is purged, and perhaps made anew at once under the same name."""
    PRESSED_FAILOVER = "failover under forced refreshes"
    """People ask for refreshes all the while; the standby lacks the last commits."""
    NEW_KEY = "new key"
    """A new key encrypts from each process's next start on; the one before still decrypts."""
    OVERTAKEN = "request overtaken"
    """Its sender stands still, the claim is taken over, and the provider looks at it after that
    one's."""


# In runs that are there for it.
_FOR_OVERTAKING = 9
_FOR_UPKEEP = 1
_UPKEEP = (Kind.PURGE_SOON, Kind.NEW_KEY)
_ELSEWHERE = {Kind.OVERTAKEN, Kind.PRESSED_FAILOVER, *_UPKEEP}
_ANYWHERE = tuple(kind for kind in Kind if kind not in _ELSEWHERE)
# Others wait for the replica that is gone for ten minutes: in safety runs only.
_ONLY_SAFETY = frozenset({Kind.VOLUME_LOSS_SOON})


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One fault. ``size`` in [0, 1) is for whatever else the kind needs."""

    at: float
    kind: Kind
    machine: int
    connection: int
    lasts: float
    size: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run. Rates are chances for each statement, request and notification."""

    seed: int
    is_safety: bool
    is_scrambled: bool
    is_asynchronous: bool
    machines: int
    profiles: tuple[Profile, ...]
    lifetime: float
    request_timeout: float
    horizon: float
    statement_faults: float
    request_faults: float
    lost_notifications: float
    drifts: tuple[float, ...]
    errors: tuple[float, ...]
    actions: tuple[Action, ...]

    @property
    def hold(self) -> float:
        """Return how long a claim lasts (attempts.py)."""
        return self.request_timeout * 2 + 60.0

    @property
    def margin(self) -> timedelta:
        """Return ``refresh.margin``."""
        return timedelta(seconds=min(60.0, self.lifetime / 4))


def plan_of(seed: int) -> Plan:
    """Return the run of a seed. Odd seeds are liveness runs: few faults, which end.

    Of those every fifth, though, is there for requests that are overtaken, and every fifth for
    purges, new keys and failovers under load; half of these are safety runs.
    """
    plan = _plan_of(seed)
    if seed % 10 == _FOR_OVERTAKING:
        return _overtaken(plan)
    return _with_upkeep(plan) if seed % 10 == _FOR_UPKEEP else plan


def _with_upkeep(plan: Plan) -> Plan:
    """Return a plan in which connections are purged and keys are changed, too."""
    chance = random.Random(f"upkeep {plan.seed}")  # noqa: S311 - no secrets
    is_safety = plan.seed // 10 % 2 == 0
    kinds: tuple[Kind, ...] = (*_UPKEEP, Kind.KILL_SOON, Kind.DRAIN_SOON)
    if is_safety:
        kinds = (Kind.PRESSED_FAILOVER, chance.choice(_UPKEEP), Kind.PRESSED_FAILOVER)
    return replace(
        plan,
        is_safety=is_safety,
        is_asynchronous=is_safety,
        drifts=(1.0,) * plan.machines,
        actions=(
            *plan.actions,
            *(
                Action(
                    at=chance.uniform(0.0, plan.horizon),
                    kind=kind,
                    machine=chance.randrange(plan.machines),
                    connection=chance.randrange(len(plan.profiles)),
                    lasts=chance.choice((0.2, 2.0, 20.0)),
                    size=chance.random(),
                )
                for kind in kinds
            ),
        ),
    )


def _overtaken(plan: Plan) -> Plan:
    """Return a plan in which requests are overtaken, at a server that tells late replies apart."""
    chance = random.Random(f"overtaken {plan.seed}")  # noqa: S311 - no secrets
    machines = max(2, plan.machines)
    profile = chance.choice((*_NEWEST_ONLY, *_NEWEST_ONLY, *PROFILES))
    lifetime = chance.choice((120.0, 240.0))
    return replace(
        plan,
        is_safety=plan.seed // 10 % 2 == 0,
        machines=machines,
        profiles=(profile, *plan.profiles[1:]),
        lifetime=lifetime,
        horizon=lifetime * 3,
        drifts=(1.0,) * machines,
        errors=tuple(chance.uniform(-3.0, 3.0) for _ in range(machines)),
        actions=(
            *plan.actions,
            *(
                Action(
                    at=chance.uniform(0.0, lifetime),
                    kind=Kind.OVERTAKEN,
                    machine=machine,
                    connection=0,
                    lasts=0.0,
                    size=chance.random(),
                )
                for machine in range(machines)
            ),
        ),
    )


def _plan_of(seed: int) -> Plan:
    chance = random.Random(f"plan {seed}")  # noqa: S311 - no secrets
    is_safety = seed % 2 == 0
    machines = chance.choices((1, 2, 3, 4, 5), weights=(33, 47, 14, 4, 2))[0]
    connections = chance.choices((1, 2, 3), weights=(60, 30, 10))[0]
    lifetime = chance.choice((60.0, 120.0, 120.0, 240.0))
    horizon = max(_SHORTEST_HORIZON, lifetime * _REFRESHES)
    is_asynchronous = is_safety and chance.random() < 0.2
    count = chance.randint(1, 7) if is_safety else chance.randint(0, 3)
    kinds = [kind for kind in _ANYWHERE if is_safety or kind not in _ONLY_SAFETY]
    return Plan(
        seed=seed,
        is_safety=is_safety,
        is_scrambled=chance.random() < 0.5,
        is_asynchronous=is_asynchronous,
        machines=machines,
        profiles=tuple(chance.choice(PROFILES) for _ in range(connections)),
        lifetime=lifetime,
        request_timeout=chance.choice((5.0, 10.0)),
        horizon=horizon,
        statement_faults=chance.choice((0.0, 0.01, 0.05)),
        request_faults=chance.choice((0.0, 0.1, 0.3)),
        lost_notifications=chance.choice((0.0, 0.1, 1.0)),
        drifts=tuple(chance.uniform(0.9, 1.1) if is_safety else 1.0 for _ in range(machines)),
        errors=tuple(chance.uniform(-3.0, 3.0) for _ in range(machines)),
        actions=tuple(
            Action(
                at=chance.uniform(0.0, horizon),
                kind=chance.choice(kinds),
                machine=chance.randrange(machines),
                connection=chance.randrange(connections),
                lasts=chance.choice((2.0, 20.0, 60.0, 200.0)) * chance.uniform(0.5, 1.5),
                size=chance.random(),
            )
            for _ in range(count)
        ),
    )
