"""The ops listener: metrics for Prometheus and probes for a kubelet. No route of another listener.

Its answers say nothing about single connections and need no credential; that, and being cheap, is
what lets the listener be opened to a pod network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from daemon.domain.clock import Entropy
from daemon.domain.errors import Problem
from daemon.sidecar.problems import error_middleware

_ROUTES = "This listener has /metrics, /startup, /readiness and /liveness, and nothing else."


class Health(Protocol):
    """What the probes ask. Answers come from memory, at once; reasons are words for operators."""

    @property
    def started(self) -> bool:
        """Tell whether the first full start is done; once true, it stays true."""

    def ready(self) -> Sequence[str]:
        """Return why tokens cannot be served; empty: they can be.

        A provider's outage is never a reason, and the database's is none once tokens are cached.
        """

    def alive(self) -> Sequence[str]:
        """Return why only a restart would help; empty in all but desperate cases.

        That the event loop turns needs no word here: being asked proves it.
        """


def create_ops_app(*, registry: Collector, health: Health, entropy: Entropy) -> web.Application:
    """Return the application of the ops listener; ``entropy`` makes references for errors."""
    ops = _Ops(registry, health)
    app = web.Application(middlewares=[error_middleware(entropy), _name_the_routes])
    app.router.add_get("/metrics", ops.metrics)
    app.router.add_get("/startup", ops.startup)
    app.router.add_get("/readiness", ops.readiness)
    app.router.add_get("/liveness", ops.liveness)
    app.on_response_prepare.append(_never_store)
    return app


class _Ops:
    def __init__(self, registry: Collector, health: Health) -> None:
        self._exposed = _WithoutCreated(registry)
        self._health = health

    async def metrics(self, request: web.Request) -> web.Response:
        accept = ",".join(request.headers.getall(hdrs.ACCEPT, ()))
        encode, content_type = choose_encoder(accept)
        # Collected here, in the loop: counts of token reads are plain integers without a lock.
        return web.Response(body=encode(self._exposed), headers={hdrs.CONTENT_TYPE: content_type})

    async def startup(self, _request: web.Request) -> web.Response:
        if self._health.started:
            return _verdict(())
        return _verdict(("start is not complete", *self._health.ready()))

    async def readiness(self, _request: web.Request) -> web.Response:
        return _verdict(self._health.ready())

    async def liveness(self, _request: web.Request) -> web.Response:
        return _verdict(self._health.alive())


class _WithoutCreated(Collector):
    """A registry without the ``_created`` series, which double what Prometheus has to keep.

    prometheus_client has a switch for that, but for the whole process.
    """

    def __init__(self, registry: Collector) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


def _verdict(reasons: Iterable[str]) -> web.Response:
    reasons = list(reasons)
    if reasons:
        return web.json_response({"status": "unavailable", "reasons": reasons}, status=503)
    return web.json_response({"status": "ok"})


@web.middleware
async def _name_the_routes(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPNotFound as error:
        raise Problem(404, "not_found", _ROUTES) from error


async def _never_store(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers[hdrs.CACHE_CONTROL] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
