"""One run: the plan of a seed, carried out on one loop, with every obligation checked."""

from __future__ import annotations

import random  # noqa: TID251 - a simulation's chance is its seed
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from daemon.config.settings import Refresh
from daemon.domain.errors import JournalError
from daemon.domain.provider import Rotation
from daemon.domain.reply import RawReply
from tests.simulation.actions import act
from tests.simulation.balance import balance, is_at_rest
from tests.simulation.books import Books
from tests.simulation.clocks import MachineClock
from tests.simulation.database_model import (
    DatabaseModel,
    Rows,
    StatementFault,
    Way,
)
from tests.simulation.disk_model import PowerGoneError
from tests.simulation.loop import Life, SimulatedLoop
from tests.simulation.machines import Machine
from tests.simulation.network import Network, RequestFault, granted
from tests.simulation.node import Node
from tests.simulation.plan import Plan
from tests.simulation.provider_model import Profile, ProviderModel
from tests.simulation.reads import read
from tests.simulation.results import Result
from tests.simulation.setting import machine_of, providers_of, rotation_of, row_of
from tests.simulation.trace import Trace, ViolationError
from tests.simulation.world import World
from tests.support.memory_refreshes import MemoryRow

# How long a process needs to start again, on the whole.
_RESTART = 5.0
_READS = 20
# What the end of a run may take beside the life of a token: a claim that must pass first, the
# retries after that, and a sweep.
_SLACK = 240.0


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """What a known-bad variant replaces; the default is the real thing."""

    name: str = "none"
    node: type[Node] = Node
    rows: type[Rows] = Rows
    skips_sync: bool = False
    rotation: Callable[[Profile], Rotation] = rotation_of


class Simulation:
    """A world of machines. ``run`` ends it."""

    def __init__(self, plan: Plan, mutant: Mutant | None = None) -> None:
        self.plan = plan
        self.mutant = mutant or Mutant()
        self.chance = random.Random(f"run {plan.seed}")  # noqa: S311 - no secrets
        scheduling = random.Random(f"loop {plan.seed}")  # noqa: S311 - no secrets
        self.loop = SimulatedLoop(scheduling, is_scrambled=plan.is_scrambled)
        self.trace = Trace(self.loop)
        self.provider = ProviderModel()
        self.are_faults_over = False
        self.books = Books(
            trace=self.trace, provider=self.provider, now=self.loop.time, on_claim=self._claimed
        )
        rows = self.mutant.rows(MachineClock(self.loop, error=1.5), self.books)
        self.rows = rows
        self.books.rows = rows.rows
        self.database = DatabaseModel(
            self.loop, rows, self.books, is_asynchronous=plan.is_asynchronous
        )
        self.network = Network(
            loop=self.loop,
            provider=self.provider,
            books=self.books,
            trace=self.trace,
            chance=self.chance,
            lifetime=plan.lifetime,
            fault=self._request_fault,
        )
        self.settings = Refresh(
            margin=plan.margin, request_timeout=timedelta(seconds=plan.request_timeout)
        )
        self.world = World(
            loop=self.loop,
            network=self.network,
            books=self.books,
            trace=self.trace,
            chance=self.chance,
            providers=providers_of(plan.profiles, self.mutant.rotation),
            settings=self.settings,
            publish=self._publish,
        )
        self.machines = [
            machine_of(plan, number, self.loop, self.chance, skips_sync=self.mutant.skips_sync)
            for number in range(plan.machines)
        ]
        self.books.machines = self.machines
        self.nodes: dict[Machine, Node] = {}
        self._armed: list[tuple[Machine, Callable[[], None]]] = []
        for number, profile in enumerate(plan.profiles):
            name = f"c{number}"
            reply = self.provider.grant(name, profile, lifetime=plan.lifetime, now=0.0)
            reply.was_stored = True
            rows.rows[name] = row_of(name, profile, reply, self.settings)
        self.books.looked_at("start")

    def run(self) -> Result:
        """Run to the end, or to the first violation."""
        try:
            self._run()
        except ViolationError as error:
            if self.trace.violation is None:
                self.trace.violation = error
        finally:
            steps, digest = self.loop.steps, self.trace.digest()
            self.loop.close()
        return Result(
            seed=self.plan.seed,
            digest=digest,
            met=self.trace.met,
            violation=self.trace.violation,
            tail=tuple(self.trace.lines[-60:]),
            steps=steps,
        )

    def begin(self) -> None:
        """Start every machine and have everything planned."""
        for machine in self.machines:
            self.start(machine)
        for action in self.plan.actions:
            self.loop.outside(action.at, act, self, action)
        for _ in range(_READS):
            self.loop.outside(self.chance.uniform(0.0, self.plan.horizon), self._read)

    def _run(self) -> None:
        self.begin()
        if self.run_on(self.plan.horizon):
            return
        self.heal()
        self.finish()

    def run_on(self, until: float, condition: Callable[[], bool] = lambda: False) -> bool:
        """Run until a time, a condition or a violation; tell whether there was a violation."""
        self.loop.run(until, condition)
        return self.trace.violation is not None

    def heal(self) -> None:
        """End every fault."""
        self.trace.tell("world", "faults end")
        self.are_faults_over = True
        self._armed.clear()
        self.network.outages = self.database.outages = 0
        for machine in self.machines:
            machine.cuts = 0
            machine.back_since = self.loop.time()
            machine.disk.is_full, machine.disk.failing_syncs = False, 0
            machine.clock.set_right()
            life = machine.life
            if life is not None and life.is_alive:
                life.halts_at = None
                if not life.is_running:
                    self.loop.resume(life)
            else:
                self.start(machine)

    def finish(self) -> None:
        """Wait until all is at rest, then balance the books."""
        until = self.loop.time() + self.plan.lifetime + self.plan.hold + _SLACK
        if self.run_on(until, lambda: is_at_rest(self.books)):
            return
        if not is_at_rest(self.books):
            if not self.plan.is_safety:
                rows = ", ".join(f"{r.id} {r.state} {r.status}" for r in self.rows.rows.values())
                self.trace.fail("PO8", f"not at rest: {rows}")
            self.trace.count("end: not at rest")
        # What a journal still waits with may have its turn.
        if self.run_on(self.loop.time() + 30.0):
            return
        if is_at_rest(self.books):
            balance(self.books)

    def start(self, machine: Machine) -> None:
        """Start a process on a machine, unless one runs there."""
        if machine.life is not None and machine.life.is_alive:
            return
        life = Life(f"{machine.name}.{self.chance.randrange(1000)}")
        machine.life = life
        way = Way(
            loop=self.loop,
            database=self.database,
            machine=machine,
            life=life,
            books=self.books,
            trace=self.trace,
            chance=self.chance,
            fault=self._statement_fault,
        )
        self.trace.tell(life.name, "starts")
        machine.back_since = machine.started_at = self.loop.time()
        self.loop.call_later(0.0, self._boot, machine, life, way, context=life.context())

    def _boot(self, machine: Machine, life: Life, way: Way) -> None:
        try:
            node = self.mutant.node(self.world, machine, life, way)
        except JournalError:
            self.trace.count("branch: journal cannot be opened")
            self.loop.kill(life)
            self.loop.outside(_RESTART, self.start, machine)
            return
        self.nodes[machine] = node
        node.work()

    def kill(self, machine: Machine, *, power: bool = False, restart: float = _RESTART) -> None:
        """End a machine's process between two of its callbacks, or the whole machine."""
        life = machine.life
        if life is None or not life.is_alive:
            return
        self.trace.tell(life.name, "loses power" if power else "is killed")
        self.books.died(life)
        self._cut_writes(machine, life)
        if power:
            machine.disk.lose_power()
        self.loop.kill(life)
        self.nodes.pop(machine, None)
        self.loop.outside(restart, self.start, machine)

    def _cut_writes(self, machine: Machine, life: Life) -> None:
        """What was being written is there, or in part, or not at all."""
        for job in life.jobs:
            fate = self.chance.choice(("not begun", "torn", "done"))
            if job.is_done or fate == "not begun":
                continue
            self.trace.count(f"fault: write {fate}")
            machine.disk.is_tearing = fate == "torn"
            try:
                job.work()
            except (PowerGoneError, OSError):
                pass
            finally:
                machine.disk.is_tearing = False

    # What the plan says.

    def arm(self, machine: Machine, what: Callable[[], None]) -> None:
        """Have something happen when the machine's process has its next claim."""
        self._armed.append((machine, what))

    def _claimed(self, owner: str) -> None:
        for armed in list(self._armed):
            machine, what = armed
            if machine.disk.owner == owner:
                self._armed.remove(armed)
                what()

    def _statement_fault(self) -> StatementFault | None:
        if self.are_faults_over or self.chance.random() >= self.plan.statement_faults:
            return None
        return self.chance.choice(tuple(StatementFault))

    def _request_fault(self) -> RequestFault | None:
        if self.are_faults_over or self.chance.random() >= self.plan.request_faults:
            return None
        return self.chance.choice(tuple(RequestFault))

    def _publish(self, life: Life, connection_id: str) -> None:
        for machine, node in self.nodes.items():
            is_lost = self.chance.random() < self.plan.lost_notifications
            if node.life is life:
                continue
            if machine.cuts or (is_lost and not self.are_faults_over):
                self.trace.count("fault: notification lost")
                continue
            self.loop.call_later(
                self.chance.uniform(0.001, 0.2),
                node.follower.hear,
                connection_id,
                context=node.life.context(),
            )

    def _read(self) -> None:
        machine = self.chance.choice(self.machines)
        node = self.nodes.get(machine)
        name = f"c{self.chance.randrange(len(self.plan.profiles))}"
        min_ttl = self.chance.choice((0.0, 0.0, 0.0, self.plan.lifetime * 0.5))
        if node is None or not machine.is_working:
            return
        self.loop.start(node.life, read(node, name, min_ttl=min_ttl), "read")

    def grant(self, name: str) -> RawReply:
        """Let a person authorize again."""
        profile = self.plan.profiles[int(name[1:])]
        reply = self.provider.grant(
            name, profile, lifetime=self.plan.lifetime, now=self.loop.time()
        )
        self.trace.tell("provider", f"grants {reply.refresh_token} to {name}")
        return granted(reply)

    def imported(self, name: str) -> MemoryRow:
        """Return a connection made anew, with tokens of a grant that was never seen here."""
        profile = self.plan.profiles[int(name[1:])]
        now = self.loop.time()
        reply = self.provider.grant(name, profile, lifetime=self.plan.lifetime, now=now)
        self.trace.tell("provider", f"grants {reply.refresh_token} to {name}, imported")
        return row_of(name, profile, reply, self.settings, now=now)


def run(plan: Plan, mutant: Mutant | None = None) -> Result:
    """Run a plan. Call it within ``silent_logs``."""
    return Simulation(plan, mutant).run()
