"""The whole database campaign: outages, ends, disconnects, failovers, and every request spoiled.

In parts, because all of them together take hours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.campaigns.disconnects import DisconnectCampaign
from tests.campaigns.failover import FailoverCampaign, How
from tests.campaigns.outage import Away, OutageCampaign
from tests.campaigns.points import Flow
from tests.campaigns.shutdown import ShutdownCampaign
from tests.campaigns.sweep import Sweep
from tests.support.postgres import Cluster

_OUTAGE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of what: a sweep takes every ``step``-th point, ``failovers`` are of each kind."""

    seed: int
    step: int
    failovers: int
    stops: int
    disconnects: int


Findings = AsyncIterator[tuple[str, bool]]
"""What one campaign after the other found, and whether that is well."""


async def _outages(directory: Path, cluster: Cluster, plan: Plan) -> Findings:
    del plan
    for how in Away:
        url = cluster.create_database()
        outage = OutageCampaign(directory / how, url, how, seconds=_OUTAGE_SECONDS)
        away = await outage.run()
        yield str(away), not (away.failed or away.books.faults or away.sent_meanwhile)


async def _stops(directory: Path, cluster: Cluster, plan: Plan) -> Findings:
    campaign = ShutdownCampaign(directory / "stops", cluster.create_database(), seed=plan.seed)
    ended = await campaign.run(plan.stops)
    yield str(ended), not (ended.wrong or ended.books.faults)


async def _disconnects(directory: Path, cluster: Cluster, plan: Plan) -> Findings:
    url = cluster.create_database()
    campaign = DisconnectCampaign(directory / "disconnects", url, seed=plan.seed)
    raced = await campaign.run(plan.disconnects)
    yield str(raced), not raced.wrong


async def _failovers(directory: Path, cluster: Cluster, plan: Plan) -> Findings:
    del cluster  # it has no standby
    for number in range(plan.failovers):
        for manner in How:
            moved = await FailoverCampaign(directory / f"{manner}-{number}", manner).run()
            yield str(moved), not (moved.failed_reads or moved.books.faults)


async def _sweep(flow: Flow, directory: Path, cluster: Cluster, plan: Plan) -> Findings:
    place = directory / f"sweep-{flow.name.lower()}"
    swept = await Sweep(place, cluster, flows=[flow], step=plan.step).run()
    yield str(swept), not swept.wrong


PARTS: Mapping[str, Callable[[Path, Cluster, Plan], Findings]] = {
    "outages": _outages,
    "stops": _stops,
    "disconnects": _disconnects,
    "failovers": _failovers,
    **{flow.value.replace(" ", "-"): partial(_sweep, flow) for flow in Flow},
}
"""The parts by name, in order."""
