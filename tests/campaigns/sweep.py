"""Fail the Nth: every request to the database, in each flow, spoiled once in each way.

A fault proxy stands between the daemon and PostgreSQL. Each flow runs once to count its requests,
then once for each request and each fault. Afterwards the daemon must be well by itself: the
authorization server's live token is served, none was sent twice, nobody saw a 500.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

from tests.campaigns.flows import Runs
from tests.campaigns.points import Flow, Point, SweepReport
from tests.campaigns.stage import Stage
from tests.support.postgres import Cluster
from tests.support.wire import Fault

# The proxy can also keep an answer back for ever: such a run takes the 12 s of a hung statement.
QUICK_FAULTS = tuple(fault for fault in Fault if fault is not Fault.HUNG)


class Sweep:
    """All points, or every ``step``-th, on several stages at once."""

    def __init__(
        self,
        directory: Path,
        cluster: Cluster,
        *,
        flows: Sequence[Flow] = tuple(Flow),
        faults: Sequence[Fault] = QUICK_FAULTS,
        step: int = 1,
        first: int = 1,
        stages: int = 3,
        revoked_within: float = 150.0,
    ) -> None:
        self.report = SweepReport()
        self._cluster = cluster
        self._flows, self._faults = flows, faults
        self._step, self._first = step, first
        self._revoked_within = revoked_within
        self._stages = [Stage(directory / f"stage-{number}", cluster) for number in range(stages)]

    async def run(self) -> SweepReport:
        """Count, then spoil."""
        async with AsyncExitStack() as stack:
            all_runs = []
            for stage in self._stages:
                await stack.enter_async_context(stage)
                await stage.daemon.start()
                all_runs.append(Runs(stage, self._cluster, self.report))
            for flow in self._flows:
                # The first run prepares statements, which later ones do not.
                self.report.requests[flow] = await all_runs[0].count(flow)
            points = self._points()
            await asyncio.gather(*(_work(runs, points) for runs in all_runs))
            if self._revoked_within:
                ends = (runs.until_revoked(within=self._revoked_within) for runs in all_runs)
                await asyncio.gather(*ends)
        return self.report

    def _points(self) -> Iterator[Point]:
        """Yield all points, some requests past the last one that was counted included."""
        number = count()
        return (
            Point(flow=flow, fault=fault, number=request)
            for flow in self._flows
            for request in range(1, self.report.requests[flow] + 1)
            for fault in self._faults
            if next(number) % self._step == self._first % self._step
        )


async def _work(runs: Runs, points: Iterator[Point]) -> None:
    for point in points:
        await runs.run(point)
