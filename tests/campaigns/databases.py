"""The whole database campaign: outages, the sweep over every request, and failovers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from tests.campaigns.disconnects import DisconnectCampaign
from tests.campaigns.failover import FailoverCampaign, How
from tests.campaigns.outage import Away, OutageCampaign
from tests.campaigns.shutdown import ShutdownCampaign
from tests.campaigns.sweep import Sweep
from tests.support.postgres import Cluster

_OUTAGE_SECONDS = 30.0


async def everything(
    directory: Path,
    cluster: Cluster,
    *,
    seed: int,
    step: int,
    failovers: int,
    stops: int,
    disconnects: int,
) -> AsyncIterator[tuple[str, bool]]:
    """Run one campaign after the other; yield what each found and whether that is well.

    The sweep takes every ``step``-th point; there are ``failovers`` of each kind.
    """
    for how in Away:
        url = cluster.create_database()
        outage = OutageCampaign(directory / how, url, how, seconds=_OUTAGE_SECONDS)
        away = await outage.run()
        yield str(away), not (away.failed or away.books.faults or away.sent_meanwhile)
    ended = await ShutdownCampaign(directory / "stops", cluster.create_database(), seed=seed).run(
        stops
    )
    yield str(ended), not (ended.wrong or ended.books.faults)
    raced = await DisconnectCampaign(
        directory / "disconnects", cluster.create_database(), seed=seed
    ).run(disconnects)
    yield str(raced), not raced.wrong
    for number in range(failovers):
        for manner in How:
            moved = await FailoverCampaign(directory / f"{manner}-{number}", manner).run()
            yield str(moved), not (moved.failed_reads or moved.books.faults)
    swept = await Sweep(directory / "sweep", cluster, step=step).run()
    yield str(swept), not swept.wrong
