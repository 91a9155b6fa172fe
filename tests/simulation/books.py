"""The books of a run: every claim, send, reply and row, and what must hold of them at each step.

The hard idea: an excuse is looked up, never assumed. Whether a lost reply was lost where nobody
can help it (on the wire, with its volume, …) is derived from what the models know of that reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from daemon.domain.claim import Claim, ClaimState, Settlement
from daemon.domain.connection import Status
from daemon.domain.journal import JournaledReply
from daemon.domain.provider import RotationKind
from daemon.domain.tokens import TokenSet
from tests.simulation.loop import Life
from tests.simulation.machines import Machine
from tests.simulation.provider_model import Family, ProviderModel, Reply
from tests.simulation.trace import Trace
from tests.support.memory_refreshes import MemoryRow

# policy.py: a strict provider is asked again so long before the access token's end.
_STRICT_LEAD = timedelta(minutes=2)
_STRICT_LEAD_FRACTION = 0.1
# How long after its start a process may need to store what its journal holds: another one's claim
# may be open, which lasts less.
_TIME_TO_RECOVER = 130.0
# How long after the database is back a process may need to store what it has in hand (5 s).
_TIME_TO_RETURN = 8.0
# A request came to life after its sender had given it up: no client can call it back.
LATE = "L late at the provider"
# How long an asynchronous standby may lag behind: what a failover can lose.
LAG = 3.0


@dataclass(eq=False, kw_only=True)
class Send:
    """One request that left. ``is_unspent``: its sender was told that nothing was spent."""

    attempt: str
    at: float
    is_unspent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A claim as the database committed it."""

    claim: Claim
    owner: str
    take_over_at: float
    wall: datetime
    is_forced: bool = False
    is_rolled_back: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A row as it was after the last statement."""

    tokens: TokenSet
    status: Status
    epoch: int


@dataclass(kw_only=True)
class Books:
    """Everything that is known of a run, by all models together."""

    trace: Trace
    provider: ProviderModel
    machines: list[Machine] = field(default_factory=list)
    rows: Mapping[str, MemoryRow] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    orphaned: set[str] = field(default_factory=set)
    adopted: set[str] = field(default_factory=set)
    claims: dict[str, Committed] = field(default_factory=dict)
    sends: dict[str, list[Send]] = field(default_factory=dict)
    replies: dict[str, Reply] = field(default_factory=dict)
    disconnected_at: dict[str, float] = field(default_factory=dict)
    purged: set[str] = field(default_factory=set)
    made_anew_at: dict[str, float] = field(default_factory=dict)
    known_ended: set[tuple[Life, str]] = field(default_factory=set)
    excused: dict[str, str] = field(default_factory=dict)
    on_claim: Callable[[str], None] = lambda _: None
    now: Callable[[], float]
    _seen: dict[str, Seen] = field(default_factory=dict)
    has_forgotten: bool = False
    has_failed_over: bool = False

    # Claims and sends.

    def claimed(
        self,
        claim: Claim,
        owner: str,
        *,
        take_over_at: float,
        wall: datetime,
        is_forced: bool = False,
    ) -> None:
        """A claim was committed; ``wall`` is its owner's time when it was asked for."""
        self.claims[claim.attempt] = Committed(
            claim=claim,
            owner=owner,
            take_over_at=take_over_at,
            wall=wall,
            is_forced=is_forced,
        )
        if claim.was_in_doubt:
            self.trace.count("branch: claimed in doubt")
        self.on_claim(owner)

    def leaving(self, value: str, owner: str, machine: Machine, now: float) -> Send:
        """A refresh request is about to leave: it must be allowed to."""
        committed = self._claim_of(value, owner)
        claim = committed.claim
        name = claim.connection_id
        if now > committed.take_over_at:
            self.trace.fail("PO2", f"{name}: sent after its take-over time")
        row = self.rows.get(name)
        current = None if row is None else row.tokens.refresh_token
        is_same = current is not None and self._family(current) is self._family(value)
        if row is not None and is_same:
            if row.tokens.generation > claim.tokens.generation:
                self.trace.fail("PO5", f"{name}: a newer generation is stored")
            if row.attempt != claim.attempt and not committed.is_rolled_back:
                self.trace.fail("PO5", f"{name}: sent while another attempt is open")
        self._check_journal(value, claim.tokens.generation, machine)
        # A clock that was set right since the claim makes nothing hasty; a person may be.
        if not committed.is_forced:
            self._check_haste(value, claim, max(committed.wall, machine.clock.now()))
        send = Send(attempt=claim.attempt, at=now)
        if self.sends.get(value) and not self._is_static(value):
            self.trace.count("branch: resend")
        self.sends.setdefault(value, []).append(send)
        return send

    def _claim_of(self, value: str, owner: str) -> Committed:
        sent = {send.attempt for send in self.sends.get(value, [])}
        for attempt, committed in reversed(self.claims.items()):
            is_it = committed.owner == owner and committed.claim.tokens.refresh_token == value
            if is_it and attempt not in sent:
                return committed
        return self.trace.fail("PO1", f"{value} was sent without a committed claim")

    def _check_journal(self, value: str, generation: int, machine: Machine) -> None:
        for reply in self._family(value).replies:
            is_here = reply.kept_on is machine and reply.kept_volume == machine.volume
            is_next = reply.spent == value and reply.generation == generation
            if is_next and is_here and not reply.is_in_database:
                self.trace.fail("PO5", f"{value} sent: its successor is in this journal")

    def _check_haste(self, value: str, claim: Claim, wall: datetime) -> None:
        """Where no grace is left it may be asked again only shortly before the token's end."""
        sends = self.sends.get(value)
        if not sends or sends[-1].is_unspent:
            return
        before = self.claims.get(sends[-1].attempt)
        if before is not None and before.is_rolled_back:
            self.trace.count("excused haste: a failover has lost the claim")
            return
        profile = self._family(value).profile
        if profile.kind is RotationKind.GRACE and self._is_within(profile.grace, sends[0], wall):
            return
        if profile.kind not in {RotationKind.GRACE, RotationKind.STRICT}:
            return
        ends_at = claim.tokens.expires_at
        if ends_at is None:
            return
        lead = min(_STRICT_LEAD, (ends_at - claim.tokens.issued_at) * _STRICT_LEAD_FRACTION)
        if wall < ends_at - lead - timedelta(seconds=1):
            self.trace.fail("PO2", f"{value}: sent again in haste at a {profile.name} provider")
        self.trace.count(f"branch: resend at the last moment, {profile.kind.value}")

    def _is_within(self, grace: float, first: Send, wall: datetime) -> bool:
        """Tell whether a grace lasts, as far as a clock can tell that was set back meanwhile."""
        committed = self.claims.get(first.attempt)
        if committed is not None and committed.wall > wall - timedelta(seconds=grace):
            return True
        return self.now() - first.at <= grace

    def _is_static(self, value: str) -> bool:
        return self._family(value).profile.kind is RotationKind.STATIC

    def reused(self, value: str, now: float, *, is_late: bool) -> None:
        """The provider saw a spent token that its profile does not excuse.

        ``is_late``: in a request that it looked at only when its sender had given up.
        """
        spender = self._family(value).spender(value)
        assert spender is not None
        excuse = LATE if is_late else self.excuse(spender, now)
        if excuse is None:
            self.trace.fail("PO2", f"{value}: reuse, though reply {spender.number} was safe")
        self.excused[self._family(value).name] = excuse
        self.trace.count(f"excused reuse: {excuse}")

    def passed_over(self, value: str, now: float) -> None:
        """The provider refuses a token, of whose grant a later reply is in force."""
        family = self._family(value)
        if not family.is_alive or not family.is_displaced(value):
            return
        self.trace.count("provider: passed over")
        newest = family.replies[-1]
        if newest.refresh_token in self.orphaned:
            return
        excuse = self.excuse(newest, now)
        if excuse is not None:
            self.excused[family.name] = excuse

    def excuse(self, reply: Reply, now: float) -> str | None:
        """Return where a reply was lost that nobody could help, ``None`` where it was not."""
        if reply.is_in_database:
            return None
        machine = reply.kept_on
        if machine is None:
            if reply.is_rolled_back:
                return "W4 lost in a failover, kept nowhere"
            return "W2 before the sync" if reply.is_delivered else "W1 on the wire"
        if reply.kept_volume != machine.volume:
            return "V with its volume"
        if not machine.is_working or now - machine.started_at < _TIME_TO_RECOVER:
            return "A its machine was away"
        return "A its machine was away" if now - machine.back_since < _TIME_TO_RETURN else None

    # Replies and the journal.

    def delivered(self, reply: Reply, attempt: str, life: Life) -> None:
        """The last byte of a reply has come to the process that asked for it."""
        reply.is_delivered = True
        reply.received_by, reply.delivered_at_step = life, life.steps
        self.replies[attempt] = reply
        committed = self.claims.get(attempt)
        if committed is not None:
            claim = committed.claim
            reply.generation, reply.epoch = claim.tokens.generation, claim.epoch

    def keeping(self, entry: JournaledReply, access_token: str | None, life: Life) -> None:
        """The journal is asked to keep a reply."""
        reply = self.provider.by_access.get(access_token or "")
        if reply is not None:
            reply.keeping_at_step = life.steps
            reply.generation, reply.epoch = entry.generation, entry.epoch
            self.replies[entry.attempt] = reply

    def kept(self, attempt: str, machine: Machine, *, is_kept: bool) -> None:
        """The journal has answered."""
        reply = self.replies.get(attempt)
        if reply is None:
            return
        if is_kept:
            reply.kept_on, reply.kept_volume = machine, machine.volume
            reply.is_pending = True
        else:
            reply.is_refused_by_disk = True
            self.trace.count("branch: disk refused a reply")

    def forgotten(self, attempt: str) -> None:
        """The journal is told that a reply is settled: somebody must have it."""
        reply = self.replies.get(attempt)
        if reply is None or not reply.is_pending:
            return
        reply.is_pending = False
        if not self._is_superseded(reply):
            self.trace.fail(
                "PO3", f"the journal let go of reply {reply.number}, which nobody else has"
            )

    def reopened(self, machine: Machine, pending: Sequence[JournaledReply]) -> None:
        """A process has started on a disk: what was kept there must be there."""
        there = {entry.attempt for entry in pending}
        for attempt, reply in self.replies.items():
            is_here = reply.kept_on is machine and reply.kept_volume == machine.volume
            if not is_here and attempt in there:
                reply.kept_on, reply.kept_volume = machine, machine.volume
                reply.is_pending = True
                self.trace.count("branch: kept without an answer")
                continue
            is_gone = is_here and reply.is_pending and attempt not in there
            if is_gone and not self._is_superseded(reply):
                self.trace.fail("PO3", f"reply {reply.number} is not in its journal")
        if pending:
            self.trace.count("branch: replies recovered")

    def _is_superseded(self, reply: Reply) -> bool:
        """Tell whether the database has the reply, or something newer, or a place for it."""
        row = self.rows.get(reply.family.connection)
        if row is None or reply.was_stored or not reply.family.is_alive:
            return True
        if reply.refresh_token in self.revoked or reply.refresh_token in self.orphaned:
            return True
        return row.epoch > reply.epoch or row.tokens.generation > reply.generation

    def died(self, life: Life) -> None:
        """A process was killed: what it had received must have been on its way to the disk."""
        for reply in self.replies.values():
            is_its = reply.received_by is life and reply.delivered_at_step < life.steps
            if is_its and reply.keeping_at_step < 0:
                self.trace.fail("PO3", f"reply {reply.number} was looked at before it was kept")

    def drained(self, life: Life, owner: str) -> None:
        """A process has ended in order, with no fault in its statements: it left nothing open."""
        for row in self.rows.values():
            if row.owner == owner and row.state is ClaimState.SENDING:
                self.trace.fail("PO8", f"{life.name} was drained and left {row.id} open")

    # Rows.

    def settling(self, settlements: Iterable[Settlement]) -> None:
        """A process asks for settlements: their tokens must be on a disk by now."""
        for settlement in settlements:
            if settlement.adopts is not None and settlement.tokens is not None:
                self.trace.count("branch: an orphan is adopted")
                self.adopted.add(settlement.tokens.refresh_token or "")
            reply = self.replies.get(settlement.attempt)
            if settlement.tokens is None or reply is None or reply.is_refused_by_disk:
                continue
            if reply.kept_on is not None:
                continue
            self.trace.fail("PO3", f"reply {reply.number} was used before it was kept")

    def looked_at(self, statement: str) -> None:
        """A statement took effect: compare all rows with what they were."""
        for name in [one for one in self._seen if one not in self.rows]:
            self.trace.count("branch: purged")
            self.purged.add(name)
            self._ended(name)
            del self._seen[name]
        for name, row in self.rows.items():
            before = self._seen.get(name)
            now = Seen(row.tokens, row.status, row.epoch)
            if before is not None and before != now:
                self._compare(name, before, now, statement)
            elif before is None and name in self.purged:
                self.trace.count("branch: made anew")
                self.made_anew_at[name] = self.now()
                self._stored(name, now.tokens)
            self._seen[name] = now

    def rolled_back(self) -> None:
        """The database has lost its last commits."""
        self.has_forgotten = True
        self.claims = {
            attempt: replace(committed, is_rolled_back=True)
            for attempt, committed in self.claims.items()
        }
        for name, before in self._seen.items():
            row = self.rows.get(name)
            if row is not None and row.epoch < before.epoch:
                self._forget_disconnect(name)
            if row is None or row.tokens == before.tokens:
                continue
            for family in self.provider.families:
                if family.connection == name:
                    _roll_back(family, row.tokens)
        for name in self.rows:
            if name not in self._seen:
                self._forget_disconnect(name)
        self._seen = {
            name: Seen(row.tokens, row.status, row.epoch) for name, row in self.rows.items()
        }

    def _forget_disconnect(self, name: str) -> None:
        """A disconnect was lost with the commits: nobody can know of it."""
        self.trace.count("excused: a disconnect was lost in a failover")
        since = self.now() - LAG
        lost = {
            family.name
            for family in self.provider.families
            if family.connection == name and self.disconnected_at.get(family.name, 0.0) >= since
        }
        for family in lost:
            del self.disconnected_at[family]
        self.known_ended = {known for known in self.known_ended if known[1] not in lost}

    def _compare(self, name: str, before: Seen, now: Seen, statement: str) -> None:
        rise = now.tokens.generation - before.tokens.generation
        # What a process knows of higher generations is never gone below, also of one purged.
        may_jump = self.has_forgotten or name in self.purged
        if rise < 0 or (rise > 1 and not may_jump):
            self.trace.fail("PO4", f"{name}: generation moved by {rise} in {statement}")
        if now.epoch < before.epoch:
            self.trace.fail("PO9", f"{name}: an epoch went back in {statement}")
        ended = Status.DISCONNECTED
        if before.status is ended and now.status is not ended and statement != "complete":
            self.trace.fail("PO9", f"{name}: resurrected by {statement}")
        if rise == 0 and before.tokens != now.tokens and now.status is not ended:
            self.trace.fail("PO4", f"{name}: tokens changed within a generation")
        if before.status is not ended and now.status is ended:
            self.trace.count("branch: disconnected")
            self._ended(name)
        if rise > 0:
            self._stored(name, now.tokens)

    def _ended(self, name: str) -> None:
        """Every grant of a connection that anybody knows of has ended."""
        for family in self.provider.families:
            if family.connection == name:
                self.disconnected_at.setdefault(family.name, self.now())

    def _stored(self, name: str, tokens: TokenSet) -> None:
        reply = self.reply_of(tokens)
        if reply is None:
            self.trace.fail("PO4", f"{name}: tokens stored that no provider gave")
        if reply.family.connection != name:
            self.trace.fail("PO4", f"{name}: tokens of {reply.family.connection} stored")
        if reply.family.name in self.disconnected_at:
            self.trace.fail("PO9", f"{name}: tokens of a grant that was disconnected are stored")
        reply.was_stored = True
        reply.is_rolled_back = False
        spender = reply.family.spender(reply.refresh_token)
        # What has spent it may be lost, and the database may have forgotten that it was stored.
        is_known = spender is not None and self.excuse(spender, self.now()) is None
        if is_known and reply.family.profile.kind is RotationKind.STRICT:
            self.trace.fail("PO4", f"{name}: a spent refresh token was stored")

    def ended_of(self, ids: Iterable[str]) -> list[str]:
        """Return the grants of connections that a disconnect has ended."""
        wanted = set(ids)
        return [
            family.name
            for family in self.provider.families
            if family.connection in wanted and family.name in self.disconnected_at
        ]

    def reply_of(self, tokens: TokenSet | None) -> Reply | None:
        """Return the reply of tokens; of salvaged ones that with their refresh token."""
        if tokens is None:
            return None
        reply = self.provider.by_access.get(tokens.access_token)
        if reply is not None and reply.refresh_token == tokens.refresh_token:
            return reply
        family = self.provider.by_token.get(tokens.refresh_token or "")
        if family is None:
            return reply
        found = [one for one in family.replies if one.refresh_token == tokens.refresh_token]
        return max(found, key=lambda one: (one.kept_on is not None, one.number), default=reply)

    def _family(self, value: str) -> Family:
        return self.provider.by_token[value]


def _roll_back(family: Family, tokens: TokenSet) -> None:
    """Mark the replies whose commits are lost: those after the one that is stored."""
    is_later = all(reply.refresh_token != tokens.refresh_token for reply in family.replies)
    for reply in family.replies:
        if is_later and reply.was_stored:
            reply.is_rolled_back = True
        if reply.access_token == tokens.access_token:
            is_later = True
