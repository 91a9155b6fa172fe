"""Whether spans are told, and whether what that needs is there."""

from __future__ import annotations

from importlib.util import find_spec

from daemon.config.reading import OpenSection
from daemon.config.settings import TracingSettings
from daemon.config.values import boolean

_EXPORTER = "opentelemetry.exporter.otlp.proto.http"
_PROTOCOL = "http/protobuf"
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def tracing(section: OpenSection, default: TracingSettings) -> TracingSettings:
    """Return the settings under ``tracing``; all else is said by the ``OTEL_…`` variables."""
    reading, trail = section.reading, section.at("enabled")
    is_enabled = section.get("enabled", boolean, default.enabled)
    if is_enabled and not _is_installed():
        message = (
            "needs packages that are not installed; install them with "
            "`pip install 'tokenward[tracing]'`, or write false"
        )
        reading.find(trail, message)
    spoken = next((reading.environ[name] for name in _PROTOCOLS if reading.environ.get(name)), "")
    if is_enabled and spoken not in {"", _PROTOCOL}:
        message = f"spans are sent by {_PROTOCOL} only; unset {' and '.join(_PROTOCOLS)}"
        reading.find(trail, message)
    return TracingSettings(enabled=is_enabled)


def _is_installed() -> bool:
    try:
        return find_spec(_EXPORTER) is not None
    except ModuleNotFoundError:
        return False
