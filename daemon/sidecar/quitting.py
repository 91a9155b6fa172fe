"""[manage] ``POST /quitquitquit``: the way out for the sidecar of a Job, which nobody else ends.

Off unless configured: whoever may send it can take tokens away from everybody in the pod.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from aiohttp import web

from daemon.config.settings import Permission
from daemon.domain.errors import Problem
from daemon.sidecar.routing import json_response, refuse_parameters, require

log = structlog.get_logger()


class Quitting:
    """The handler. ``stop`` asks for what SIGTERM asks for, and returns at once."""

    def __init__(self, *, is_allowed: Callable[[], bool], stop: Callable[[], None]) -> None:
        self._is_allowed = is_allowed
        self._stop = stop

    def routes(self) -> list[web.RouteDef]:
        """Return what the api listener serves of this."""
        return [web.post("/quitquitquit", self.post)]

    async def post(self, request: web.Request) -> web.Response:
        """``POST /quitquitquit``: 202, then what is in flight is stored and the process ends."""
        caller = require(request, Permission.MANAGE)
        refuse_parameters(request)
        if not self._is_allowed():
            raise Problem(
                404,
                "not_found",
                "This daemon is not stopped over HTTP. To allow it, set listen.api.quitquitquit: "
                "true in the configuration and restart; else send SIGTERM.",
            )
        log.info("told_to_quit", caller=caller.name)
        self._stop()
        return json_response({"status": "stopping"}, status=202)
