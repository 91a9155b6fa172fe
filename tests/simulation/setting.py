"""What a run begins with: providers as configured, machines, and connections with tokens."""

from __future__ import annotations

import random  # noqa: TID251 - a simulation's chance is its seed
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from daemon.config.settings import Refresh
from daemon.domain.provider import (
    ClientAuthentication,
    Endpoints,
    Provider,
    Rotation,
    RotationKind,
)
from daemon.domain.tokens import TokenSet
from daemon.refresh import policy
from tests.simulation.clocks import START, MachineClock
from tests.simulation.disk_model import Disk
from tests.simulation.loop import SimulatedLoop
from tests.simulation.machines import Machine
from tests.simulation.plan import Plan
from tests.simulation.provider_model import Profile, Reply
from tests.support.memory_refreshes import MemoryRow


def rotation_of(profile: Profile) -> Rotation:
    """Return a profile as an operator configures it."""
    is_grace = profile.kind is RotationKind.GRACE
    return Rotation(profile.kind, timedelta(seconds=profile.grace) if is_grace else None)


def providers_of(
    profiles: Sequence[Profile], rotation: Callable[[Profile], Rotation]
) -> Mapping[str, Provider]:
    """Return a provider for each profile."""
    return {
        profile.name: Provider(
            name=profile.name,
            client_id="us",
            token_endpoint_auth_method=ClientAuthentication.NONE,
            endpoints=Endpoints(token=f"https://{profile.name}.example/token"),
            rotation=rotation(profile),
            concurrency=2,
        )
        for profile in sorted(set(profiles), key=lambda one: one.name)
    }


def machine_of(
    plan: Plan, number: int, loop: SimulatedLoop, chance: random.Random, *, skips_sync: bool
) -> Machine:
    """Return a machine with its clock and an empty disk."""
    clock = MachineClock(loop, error=plan.errors[number], rate=plan.drifts[number])
    disk = Disk(chance)
    disk.skips_sync = skips_sync
    return Machine(name=f"m{number}", clock=clock, disk=disk)


def row_of(
    name: str, profile: Profile, reply: Reply, settings: Refresh, *, now: float = 0.0
) -> MemoryRow:
    """Return a connection whose grant is being stored at a true time."""
    at = START + timedelta(seconds=now)
    tokens = TokenSet(
        generation=1,
        access_token=reply.access_token,
        refresh_token=reply.refresh_token,
        token_type="Bearer",
        scopes=(),
        issued_at=at,
        expires_at=at + timedelta(seconds=reply.lifetime),
    )
    return MemoryRow(
        id=name,
        provider=profile.name,
        tokens=tokens,
        due_at=policy.due_at(tokens, name, settings),
        grant_generation=1,
        granted_at=at,
    )
