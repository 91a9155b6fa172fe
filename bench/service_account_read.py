"""Token reads of the real daemon with a service account token, paired with a caller key.

The same caller rights, the same connection, the same daemon: only the credential differs. The
long key is as long as the token: what a header of a kilobyte costs by itself is in it, too.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from bench.daemons import imported, pid_of, provider
from bench.load import Target, generator
from bench.paired import Comparison, Goal, Report, Round, in_turns, summary
from bench.processes import SERVER_CORE, pin
from daemon.domain.clock import SystemClock
from tests.support.service_account_tokens import AUDIENCE, ISSUER, Signer, claims_of, key_set
from tests.support.tokenward import Tokenward

CONNECTIONS = (1, 16, 64)
KEY = "k" * 43
# RS256 with 2048 bits: header, claims and signature of a real token.
LONG_KEY = "k" * 1037
PATH = "/v1/connections/bench/token"
# "About what one with a key costs", to the parser of a header of a kilobyte, and without it.
GOAL, GOAL_SAME_LENGTH = 0.85, 0.95
_RIGHTS: dict[str, Any] = {"connections": ["*"], "permissions": ["token", "manage"]}


async def measure(directory: Path, *, pairs: int, seconds: float) -> Report:
    """Measure rounds of ``seconds`` each, ``pairs`` of them, at every number of connections."""
    signer = Signer.of_rsa()
    (directory / "keys.json").write_bytes(key_set(signer))
    account = {"namespace": "payments", "name": "billing"}
    daemon = Tokenward(
        directory,
        {
            "providers": {"acme": provider()},
            "callers": [
                {"name": "key", "key": KEY, **_RIGHTS},
                {"name": "long key", "key": LONG_KEY, **_RIGHTS},
                {"name": "account", "service_account": account, **_RIGHTS},
            ],
            "kubernetes": {
                "audience": AUDIENCE,
                "issuer": ISSUER,
                "jwks_file": str(directory / "keys.json"),
            },
        },
    )
    async with daemon, generator() as load:
        pin(pid_of(daemon), SERVER_CORE)
        body = {"provider": "acme", "id": "bench", "tokens": imported(timedelta(days=30))}
        await _answered(daemon, KEY, "POST", "/v1/connections", json=body)
        rows: list[dict[str, str | float]] = []
        goals: list[Goal] = []
        for connections in CONNECTIONS:
            key = Target(
                place=int(daemon.api_url.rpartition(":")[2]), path=PATH, key=KEY, pid=pid_of(daemon)
            )
            token = replace(key, key=await _known_token(daemon, signer, connections))
            asked = partial(load.run, connections=connections, seconds=seconds)
            targets = {"key": key, "long key": replace(key, key=LONG_KEY), "token": token}
            rounds = await in_turns(
                {name: partial(asked, target) for name, target in targets.items()}, pairs=pairs
            )
            rows += _rows(f"tcp {connections}", rounds)
            for name, bound in (("key", GOAL), ("long key", GOAL_SAME_LENGTH)):
                found = Comparison.of(rounds["token"], rounds[name])
                what = f"rate with a token ÷ with a {name}, {connections} connections"
                goals.append(Goal(what=what, value=found.rate.middle, bound=bound))
    return Report(name="service_account_read", rows=rows, goals=goals)


async def _known_token(daemon: Tokenward, signer: Signer, number: int) -> str:
    """Return a token that was verified just now, and so is known for a minute.

    The first answer takes the long way and is of another length, which the generator cannot bear.
    """
    claims = claims_of(now=SystemClock().now().timestamp(), life=86_400 + number)
    token = signer.sign(claims)
    await _answered(daemon, token, "GET", PATH)
    return token


async def _answered(daemon: Tokenward, key: str, method: str, path: str, **more: Any) -> None:
    answer = await daemon.request(method, path, key=key, **more)
    if answer.status not in (200, 201):
        raise RuntimeError(f"{method} {path} was answered {answer.status}: {answer.content!r}")


def _rows(place: str, rounds: dict[str, list[Round]]) -> list[dict[str, str | float]]:
    rows: list[dict[str, str | float]] = []
    for name, each in rounds.items():
        found = Comparison.of(each, rounds["key"])
        is_key = name == "key"
        rows.append(
            {"place": place, "credential": name}
            | summary(each)
            | {
                "rate ÷ key's": "" if is_key else str(found.rate),
                "CPU ÷ key's": "" if is_key else str(found.cpu),
            }
        )
    return rows
