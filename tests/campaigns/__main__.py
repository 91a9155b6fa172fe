"""``python -m tests.campaigns kill --kills 3000``: long campaigns, with a report for people."""

from __future__ import annotations

import argparse
import asyncio
import secrets  # noqa: TID251 - picks a seed, which is printed
import sys
import tempfile
from pathlib import Path

from tests.campaigns.kill import KillCampaign
from tests.support.postgres import running_cluster


def main() -> int:
    """Run the campaign; 1 where a received token was lost or a token was sent twice."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns")
    parser.add_argument("campaign", choices=["kill"])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, running_cluster(Path(directory)) as cluster:
        campaign = KillCampaign(
            Path(directory) / "daemon", cluster.create_database(), seed=arguments.seed
        )
        report = asyncio.run(campaign.run(arguments.kills))
    sys.stdout.write(f"{report}\n")
    return 1 if report.lost or report.reused else 0


if __name__ == "__main__":
    sys.exit(main())
