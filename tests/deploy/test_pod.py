"""A pod's containers as processes: who reaches which listener, and in which order all end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.pod import API, OPS, PUBLIC, Pod
from tests.support.namespaces import linked_namespaces
from tests.support.polling import eventually
from tests.support.strict_server import Grant, StrictServer

# What the manifests give: a refresh in flight, then open requests.
_GRACE = 120.0
_ANY = "0.0.0.0"  # noqa: S104 - compared with, not bound to
# st of a row of /proc/net/tcp: a socket that listens.
_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class Stage:
    """A pod whose sidecar has started, and the provider's side of its one connection."""

    pod: Pod
    provider: StrictServer

    async def connect(self) -> Grant:
        """Import a grant from within the pod."""
        grant = self.provider.grant()
        tokens = {
            "refresh_token": grant.refresh_token,
            "access_token": grant.access_token,
            "expires_at": "2030-01-01T00:00:00Z",
        }
        status, _ = await self.pod.from_within(
            "POST",
            "/v1/connections",
            body={"provider": "acme", "id": "acme-1", "tokens": tokens},
        )
        assert status == 201
        return grant


@pytest.fixture
async def stage(
    request: pytest.FixtureRequest, tmp_path: Path, database_url: str
) -> AsyncIterator[Stage]:
    """A started pod; a parameter is merged over the sidecar's configuration."""
    with linked_namespaces() as (namespace, node):
        # Providers may be http on loopback only, so this one is on the pod's.
        listening = namespace.listening("127.0.0.1")
        async with StrictServer(listening=listening) as provider:
            settings: dict[str, Any] = {
                "database": {"url": database_url},
                **getattr(request, "param", {}),
            }
            async with Pod(tmp_path, (namespace, node), provider, settings) as pod:
                await pod.start_sidecar()
                yield Stage(pod, provider)


async def test_only_ops_and_public_are_reached_from_outside(stage: Stage) -> None:
    """The api listener is on the pod's loopback, whatever the others are bound to."""
    pod = stage.pod
    assert await pod.probe("/readiness") == 200
    assert (await pod.from_node("GET", OPS, "/metrics"))[0] == 200
    status, page = await pod.from_node("GET", PUBLIC, "/callback", host=f"localhost:{PUBLIC}")
    assert status == 400
    assert b"<html" in page
    with pytest.raises(ConnectionRefusedError):
        await pod.from_node("GET", API, "/openapi.json")
    for port in (OPS, PUBLIC):
        status, _ = await pod.from_node("GET", port, "/v1/connections", host=f"localhost:{port}")
        assert status == 404
    assert (await pod.from_within("GET", "/v1/connections"))[0] == 200
    assert _listening(pod) == {("127.0.0.1", API), (_ANY, PUBLIC), (_ANY, OPS)}


async def test_the_sidecar_is_there_before_the_application_and_after_it(stage: Stage) -> None:
    """The application has a token at its first try and at its last; then what is sent is stored."""
    pod, provider = stage.pod, stage.provider
    grant = await stage.connect()
    application = pod.start_application()
    await application.speaks()

    provider.hold()
    forced = asyncio.create_task(pod.from_within("POST", "/v1/connections/acme-1/refresh"))
    await eventually(lambda: _rotated(grant, 1), what="the request at the provider")
    code, said = await application.stop()
    assert code == 0
    assert [(each["at"], each["status"], each["generation"]) for each in said] == [
        ("start", 200, 1),
        ("end", 200, 1),
    ]

    began = time.monotonic()
    ending = asyncio.create_task(pod.sidecar.stop(within=_GRACE))
    await eventually(lambda: _answers(pod, "/readiness", 503), what="not ready")
    assert await pod.probe("/liveness") == 200
    assert not ending.done()
    provider.release()
    assert await ending == 0
    assert time.monotonic() - began < 20
    assert (await forced)[1]["generation"] == 2

    await pod.start_sidecar()
    status, token = await pod.from_within("GET", "/v1/connections/acme-1/token")
    assert (status, token["access_token"]) == (200, grant.access_token)
    assert provider.sends.total() == grant.rotations == 1


@pytest.mark.parametrize("stage", [{"listen": {"api": {"quitquitquit": True}}}], indirect=True)
async def test_a_job_ends_its_classic_sidecar(stage: Stage) -> None:
    """When its work is done the application says so, and the sidecar ends with 0 like itself."""
    await stage.connect()
    application = stage.pod.start_application("--job")
    code, said = await application.ended()
    assert (code, [each["at"] for each in said]) == (0, ["start", "quit"])
    assert await stage.pod.sidecar.ended(within=_GRACE) == 0
    assert "Traceback" not in stage.pod.sidecar.log()


async def _rotated(grant: Grant, times: int) -> bool:
    return grant.rotations == times


async def _answers(pod: Pod, path: str, status: int) -> bool:
    return await pod.probe(path) == status


def _listening(pod: Pod) -> set[tuple[str, int]]:
    """Return where the sidecar listens, as the kernel says it of its network namespace."""
    process = pod.sidecar.process
    assert process is not None
    rows = Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]
    found = set()
    for row in rows:
        _, local, _, state, *_ = row.split()
        if state == _LISTEN:
            address, port = local.split(":")
            octets = reversed(bytes.fromhex(address))
            found.add((".".join(map(str, octets)), int(port, 16)))
    own = {(host, port) for host, port in found if port in {API, PUBLIC, OPS}}
    assert len(found) == len(own) + 1, "only the provider listens beside the sidecar"
    return own
