"""Readers: what a caller is given, or refused, held against the truth (PO7, PO9)."""

from __future__ import annotations

from math import inf

from daemon.domain.connection import Status
from daemon.domain.errors import Problem
from daemon.refresh.cache import Entry
from tests.simulation.node import Node

# A token's last seconds may pass while an answer is on its way.
_NEARLY_OVER = 2.0
# How long a disconnect may stay unseen by a process that works and reaches the database: a poll
# of the follower (15 s), its own coarse steps, and statements that fail.
_UNSEEN = 90.0
# replies.py
_CLOCKS_DIFFER = 10.0


async def read(node: Node, name: str, *, min_ttl: float) -> None:
    """Read a token as a caller does, and judge the answer."""
    before = _Before(node, name)
    try:
        reading = await node.reader.read(name, min_ttl=min_ttl)
    except Problem as problem:
        node.world.trace.count(f"read: {problem.status}")
        before.judge_refusal(problem, min_ttl)
        return
    if reading is None:
        if name not in node.world.books.purged:
            node.world.trace.fail("PO7", f"{name} is unknown to a reader")
        node.world.trace.count("read: unknown")
        return
    node.world.trace.count(f"read: {reading.outcome}")
    judge_served(node, name, reading.entry)


def judge_served(node: Node, name: str, entry: Entry) -> None:
    """A token was given out."""
    books, trace, now = node.world.books, node.world.trace, node.world.loop.time()
    _, value = entry.token()
    reply = books.provider.by_access.get(value)
    if reply is None or reply.family.connection != name:
        trace.fail("PO7", f"a reader of {name} was given somebody else's token")
    family = reply.family.name
    late = now - reply.expires_at
    # A clock that was ahead when the request left promises what the token does not hold.
    ahead = reply.sent_error - node.machine.clock.error
    if late > max(0.0, ahead):
        trace.fail("PO7", f"{name}: {value} was served {late:.1f} s after its end")
    if late > 0:
        trace.count("excused late: clocks differ")
    ended_at = books.disconnected_at.get(family)
    made_anew_at = books.made_anew_at.get(name)
    since = inf if None in {ended_at, made_anew_at} else (made_anew_at or 0) - (ended_at or 0)
    if 0 <= since <= _CLOCKS_DIFFER:
        # Which of the two was issued later their machines' clocks do not agree on.
        trace.count("excused: made anew within what clocks differ")
        return
    if (node.life, family) in books.known_ended:
        trace.fail("PO9", f"{name}: {value} was served after its disconnect was known here")
    if ended_at is None:
        return
    trace.count("branch: served while a disconnect was unknown here")
    if now - max(ended_at, node.machine.back_since) > _UNSEEN and node.machine.is_working:
        trace.fail("PO9", f"{name}: {value} was served long after its disconnect")


class _Before:
    """What was known before a read."""

    def __init__(self, node: Node, name: str) -> None:
        self._node = node
        self._name = name
        self._faults = node.machine.statement_faults
        self._entry = node.cache.get(name)
        self._error = node.machine.clock.error
        self._was_good = self._is_good_stored()

    def judge_refusal(self, problem: Problem, min_ttl: float) -> None:
        """A caller was refused: there must have been nothing good to give."""
        node, trace = self._node, self._node.world.trace
        if min_ttl > 0:
            return
        entry, wall = self._entry, node.machine.clock.now().timestamp()
        now_known = node.cache.get(self._name)
        if entry is not None and now_known is entry and entry.is_good(wall + _NEARLY_OVER):
            trace.fail("PO7", f"{self._name}: a good token in memory was refused ({problem.code})")
        is_undisturbed = (
            node.machine.is_working
            and node.machine.statement_faults == self._faults
            and node.machine.clock.error == self._error
        )
        if is_undisturbed and self._was_good and self._is_good_stored() and entry is None:
            trace.fail("PO7", f"{self._name}: a good stored token was refused ({problem.code})")

    def _is_good_stored(self) -> bool:
        row = self._node.world.books.rows.get(self._name)
        if row is None:
            return False
        life = row.tokens.good_for(self._node.machine.clock.now())
        is_served = row.status in {Status.ACTIVE, Status.FAILING, Status.REAUTHORIZATION_REQUIRED}
        return is_served and life is not None and life > _NEARLY_OVER
