"""The three listeners: where each binds, and that none is opened by accident."""

from __future__ import annotations

from itertools import combinations

from daemon.config import references
from daemon.config.reading import OpenSection
from daemon.config.schema import API_LISTENER, OPEN_LISTENER
from daemon.config.settings import Address, ApiListener, Listen, OpenListener
from daemon.config.values import address, boolean, is_loopback, whole_number

# sun_path of unix(7) holds 108 bytes with its terminating zero.
_LONGEST_SOCKET_PATH = 107
_HIGHEST_UID = 2**32 - 2
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to


def listeners(section: OpenSection) -> Listen:
    """Return the listeners under ``listen``."""
    default = Listen()
    listen = Listen(
        api=_api(section.within("api", API_LISTENER), default.api),
        public=_open(section.within("public", OPEN_LISTENER), default.public),
        ops=_open(section.within("ops", OPEN_LISTENER), default.ops),
    )
    _no_clash(section, listen)
    return listen


def _api(section: OpenSection, default: ApiListener) -> ApiListener:
    listener = ApiListener(
        address=_api_address(section, default),
        unix_socket=(
            None
            if section.raw("unix_socket") is None
            else references.path(
                section.reading, section.at("unix_socket"), section.raw("unix_socket")
            )
        ),
        allowed_uids=section.each("allowed_uids", whole_number(0, _HIGHEST_UID)),
        quitquitquit=section.get("quitquitquit", boolean, default.quitquitquit),
    )
    if listener.address is None and section.raw("unix_socket") is None:
        message = "null needs a unix_socket beside it; otherwise no caller could ask"
        section.reading.find(section.at("address"), message)
    if listener.unix_socket and len(bytes(listener.unix_socket)) > _LONGEST_SOCKET_PATH:
        message = f"must be a path of at most {_LONGEST_SOCKET_PATH} bytes; choose a shorter one"
        section.reading.find(section.at("unix_socket"), message)
    if section.raw("allowed_uids") and section.raw("unix_socket") is None:
        message = "has no effect without unix_socket; set that too, or remove this"
        section.reading.find(section.at("allowed_uids"), message)
    return listener


def _api_address(section: OpenSection, default: ApiListener) -> Address | None:
    if "address" in section and section.raw("address") is None:
        return None
    where = section.get("address", address, default.address)
    if where is not None and not is_loopback(where.host):
        message = (
            "must be a loopback address such as 127.0.0.1:7420: this listener hands out tokens and "
            "is never opened to others; run tokenward beside its callers"
        )
        section.reading.find(section.at("address"), message)
    return where


def _open(section: OpenSection, default: OpenListener) -> OpenListener:
    listener = OpenListener(
        address=section.get("address", address, default.address),
        allow_non_loopback=section.get("allow_non_loopback", boolean, default=False),
    )
    if not listener.allow_non_loopback and not is_loopback(listener.address.host):
        message = (
            "is not a loopback address; use 127.0.0.1, or write allow_non_loopback: true beside it "
            "to open this listener to others"
        )
        section.reading.find(section.at("address"), message)
    return listener


def _no_clash(section: OpenSection, listen: Listen) -> None:
    named = [
        ("api", listen.api.address),
        ("public", listen.public.address),
        ("ops", listen.ops.address),
    ]
    for (first, one), (second, other) in combinations(named, 2):
        if one and other and _clash(one, other):
            message = f"is the address of listen.{first} too; give each listener its own port"
            section.reading.find((*section.trail, second, "address"), message)


def _clash(one: Address, other: Address) -> bool:
    if one.port != other.port or one.port == 0:
        return False
    hosts = {one.host.lower(), other.host.lower()}
    if len(hosts) == 1 or hosts & _WILDCARDS:
        return True
    return "localhost" in hosts and all(map(is_loopback, hosts))
