"""``python -m bench``: run measurements, print a table and a line of JSON for each."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import (
    hanging_provider,
    journal,
    proxy,
    refresh_pipeline,
    service_account_read,
    sizes,
    start,
    token_read,
)
from bench.paired import Report

_PAIRS, _PAIRS_SHORT = 12, 3
_SECONDS, _SECONDS_SHORT = 0.4, 0.2
_BATCH, _BATCH_SHORT = 2000, 500
_QUIET = 0.5


@dataclass(frozen=True, slots=True)
class _Options:
    pairs: int
    seconds: float
    is_short: bool


def _measurements(options: _Options) -> dict[str, Callable[[Path], Awaitable[Report]]]:
    return {
        "token_read": partial(token_read.measure, pairs=options.pairs, seconds=options.seconds),
        "service_account_read": partial(
            service_account_read.measure, pairs=options.pairs, seconds=options.seconds
        ),
        "proxy": partial(proxy.measure, pairs=options.pairs, seconds=options.seconds),
        "hanging_provider": partial(
            hanging_provider.measure, pairs=options.pairs, seconds=options.seconds
        ),
        "refresh_pipeline": partial(
            refresh_pipeline.measure,
            pairs=options.pairs,
            batch=_BATCH_SHORT if options.is_short else _BATCH,
        ),
        "journal": partial(journal.measure, pairs=options.pairs, seconds=options.seconds),
        "start": partial(start.measure, starts=options.pairs // 2 + 1),
        "sizes": partial(
            sizes.measure,
            sizes=sizes.SIZES_SHORT if options.is_short else sizes.SIZES,
            rounds=options.pairs,
        ),
    }


async def _run(options: _Options, only: list[str]) -> bool:
    all_met = True
    _warn_of_others()
    for name, measure in _measurements(options).items():
        if only and name not in only:
            continue
        directory = Path(tempfile.mkdtemp(prefix=f"bench-{name}-"))
        try:
            report = await measure(directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        report.show()
        all_met &= all(goal.met for goal in report.goals)
    return all_met


def _warn_of_others() -> None:
    load = os.getloadavg()[0]
    if load > _QUIET:
        print(
            f"This machine is busy with something else (load {load:.1f}): rates and latencies are "
            "of little use, ratios and CPU of some."
        )


def main() -> int:
    """Run what was asked for; 1 where a goal was missed and ``--strict`` was given."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--short", action="store_true", help="fewer, shorter rounds: a quick look")
    parser.add_argument("--pairs", type=int, help=f"paired rounds (default {_PAIRS})")
    parser.add_argument("--seconds", type=float, help=f"a round's length (default {_SECONDS})")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a goal is missed")
    given = parser.parse_args()
    options = _Options(
        pairs=given.pairs or (_PAIRS_SHORT if given.short else _PAIRS),
        seconds=given.seconds or (_SECONDS_SHORT if given.short else _SECONDS),
        is_short=given.short,
    )
    known = list(_measurements(options))
    unknown = sorted(set(given.only) - set(known))
    if unknown:
        parser.error(f"no measurement is called {', '.join(unknown)}; there are {', '.join(known)}")
    all_met = asyncio.run(_run(options, given.only))
    return 1 if given.strict and not all_met else 0


if __name__ == "__main__":
    sys.exit(main())
