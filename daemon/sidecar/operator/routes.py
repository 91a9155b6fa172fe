"""Puts the operator pages onto the api listener's application."""

from __future__ import annotations

from aiohttp import web

from daemon.sidecar.operator.acting import Acting
from daemon.sidecar.operator.entrance import Entrance
from daemon.sidecar.operator.looking import Looking
from daemon.sidecar.operator.parts import OperatorParts
from daemon.sidecar.operator.rendering import STATIC, OperatorPages
from daemon.sidecar.operator.sessions import Sessions
from daemon.sidecar.operator.visits import Door
from daemon.sidecar.pages import load_assets, page_environment
from daemon.sidecar.public_answers import asset_handler


def add_operator_routes(app: web.Application, parts: OperatorParts) -> None:
    """Add the pages, and the door before them, to an application that is not started yet.

    The door goes right below the first middleware, the error boundary, and so before the one that
    asks callers for their keys.
    """
    assets = {**load_assets("static/operator"), "mark.svg": load_assets()["mark.svg"]}
    pages = OperatorPages(page_environment(), assets, public_url=parts.settings().public_url)
    sessions = Sessions(parts.callers, clock=parts.clock, entropy=parts.entropy)
    door = Door(parts, pages, sessions)
    app.middlewares.insert(1, door.middleware())
    asset = door.open(asset_handler(assets))
    app.router.add_get(f"{STATIC}/{{name}}", asset, allow_head=False)
    _add_entrance(app, door, Entrance(door, pages, sessions, clock=parts.clock))
    looking = Looking(parts, pages)
    _add_pages(app, door, looking)
    _add_buttons(app, door, looking, Acting(parts, pages, looking))


def _add_entrance(app: web.Application, door: Door, entrance: Entrance) -> None:
    app.router.add_get("/login", door.open(entrance.show), allow_head=False)
    app.router.add_post("/login", door.open(entrance.log_in))
    app.router.add_post("/logout", door.leave(entrance.log_out))


def _add_pages(app: web.Application, door: Door, looking: Looking) -> None:
    for path, view in (
        ("/", looking.index),
        ("/connections", looking.index),
        ("/connections/{id}", looking.detail),
        ("/connections/{id}/disconnect", looking.confirm),
        ("/providers", looking.providers),
        ("/connect", looking.connect),
        ("/logout", looking.home),
    ):
        app.router.add_get(path, door.look(view), allow_head=False)


def _add_buttons(app: web.Application, door: Door, looking: Looking, acting: Acting) -> None:
    one = "/connections/{id}"
    for name, view in (
        ("test", acting.test),
        ("refresh", acting.refresh),
        ("reconnect", acting.reconnect),
    ):
        app.router.add_post(f"{one}/{name}", door.act(view))
        app.router.add_get(f"{one}/{name}", door.look(looking.back), allow_head=False)
    app.router.add_post(f"{one}/disconnect", door.act(acting.disconnect))
    app.router.add_post("/connect", door.act(acting.connect))
