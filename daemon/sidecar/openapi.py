"""``GET /openapi.json``: the description of the api listener, written by hand in openapi.yaml.

Read when it is first asked for: parsing that much YAML takes a tenth of a second or two, and few
daemons are ever asked.
"""

from __future__ import annotations

import asyncio
from importlib.resources import files
from typing import Any

import orjson
from aiohttp import hdrs, web
from ruamel.yaml import YAML

from daemon import __version__


def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document with this version in it."""
    text = files("daemon.sidecar").joinpath("openapi.yaml").read_text(encoding="utf-8")
    parsed: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    parsed["info"]["version"] = __version__
    return parsed


class OpenApiRoute:
    """Serves the document to whoever is a caller, whatever it may do."""

    def __init__(self) -> None:
        self._body: bytes | None = None

    async def get(self, request: web.Request) -> web.Response:
        """``GET /openapi.json``."""
        del request
        if self._body is None:
            self._body = await asyncio.to_thread(_body)
        return web.Response(
            body=self._body,
            headers={hdrs.CACHE_CONTROL: "no-store"},
            content_type="application/json",
        )


def _body() -> bytes:
    return orjson.dumps(document())
