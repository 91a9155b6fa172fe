"""Debian's Prometheus for tests: where it is, and a real server on a free port."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout
from ruamel.yaml import YAML

from tests.support.polling import eventually
from tests.support.tokenward import ROOT, free_ports

RULES = ROOT / "deploy" / "prometheus"
MISSING = "no Prometheus on this machine (Debian: apt-get install prometheus)"
# Where .ci/run puts it.
_FETCHED = ROOT / ".cache" / "prometheus" / "usr" / "bin"


def find(program: str) -> str | None:
    """Return the path of ``prometheus`` or ``promtool``; ``None`` where this machine has none."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_FETCHED}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. ``name`` is an alert's, or that of the series that is recorded."""

    name: str
    expr: str
    is_alert: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


def rules() -> list[Rule]:
    """Return every rule that is deployed."""
    found: list[Rule] = []
    for file in sorted(RULES.glob("tokenward.*.yml")):
        document: Mapping[str, Any] = YAML(typ="safe", pure=True).load(file)
        found += [_rule(rule) for group in document["groups"] for rule in group["rules"]]
    return found


def _rule(rule: Mapping[str, Any]) -> Rule:
    return Rule(
        name=rule.get("alert") or rule["record"],
        expr=rule["expr"],
        is_alert="alert" in rule,
        labels=rule.get("labels", {}),
        annotations=rule.get("annotations", {}),
    )


class Prometheus:
    """A server that scrapes ``targets`` (host:port) as job ``tokenward``, with our rules."""

    def __init__(
        self, executable: str, directory: Path, targets: Sequence[str], *, interval: str = "1s"
    ) -> None:
        self.url = f"http://127.0.0.1:{free_ports(1)[0]}"
        self._executable = executable
        self._directory = directory
        self._targets = list(targets)
        self._interval = interval
        self._stack = AsyncExitStack()
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        config = {
            "global": {"scrape_interval": self._interval, "evaluation_interval": self._interval},
            "rule_files": [str(RULES / "tokenward.*.yml")],
            "scrape_configs": [
                {"job_name": "tokenward", "static_configs": [{"targets": self._targets}]}
            ],
        }
        (self._directory / "prometheus.json").write_bytes(orjson.dumps(config))
        log = self._stack.enter_context((self._directory / "prometheus.log").open("wb"))
        process = await asyncio.create_subprocess_exec(
            self._executable,
            f"--config.file={self._directory / 'prometheus.json'}",
            f"--storage.tsdb.path={self._directory / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        self._stack.push_async_callback(_ended, process)
        self._session = await self._stack.enter_async_context(
            ClientSession(timeout=ClientTimeout(total=30))
        )
        await eventually(self._is_ready, within=60, what="Prometheus' start")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def ask(self, path: str, **parameters: str) -> Any:
        """Return the ``data`` of an answer of the HTTP API; fail where it is an error."""
        assert self._session is not None
        async with self._session.get(f"{self.url}/api/v1/{path}", params=parameters) as answer:
            body: dict[str, Any] = await answer.json()
        assert body["status"] == "success", (parameters, body)
        return body["data"]

    async def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the instant vector of an expression."""
        found: list[dict[str, Any]] = (await self.ask("query", query=expr))["result"]
        return found

    async def value(self, expr: str) -> float | None:
        """Return the one value of an expression; ``None`` where it has none."""
        found = await self.query(expr)
        return float(found[0]["value"][1]) if found else None

    async def _is_ready(self) -> bool:
        assert self._session is not None
        try:
            async with self._session.get(f"{self.url}/-/ready") as answer:
                return answer.status == 200
        except ClientError:
            return False


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)
