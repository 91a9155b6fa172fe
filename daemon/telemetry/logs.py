"""How a log line is made: level, exception, redaction, time, then JSON or text, then the queue.

structlog's and the standard library's lines go the same way, so nothing passes the redaction by.
Both are global to the process, and so is what this module sets up; ``close`` puts it back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final, TextIO

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

from daemon.config.settings import Log, LogFormat
from daemon.telemetry.log_stream import LogStream
from daemon.telemetry.redaction import Plain, redact_fields

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
# Longer than any flush to a reader that reads, shorter than anybody's grace time.
_CLOSE_TIMEOUT: Final = 2.0
_FIRST_KEYS: Final = ("timestamp", "level", "event")
# Terminals obey control characters; nothing that strangers have a hand in may reach one.
_ESCAPES: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_ESCAPES_IN_TRACEBACKS: Final = {c: text for c, text in _ESCAPES.items() if c != ord("\n")}


class LogPipeline:
    """The process's logging, from ``configure_logging`` until ``close``."""

    def __init__(self, log: Log, *, stream: TextIO) -> None:
        self._stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        self._to_json = json.JSONEncoder(separators=(",", ":"))
        self._to_console = structlog.dev.ConsoleRenderer(
            colors=_is_terminal(stream),
            exception_formatter=structlog.dev.plain_traceback,
            sort_keys=False,
        )
        self._handler = _Handler(self)
        self._log = log
        self._minimum = _LEVELS[log.level]
        self._out = LogStream(stream, notice=self._dropped_notice)
        self._structlog_before = structlog.get_config()
        root = logging.getLogger()
        self._root_before = (root.level, list(root.handlers))
        self.apply(log)
        self._install()

    @property
    def dropped(self) -> int:
        """Return how many lines were lost because nobody took them."""
        return self._out.dropped

    def apply(self, log: Log) -> None:
        """Use another level or format from now on (SIGHUP), for loggers that exist, too."""
        self._log = log
        self._minimum = _LEVELS[log.level]
        # Libraries speak of their own affairs below WARNING, and aiohttp logs every request.
        self._handler.setLevel(max(logging.WARNING, self._minimum))

    def close(self, *, timeout: float = _CLOSE_TIMEOUT) -> None:
        """Write what is queued, for at most ``timeout`` seconds, and undo ``configure_logging``."""
        root = logging.getLogger()
        if self._handler in root.handlers:
            level, root.handlers = self._root_before
            root.setLevel(level)
            logging.captureWarnings(capture=False)
            structlog.configure(**self._structlog_before)
        self._out.close(timeout=timeout)

    def write(self, level: str, fields: MutableMapping[str, Any]) -> None:
        """Write one line of ``fields``, which name the ``event``; ``level`` is not judged."""
        self._out.write(self._rendered(level, fields))

    def _install(self) -> None:
        structlog.configure(
            processors=[self._admit, self._render],
            wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
            logger_factory=lambda *_: _Out(self._out.write),
            # Loggers are bound anew for each line, so that a changed level reaches all of them.
            cache_logger_on_first_use=False,
        )
        root = logging.getLogger()
        # Alone: what another handler prints has not been through the redaction.
        root.handlers = [self._handler]
        root.setLevel(logging.WARNING)
        logging.captureWarnings(capture=True)

    def _admit(self, _logger: WrappedLogger, method: str, fields: EventDict) -> EventDict:
        if _LEVELS[method] < self._minimum:
            raise structlog.DropEvent
        return fields

    def _render(self, _logger: WrappedLogger, method: str, fields: EventDict) -> str:
        return self._rendered(method, fields)

    def _rendered(self, level: str, fields: MutableMapping[str, Any]) -> str:
        shown = redact_fields(structlog.processors.format_exc_info(None, level, fields))
        # Stamped afterwards: the redaction would search it.
        stamped = self._stamp(None, level, {**shown, "level": level})
        if self._log.format is LogFormat.JSON:
            ordered = {key: stamped.pop(key) for key in _FIRST_KEYS if key in stamped}
            return self._as_json({**ordered, **stamped})
        return str(self._to_console(None, level, _escaped(stamped)))

    def _as_json(self, line: dict[str, Any]) -> str:
        with suppress(TypeError):
            fast = orjson.dumps(line)
            if fast.isascii():
                return fast.decode("ascii")
        # All else is escaped, and what orjson refuses (a lone surrogate, a large number) written.
        return self._to_json.encode(line)

    def _dropped_notice(self, count: int) -> str:
        return self._rendered("warning", {"event": "log_lines_dropped", "count": count})


class _Out:
    """What structlog calls with the finished line."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = write


class _Handler(logging.Handler):
    """Sends the standard library's records through the pipeline."""

    def __init__(self, pipeline: LogPipeline) -> None:
        super().__init__()
        self._pipeline = pipeline

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a record whose text cannot be formatted is written without its values."""
        try:
            event = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments are strangers' objects; logging never raises
            event = record.msg if isinstance(record.msg, str) else "unformattable"
        fields: dict[str, object] = {"event": event, "logger": record.name}
        if record.exc_info and record.exc_info[0] is not None:
            fields["exc_info"] = record.exc_info
        self._pipeline.write(_level_name(record.levelno), fields)


def configure_logging(log: Log, *, stream: TextIO) -> LogPipeline:
    """Send every log line of the process to ``stream``; to be called once, by wiring.

    Lines are JSON objects with ``timestamp`` (RFC 3339, UTC), ``level`` and ``event``, or text
    for people. Writing never blocks the caller: see ``daemon.telemetry.log_stream``. Keys named
    like a secret (``code`` and ``state`` among them) lose their values.
    """
    return LogPipeline(log, stream=stream)


def _level_name(number: int) -> str:
    names = [name for name, least in _LEVELS.items() if number >= least]
    return names[-1] if names else "debug"


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:
        return False


def _escaped(fields: MutableMapping[str, Any]) -> dict[str, Plain]:
    return {
        key: value.translate(_ESCAPES_IN_TRACEBACKS if key == "exception" else _ESCAPES)
        if isinstance(value, str)
        else value
        for key, value in fields.items()
    }
