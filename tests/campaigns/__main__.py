"""``python -m tests.campaigns kill --kills 3000``: long campaigns, with a report for people."""

from __future__ import annotations

import argparse
import asyncio
import secrets  # noqa: TID251 - picks a seed, which is printed
import sys
import tempfile
from pathlib import Path

from tests.campaigns import databases, herd, rolling, slow
from tests.campaigns.doomed import dooms
from tests.campaigns.keys import KeyCampaign
from tests.campaigns.keys import Plan as KeyPlan
from tests.campaigns.kill import KillCampaign
from tests.campaigns.named_kills import NamedKills
from tests.campaigns.race import Plan, RaceCampaign
from tests.campaigns.shutdown import ShutdownCampaign
from tests.support.postgres import Cluster, running_cluster


def main() -> int:
    """Run the campaign; 1 where a received token was lost or a token was sent twice."""
    arguments = _arguments()
    campaigns = {
        "kill": _kill,
        "race": _race,
        "database": _database,
        "herd": _herd,
        "rolling": _rolling,
        "stops": _stops,
        "slow": _slow,
        "keys": _keys,
    }
    campaign = campaigns[arguments.campaign]
    with (
        tempfile.TemporaryDirectory() as directory,
        running_cluster(Path(directory) / "postgres") as cluster,
    ):
        is_well = asyncio.run(campaign(Path(directory) / "daemon", cluster, arguments))
    return 0 if is_well else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    campaigns = parser.add_subparsers(dest="campaign", required=True)
    kill = campaigns.add_parser(
        "kill", parents=[common], help="SIGKILL at named moments and at random"
    )
    kill.add_argument("--kills", type=int, default=300)
    race = campaigns.add_parser("race", parents=[common], help="replicas refresh the same at once")
    race.add_argument("--replicas", type=int, default=10)
    race.add_argument("--connections", type=int, default=200)
    race.add_argument("--rounds", type=int, default=10)
    race.add_argument("--paused", type=int, default=0, help="replicas stopped in the middle")
    race.add_argument("--pause", type=float, default=140.0, help="for so many seconds")
    race.add_argument(
        "--request-timeout", type=int, default=30, help="claims last 60 s more than two"
    )
    race.add_argument("--lifetime", type=int, default=3600, help="of access tokens, in seconds")
    race.add_argument("--insist", action="store_true", help="people ask during the pause, too")
    database = campaigns.add_parser("database", parents=[common], help="faults of PostgreSQL")
    database.add_argument("--step", type=int, default=1, help="sweep every so-many-th point")
    database.add_argument("--failovers", type=int, default=5, help="of each kind")
    database.add_argument("--stops", type=int, default=200)
    database.add_argument("--disconnects", type=int, default=1000)
    database.add_argument("--only", nargs="+", choices=[*databases.PARTS], help="these parts")
    stops = campaigns.add_parser("stops", parents=[common], help="SIGTERM under load")
    stops.add_argument("--stops", type=int, default=200)
    rolls = campaigns.add_parser("rolling", parents=[common], help="replicas are replaced")
    rolls.add_argument("--rounds", type=int, default=5, help="each replaces all three replicas")
    rolls.add_argument("--connections", type=int, default=60)
    rolls.add_argument("--callers", type=int, default=8)
    rolls.add_argument("--lifetime", type=int, default=8, help="of access tokens, in seconds")
    rolls.add_argument("--central", action="store_true", help="refreshers, and one that serves")
    herds = campaigns.add_parser("herd", parents=[common], help="tokens that end at one moment")
    herds.add_argument("--connections", type=int, default=10_000)
    herds.add_argument("--rate", type=int, default=200, help="token requests a second")
    herds.add_argument("--callers", type=int, default=10_000, help="of one token")
    keys = campaigns.add_parser("keys", parents=[common], help="a new encryption key under load")
    keys.add_argument("--connections", type=int, default=1000, help="all refreshed at once")
    keys.add_argument("--kills", type=int, default=3, help="of the rotation in the middle")
    slows = campaigns.add_parser("slow", parents=[common], help="callers that hold sockets open")
    slows.add_argument("--sockets", type=int, default=2000, help="at each listener")
    slows.add_argument("--rounds", type=int, default=3)
    slows.add_argument("--seconds", type=float, default=20.0, help="without them, and with them")
    return parser.parse_args()


async def _kill(directory: Path, cluster: Cluster, arguments: argparse.Namespace) -> bool:
    named = await NamedKills(directory / "named", cluster.create_database()).run_at(dooms())
    _say(named)
    campaign = KillCampaign(directory / "random", cluster.create_database(), seed=arguments.seed)
    report = await campaign.run(max(0, arguments.kills - named.kills))
    _say(report)
    return not (named.not_met or named.wrong or report.lost or report.reused)


async def _race(directory: Path, cluster: Cluster, arguments: argparse.Namespace) -> bool:
    plan = Plan(
        replicas=arguments.replicas,
        connections=arguments.connections,
        rounds=arguments.rounds,
        paused=arguments.paused,
        pause=arguments.pause,
        request_timeout=arguments.request_timeout,
        seed=arguments.seed,
        lifetime=arguments.lifetime,
        insist=arguments.insist,
    )
    books = await RaceCampaign(directory, cluster.create_database(), plan).run()
    _say(f"{plan}\n{books}")
    return not books.faults


async def _database(directory: Path, cluster: Cluster, arguments: argparse.Namespace) -> bool:
    plan = databases.Plan(
        seed=arguments.seed,
        step=arguments.step,
        failovers=arguments.failovers,
        stops=arguments.stops,
        disconnects=arguments.disconnects,
    )
    are_well = []
    for part in arguments.only or databases.PARTS:
        async for text, is_well in databases.PARTS[part](directory, cluster, plan):
            _say(f"{part}: {text}")
            are_well.append(is_well)
    return all(are_well)


async def _stops(directory: Path, cluster: Cluster, arguments: argparse.Namespace) -> bool:
    campaign = ShutdownCampaign(directory, cluster.create_database(), seed=arguments.seed)
    report = await campaign.run(arguments.stops)
    _say(report)
    return not (report.wrong or report.books.faults)


async def _rolling(directory: Path, cluster: Cluster, arguments: argparse.Namespace) -> bool:
    plan = rolling.Plan(
        rounds=arguments.rounds,
        connections=arguments.connections,
        callers=arguments.callers,
        lifetime=arguments.lifetime,
        seed=arguments.seed,
        is_central=arguments.central,
    )
    report = await rolling.RollingCampaign(directory, cluster.create_database(), plan).run()
    _say(report)
    return not (report.failed or report.books.faults)


async def _herd(directory: Path, cluster: Cluster, arguments: argparse.Namespace) -> bool:
    are_well = []
    async for findings in herd.everything(
        directory,
        (cluster.create_database(), cluster.create_database()),
        connections=arguments.connections,
        rate=arguments.rate,
        callers=arguments.callers,
    ):
        _say(findings)
        are_well.append(not findings.faults)
    return all(are_well)


async def _keys(directory: Path, cluster: Cluster, arguments: argparse.Namespace) -> bool:
    # A provider that takes its time: so as many requests are under way as there are connections.
    plan = KeyPlan(
        connections=arguments.connections,
        takes=15.0,
        rest=0.5,
        kills=arguments.kills,
        seed=arguments.seed,
    )
    report = await KeyCampaign(directory, cluster.create_database(), plan).run()
    _say(report)
    return not report.wrong


async def _slow(directory: Path, cluster: Cluster, arguments: argparse.Namespace) -> bool:
    plan = slow.Plan(sockets=arguments.sockets, rounds=arguments.rounds, seconds=arguments.seconds)
    findings = await slow.everything(directory, cluster.create_database(), plan)
    _say(f"{plan}\n{findings}")
    return not findings.faults


def _say(report: object) -> None:
    sys.stdout.write(f"{report}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
