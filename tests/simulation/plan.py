"""What a seed stands for: how many machines, which profiles, which faults and when."""

from __future__ import annotations

import random  # noqa: TID251 - a simulation's chance is its seed
from dataclasses import dataclass
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
    """Return the run of a seed. Odd seeds are liveness runs: few faults, which end."""
    chance = random.Random(f"plan {seed}")  # noqa: S311 - no secrets
    is_safety = seed % 2 == 0
    machines = chance.choices((1, 2, 3, 4, 5), weights=(33, 47, 14, 4, 2))[0]
    connections = chance.choices((1, 2, 3), weights=(60, 30, 10))[0]
    lifetime = chance.choice((60.0, 120.0, 120.0, 240.0))
    horizon = max(_SHORTEST_HORIZON, lifetime * _REFRESHES)
    is_asynchronous = is_safety and chance.random() < 0.2
    count = chance.randint(1, 7) if is_safety else chance.randint(0, 3)
    kinds = [kind for kind in Kind if is_safety or kind not in _ONLY_SAFETY]
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
