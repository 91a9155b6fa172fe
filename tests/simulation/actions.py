"""How each kind of fault is brought about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from daemon.config.settings import EncryptionKey
from tests.simulation.disk_model import Disk
from tests.simulation.loop import Life
from tests.simulation.machines import Machine
from tests.simulation.node import Node
from tests.simulation.plan import Action, Kind

if TYPE_CHECKING:
    from tests.simulation.run import Simulation

# Callbacks of an attempt's process from its claim to its end, on the whole: where to cut.
_STEPS_OF_AN_ATTEMPT = 90
# Seconds from a claim to an attempt's end.
_SECONDS_OF_AN_ATTEMPT = 0.8
# Of those purged.
_MADE_ANEW = 0.7
# Seconds that a failover lasts at which people press, and how often they do.
_LONGEST_PRESSED = 4.0
_PRESSED_TIMES = 12


def act(simulation: Simulation, action: Action) -> None:
    """Bring a fault about, now or in the middle of the machine's next attempt."""
    machine = simulation.machines[action.machine]
    do = _ACTS[action.kind]
    if action.kind is Kind.OVERTAKEN or action.kind in _BY_STEPS:
        simulation.arm(machine, partial(_do, simulation, action, do))
    elif not action.kind.value.endswith("soon"):
        _do(simulation, action, do)
    else:
        later = action.size * _SECONDS_OF_AN_ATTEMPT
        soon = partial(simulation.loop.outside, later, _do, simulation, action, do)
        simulation.arm(machine, soon)


def _do(
    simulation: Simulation, action: Action, do: Callable[[Simulation, Action, Machine], None]
) -> None:
    if simulation.are_faults_over:
        return
    simulation.trace.count(f"fault: {action.kind}")
    simulation.trace.tell("world", f"{action.kind} m{action.machine} {action.lasts:.0f} s")
    do(simulation, action, simulation.machines[action.machine])


def _kill(simulation: Simulation, action: Action, machine: Machine) -> None:
    is_power = action.kind is Kind.POWER_LOSS
    simulation.kill(machine, power=is_power, restart=min(action.lasts, 100.0))


def _kill_by_steps(simulation: Simulation, action: Action, machine: Machine) -> None:
    life = machine.life
    if life is None:
        return
    is_power = action.kind in {Kind.POWER_LOSS_SOON, Kind.VOLUME_LOSS_SOON}

    def die() -> None:
        simulation.kill(machine, power=is_power, restart=min(action.lasts, 100.0))
        if action.kind is Kind.VOLUME_LOSS_SOON:
            machine.disk = Disk(simulation.chance)
            machine.disk.skips_sync = simulation.mutant.skips_sync
            machine.volume += 1
        if action.kind is Kind.KILL_TWICE_SOON:
            simulation.loop.outside(min(action.lasts, 100.0) + 0.001, again)

    def again() -> None:
        if machine.life is not None and machine.life.is_alive and not simulation.are_faults_over:
            simulation.trace.count("branch: killed in recovery")
            machine.life.on_halt = partial(simulation.kill, machine)
            machine.life.halts_at = machine.life.steps + 1 + int(simulation.chance.random() * 60)

    _halt(life, action, die)


def _pause_by_steps(simulation: Simulation, action: Action, machine: Machine) -> None:
    life = machine.life
    if life is not None:
        _halt(life, action, partial(_pause, simulation, action, machine))


def _halt(life: Life, action: Action, do: Callable[[], None]) -> None:
    """Have something happen in the middle of an attempt; a halt rather before it has sent."""
    is_halt = action.kind in {Kind.PAUSE_SOON, Kind.SUSPEND_SOON}
    place = action.size**2 if is_halt else action.size
    life.on_halt = do
    life.halts_at = life.steps + 1 + int(place * _STEPS_OF_AN_ATTEMPT)


def _pause(simulation: Simulation, action: Action, machine: Machine) -> None:
    life = machine.life
    if life is None or not life.is_running:
        return
    if action.lasts > simulation.plan.hold:
        simulation.trace.count("fault: stopped for longer than a claim lasts")
    simulation.loop.halt(life)
    slept = action.lasts if action.kind is Kind.SUSPEND_SOON else 0.0

    def resume() -> None:
        if life.is_alive and not life.is_running:
            machine.back_since = simulation.loop.time()
            simulation.loop.resume(life, slept=slept)

    simulation.loop.outside(action.lasts, resume)


def _step_clock(simulation: Simulation, action: Action, machine: Machine) -> None:
    largest = 4000.0 if simulation.plan.is_safety else 20.0
    machine.clock.step((action.size * 2 - 1) * largest)


def _partition(simulation: Simulation, action: Action, machine: Machine) -> None:
    machine.cuts += 1

    def join() -> None:
        if machine.cuts:
            machine.cuts -= 1
            machine.back_since = simulation.loop.time()

    simulation.loop.outside(action.lasts, join)


def _database_outage(simulation: Simulation, action: Action, machine: Machine) -> None:
    del machine
    simulation.database.outages += 1

    def end() -> None:
        if simulation.database.outages:
            simulation.database.outages -= 1
            for one in simulation.machines:
                one.back_since = simulation.loop.time()

    simulation.loop.outside(action.lasts, end)


def _failover(simulation: Simulation, action: Action, machine: Machine) -> None:
    """The primary dies; a synchronous standby has all that was acknowledged."""
    _database_outage(simulation, action, machine)
    if simulation.plan.is_asynchronous:
        simulation.trace.count("fault: failover that loses commits")
    simulation.database.fail_over(simulation.chance)


def _pressed_failover(simulation: Simulation, action: Action, machine: Machine) -> None:
    lasts = min(action.lasts, _LONGEST_PRESSED)
    _failover(simulation, replace(action, lasts=lasts), machine)
    for _ in range(_PRESSED_TIMES):
        at = simulation.chance.uniform(-1.0, 3.0) + lasts
        simulation.loop.outside(max(0.0, at), _press, simulation)


def _press(simulation: Simulation) -> None:
    """Let a person ask for a refresh now, wherever one can."""
    nodes = list(simulation.nodes.values())
    if nodes and not simulation.are_faults_over:
        node = simulation.chance.choice(nodes)
        name = simulation.chance.choice(sorted(simulation.rows.rows) or ["c0"])
        simulation.loop.start(node.life, node.force(name), "force")


def _provider_outage(simulation: Simulation, action: Action, machine: Machine) -> None:
    del machine
    network = simulation.network
    network.outages += 1

    def end() -> None:
        network.outages = max(0, network.outages - 1)

    simulation.loop.outside(action.lasts, end)


def _disk_full(simulation: Simulation, action: Action, machine: Machine) -> None:
    disk = machine.disk
    disk.is_full = True

    def free() -> None:
        disk.is_full = False

    simulation.loop.outside(action.lasts, free)


def _disk_error(simulation: Simulation, action: Action, machine: Machine) -> None:
    del simulation
    machine.disk.failing_syncs += 1 + int(action.size * 3)


def _disconnect(simulation: Simulation, action: Action, machine: Machine) -> None:
    node = _some_node(simulation, action, machine)
    name = f"c{action.connection}"
    if node is not None:
        simulation.loop.start(node.life, node.disconnect(name), "disconnect")
        if action.size < 0.5:
            simulation.loop.outside(action.lasts / 4, _reconnect, simulation, action, machine)


def _reconnect(simulation: Simulation, action: Action, machine: Machine) -> None:
    node = _some_node(simulation, action, machine)
    name = f"c{action.connection}"
    if node is not None and not simulation.are_faults_over:
        simulation.trace.count("branch: reconnected")
        grant = partial(simulation.grant, name)
        simulation.loop.start(node.life, node.reconnect(name, grant), "reconnect")


def _some_node(simulation: Simulation, action: Action, machine: Machine) -> Node | None:
    """Return the process that a person talks to: the machine's own or another one."""
    others = [one for one in simulation.machines if one in simulation.nodes]
    if not others:
        return None
    at = machine if machine in simulation.nodes and action.size < 0.4 else others[0]
    return simulation.nodes[at]


def _drain(simulation: Simulation, action: Action, machine: Machine) -> None:
    node = simulation.nodes.get(machine)
    if node is None:
        return

    async def end() -> None:
        await node.drain()
        simulation.trace.tell(node.life.name, "is drained")
        simulation.loop.kill(node.life)
        simulation.nodes.pop(machine, None)
        simulation.loop.outside(min(action.lasts, 30.0), simulation.start, machine)

    simulation.loop.start(node.life, end(), "drain")


def _revoke(simulation: Simulation, action: Action, machine: Machine) -> None:
    del machine
    row = simulation.rows.rows.get(f"c{action.connection}")
    value = None if row is None else row.tokens.refresh_token
    if value is not None:
        simulation.provider.revoke(value, by_user=True)


def _purge(simulation: Simulation, action: Action, machine: Machine) -> None:
    node = _some_node(simulation, action, machine)
    name = f"c{action.connection}"
    if node is None:
        return
    simulation.loop.start(node.life, node.purge(name), "purge")
    if action.size < _MADE_ANEW:
        simulation.loop.outside(action.lasts, _make_anew, simulation, action, machine)


def _make_anew(simulation: Simulation, action: Action, machine: Machine) -> None:
    node = _some_node(simulation, action, machine)
    name = f"c{action.connection}"
    if node is not None and not simulation.are_faults_over:
        simulation.loop.start(
            node.life, node.create(name, partial(simulation.imported, name)), "create"
        )


def _add_key(simulation: Simulation, action: Action, machine: Machine) -> None:
    del action, machine
    keys = simulation.world.keys
    secret = bytes([len(keys)]) * 32
    keys.insert(0, EncryptionKey(id=f"k{len(keys) + 1}", secret=secret))


def _overtake(simulation: Simulation, action: Action, machine: Machine) -> None:
    """The claim is taken over, and a sweep has sent for it, before the request arrives."""
    behind = simulation.plan.hold + 15.0 + action.size * 60.0
    simulation.network.overtaken[machine.name] = behind


_BY_STEPS = frozenset(
    {
        Kind.KILL_SOON,
        Kind.POWER_LOSS_SOON,
        Kind.VOLUME_LOSS_SOON,
        Kind.KILL_TWICE_SOON,
        Kind.PAUSE_SOON,
        Kind.SUSPEND_SOON,
    }
)
_ACTS: Mapping[Kind, Callable[[Simulation, Action, Machine], None]] = MappingProxyType(
    {
        Kind.KILL: _kill,
        Kind.KILL_SOON: _kill_by_steps,
        Kind.POWER_LOSS: _kill,
        Kind.POWER_LOSS_SOON: _kill_by_steps,
        Kind.VOLUME_LOSS_SOON: _kill_by_steps,
        Kind.KILL_TWICE_SOON: _kill_by_steps,
        Kind.PAUSE: _pause,
        Kind.PAUSE_SOON: _pause_by_steps,
        Kind.SUSPEND_SOON: _pause_by_steps,
        Kind.CLOCK_STEP: _step_clock,
        Kind.PARTITION: _partition,
        Kind.PARTITION_SOON: _partition,
        Kind.DATABASE_OUTAGE: _database_outage,
        Kind.DATABASE_OUTAGE_SOON: _database_outage,
        Kind.FAILOVER: _failover,
        Kind.FAILOVER_SOON: _failover,
        Kind.PROVIDER_OUTAGE: _provider_outage,
        Kind.DISK_FULL: _disk_full,
        Kind.DISK_ERROR: _disk_error,
        Kind.DISCONNECT: _disconnect,
        Kind.DISCONNECT_SOON: _disconnect,
        Kind.RECONNECT: _reconnect,
        Kind.RECONNECT_SOON: _reconnect,
        Kind.DRAIN: _drain,
        Kind.DRAIN_SOON: _drain,
        Kind.REVOKED_BY_USER: _revoke,
        Kind.PURGE_SOON: _purge,
        Kind.NEW_KEY: _add_key,
        Kind.PRESSED_FAILOVER: _pressed_failover,
        Kind.OVERTAKEN: _overtake,
    }
)
