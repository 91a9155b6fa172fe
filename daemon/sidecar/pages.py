"""The pages that people see, as text: what they say, and the stylesheet they share.

They work without JavaScript, load nothing from anybody else, and show nothing that came in a
request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from jinja2 import Environment, PackageLoader, StrictUndefined

from daemon.oauth.authorization_errors import Failed
from daemon.sidecar.connect_form import Question

_PACKAGE = "daemon.sidecar"
_MEDIA_TYPES = MappingProxyType(
    {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of ``static/``, in memory. ``version`` changes with its bytes."""

    body: bytes
    content_type: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectPage:
    """What the connect page says. ``provider_host`` is ``None`` where only metadata tell it.

    ``stated`` are titles and values of fields that are known, ``questions`` those to fill in.
    """

    caller: str
    provider: str
    provider_host: str | None
    connection: str
    label: str | None
    is_reconnect: bool
    scopes: tuple[str, ...]
    stated: tuple[tuple[str, str], ...] = ()
    questions: tuple[Question, ...] = ()

    @property
    def errors(self) -> tuple[Question, ...]:
        """Return the fields that cannot stay as they are."""
        return tuple(question for question in self.questions if question.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """An error that needs no reference, for nothing happened that a log could explain."""

    title: str
    happened: str
    action: str


def page_environment() -> Environment:
    """Return the templates: everything is escaped, and a misspelled name is an error."""
    return Environment(
        loader=PackageLoader(_PACKAGE, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def load_assets(folder: str = "static") -> Mapping[str, Asset]:
    """Read ``static/``, or a folder below it, once; it is a few kilobytes."""
    assets = {}
    for file in files(_PACKAGE).joinpath(folder).iterdir():
        media_type = _MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            body = file.read_bytes()
            version = hashlib.sha256(body).hexdigest()[:12]
            assets[file.name] = Asset(body, media_type, version)
    return MappingProxyType(assets)


class Pages:
    """Renders pages. ``static_path`` is where browsers find the assets, without a last slash."""

    def __init__(
        self, environment: Environment, assets: Mapping[str, Asset], *, static_path: str
    ) -> None:
        self._environment = environment
        self._asset_urls = {
            name: f"{static_path}/{name}?v={asset.version}" for name, asset in assets.items()
        }

    def connect(self, page: ConnectPage) -> str:
        """Return the page that asks a person to press Connect."""
        return self._render("connect.html", page=page)

    def completed(self, survivor: str | None = None) -> str:
        """Return the page at the end of a successful authorization.

        ``survivor`` is the connection that had the account already and goes on with it.
        """
        return self._render("completed.html", survivor=survivor)

    def failed(self, failed: Failed) -> str:
        """Return the page of an authorization that ended without tokens."""
        return self._render("failed.html", failed=failed)

    def notice(self, notice: Notice) -> str:
        """Return the page of a request that led nowhere."""
        return self._render("notice.html", notice=notice)

    def _render(self, template: str, **values: object) -> str:
        return self._environment.get_template(template).render(assets=self._asset_urls, **values)
