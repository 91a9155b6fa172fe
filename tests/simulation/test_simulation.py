"""Deterministic simulation of the refresh protocol: short runs; ``make simulate`` has long ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.simulation import crashes
from tests.simulation.database_model import StatementFault
from tests.simulation.mutants import MUTANTS
from tests.simulation.network import RequestFault
from tests.simulation.plan import Kind, plan_of
from tests.simulation.provider_model import Profile
from tests.simulation.results import silent_logs
from tests.simulation.run import Mutant, run

_SEEDS = Path(__file__).parent / "seeds"
# One block of seeds for each test, so that a failure does not hide the rest.
_BLOCK = 250
# Every so-manieth callback of either process: a hundred pairs.
_OF_PAIRS = 7
_FIRST_SEEDS = tuple(range(0, 2000, _BLOCK))
# Without these no run has met what it is for.
_BRANCHES = (
    "branch: claimed in doubt",
    "branch: disconnected",
    "branch: disk refused a reply",
    "branch: drained",
    "branch: journal cannot be opened",
    "branch: kept without an answer",
    "branch: killed in recovery",
    "branch: made anew",
    "branch: an orphan is adopted",
    "branch: an orphan was good",
    "branch: purged",
    "branch: reconnected",
    "branch: replies recovered",
    "branch: resend",
    "branch: resend at the last moment, grace",
    "branch: resend at the last moment, strict",
    "branch: claims held back for other replicas",
    "branch: recalled",
    "branch: refused in a new incarnation",
    "branch: too late to send",
    "end: reply_lost",
    "end: revoked at the provider",
    "event: connection_recovered",
    "event: refresh_superseded",
    "fault: failover that loses commits",
    "fault: notification lost",
    "fault: stopped for longer than a claim lasts",
    "fault: write torn",
    "lost on the wire",
    "provider: passed over",
)


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """No run logs a token, or anything."""
    with silent_logs():
        yield


def _regressions() -> list[int]:
    """Return the seeds that have found something once."""
    seeds: list[int] = json.loads((_SEEDS / "regressions.json").read_text(encoding="utf-8"))
    return seeds


def _catching() -> dict[str, int]:
    """Return, for each mutant, a seed that catches it."""
    seeds: dict[str, int] = json.loads((_SEEDS / "mutants.json").read_text(encoding="utf-8"))
    return seeds


@cache
def _met(first: int) -> Counter[str]:
    """Run a block of seeds and return what they met."""
    met: Counter[str] = Counter()
    for seed in range(first, first + _BLOCK):
        result = run(plan_of(seed))
        assert result.violation is None, "\n".join(
            (f"seed {seed}: {result.violation}", *result.tail)
        )
        met += result.met
    return met


@pytest.mark.parametrize("first", _FIRST_SEEDS)
def test_no_obligation_is_broken(first: int) -> None:
    """Whatever a seed brings about, every obligation holds, and every kind of fault occurs."""
    met = _met(first)

    assert [kind for kind in Kind if met[f"fault: {kind}"] == 0] == []


def test_every_branch_is_met() -> None:
    """The suite's seeds meet every branch of the protocol and every fault of the wire."""
    met: Counter[str] = Counter()
    for first in _FIRST_SEEDS:
        met += _met(first)

    faults = [f"fault: request {fault.name.lower()}" for fault in RequestFault]
    faults += [f"fault: statement {fault.name.lower()}" for fault in StatementFault]
    assert [name for name in (*_BRANCHES, *faults) if met[name] == 0] == []


@pytest.mark.parametrize("seed", _regressions())
def test_a_seed_that_once_failed_passes(seed: int) -> None:
    """What a seed has found stays repaired."""
    result = run(plan_of(seed))

    assert result.violation is None, "\n".join((str(result.violation), *result.tail))


@pytest.mark.parametrize("seed", [0, 7, 42, 1001])
def test_the_same_seed_is_the_same_run(seed: int) -> None:
    """Two runs of a seed have the same trace."""
    first, second = run(plan_of(seed)), run(plan_of(seed))

    assert first.digest == second.digest
    assert first.steps == second.steps


def test_another_seed_is_another_run() -> None:
    """The trace depends on the seed."""
    assert run(plan_of(1)).digest != run(plan_of(3)).digest


def test_the_same_seed_is_the_same_run_in_another_process() -> None:
    """Nothing depends on addresses or on the hash seed of a process."""
    code = (
        "from tests.simulation.plan import plan_of\n"
        "from tests.simulation.results import silent_logs\n"
        "from tests.simulation.run import run\n"
        "with silent_logs():\n"
        "    print(*(run(plan_of(seed)).digest for seed in range(10)))\n"
    )
    found = {
        subprocess.run(  # noqa: S603 - this interpreter, this code
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=_SEEDS.parents[2],
        ).stdout
        for hash_seed in ("1", "2")
    }

    assert len(found) == 1


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_known_bad_protocol_is_caught(mutant: Mutant) -> None:
    """The seed that is known to catch a mutant catches it, and passes without it."""
    seed = _catching()[mutant.name]

    assert run(plan_of(seed), mutant).violation is not None
    assert run(plan_of(seed)).violation is None


@pytest.mark.parametrize("machines", [1, 2])
@pytest.mark.parametrize("profile", crashes.profiles(), ids=lambda profile: profile.name)
def test_a_crash_at_any_await_is_survived(profile: Profile, machines: int) -> None:
    """Wherever one refresh is cut, what follows is right for the provider's rotation."""
    cut = 0
    for where, result in crashes.single(profile, machines=machines, is_power=machines == 1):
        assert result.violation is None, "\n".join((f"{where}: {result.violation}", *result.tail))
        cut += 1

    assert cut > 50


@pytest.mark.parametrize("profile", crashes.pair_profiles(), ids=lambda profile: profile.name)
def test_a_second_crash_in_the_recovery_from_the_first_is_survived(profile: Profile) -> None:
    """A sample of all pairs of crashes on two machines; ``make simulate-crashes`` has every one."""
    cut = 0
    for where, result in crashes.pairs(profile, every=_OF_PAIRS):
        assert result.violation is None, "\n".join((f"{where}: {result.violation}", *result.tail))
        cut += 1

    assert cut > 50
