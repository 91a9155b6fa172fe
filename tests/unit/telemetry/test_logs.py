"""Log lines: their form, their level, and that no secret is in any of them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import warnings

import pytest
import structlog

from daemon.config.settings import Log, LogFormat, LogLevel
from daemon.telemetry.logs import configure_logging
from tests.support.telemetry import CANARY, captured_log, claim_with_secrets


def test_a_line_is_one_json_object_with_stable_keys() -> None:
    """A line has timestamp (RFC 3339, UTC), level and event first, then the event's own keys."""
    with captured_log() as captured:
        structlog.get_logger().info("token_refreshed", connection="con_1", lag=0.5)
        (line,) = captured.lines()
    assert list(line) == ["timestamp", "level", "event", "connection", "lag"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"])
    assert line["level"] == "info"
    assert line["event"] == "token_refreshed"


def test_values_cannot_forge_lines() -> None:
    """Line ends, terminal escapes and broken characters in values stay inside their line."""
    evil = 'x\n{"event":"forged"}\r\x1b[31m\ud800\u2028'
    with captured_log() as captured:
        structlog.get_logger().info("authorization_failed", error=evil)
        (line,) = captured.lines()
    assert line["error"] == evil
    with captured_log(form=LogFormat.CONSOLE) as captured:
        structlog.get_logger().info("authorization_failed", error=evil)
        text = captured.text()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "\r" not in text


def test_the_console_format_is_readable() -> None:
    """A person sees event, keys and the traceback, without colours where there is no terminal."""
    with captured_log(form=LogFormat.CONSOLE) as captured:
        try:
            int("broken")
        except ValueError:
            structlog.get_logger().exception("sweep_failed", provider="acme")
        text = captured.text()
    assert "sweep_failed" in text
    assert "provider=acme" in text
    assert text.rstrip().endswith("base 10: 'broken'")


@pytest.mark.parametrize(
    ("level", "written"),
    [
        (LogLevel.DEBUG, ["debug", "info", "warning", "error"]),
        (LogLevel.INFO, ["info", "warning", "error"]),
        (LogLevel.WARNING, ["warning", "error"]),
        (LogLevel.ERROR, ["error"]),
    ],
)
def test_the_level_is_the_lowest_written(level: LogLevel, written: list[str]) -> None:
    """Lines below the configured level are not written."""
    with captured_log(level=level) as captured:
        log = structlog.get_logger()
        for name in ("debug", "info", "warning", "error"):
            getattr(log, name)("happened")
        assert [line["level"] for line in captured.lines()] == written


def test_a_level_change_reaches_loggers_that_exist() -> None:
    """A reload changes level and format for bound loggers and for the standard library, too."""
    with captured_log(level=LogLevel.ERROR) as captured:
        bound = structlog.get_logger().bind(provider="acme")
        bound.info("one")
        logging.getLogger("aiohttp.server").warning("two")
        captured.pipeline.apply(Log(level=LogLevel.DEBUG))
        bound.debug("three")
        logging.getLogger("aiohttp.server").warning("four")
        captured.pipeline.apply(Log(level=LogLevel.ERROR, format=LogFormat.CONSOLE))
        bound.info("five")
        assert [line["event"] for line in captured.lines()] == ["three", "four"]


def test_libraries_log_through_the_same_pipeline_from_warning_on() -> None:
    """What a library logs becomes the same kind of line, with the logger's name."""
    with captured_log() as captured:
        logging.getLogger("apscheduler.scheduler").info("Added job")
        logging.getLogger("aiohttp.access").info("GET /")
        logging.getLogger("asyncpg").warning("slow %s", "query")
        logging.getLogger("asyncio").critical("done for")
        lines = captured.lines()
    assert [(line["level"], line["event"], line["logger"]) for line in lines] == [
        ("warning", "slow query", "asyncpg"),
        ("critical", "done for", "asyncio"),
    ]


def test_a_record_that_cannot_be_formatted_is_written_without_its_values() -> None:
    """A library's wrong format string neither raises nor prints its arguments."""
    with captured_log() as captured:
        logging.getLogger("asyncpg").warning("%d items", CANARY)
        logging.getLogger("asyncpg").warning(RefusesToSpeak())
        events = [line["event"] for line in captured.lines()]
    assert events == ["%d items", "unformattable"]


def test_warnings_become_lines() -> None:
    """Python's warnings reach the log instead of standard error."""
    with captured_log() as captured:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(capture=False)
            logging.captureWarnings(capture=True)
            warnings.warn("something is odd", UserWarning, stacklevel=1)
        (line,) = captured.lines()
    assert line["logger"] == "py.warnings"
    assert "something is odd" in line["event"]


def test_closing_restores_what_was_there() -> None:
    """After close the process logs as before, and a second close does nothing."""
    root = logging.getLogger()
    handlers, level, before = list(root.handlers), root.level, structlog.get_config()
    pipeline = configure_logging(Log(), stream=io.StringIO())
    pipeline.close()
    pipeline.close()
    assert (list(root.handlers), root.level, structlog.get_config()) == (handlers, level, before)


class RefusesToSpeak:
    """An argument that raises, with a secret in the error, when it is asked for its text."""

    def __str__(self) -> str:
        raise RuntimeError(CANARY)

    __repr__ = __str__


@pytest.mark.parametrize("format_", list(LogFormat))
def test_no_planted_secret_reaches_the_log(format_: LogFormat) -> None:
    """Secrets in keys, nested values, texts, exceptions, causes, notes and records are gone."""
    with captured_log(form=format_) as captured:
        _log_secrets_in_values()
        _log_secrets_in_exceptions()
        _log_secrets_in_records()
        text = captured.text()
    assert text.count("planted") >= 9
    assert CANARY not in text


def _log_secrets_in_values() -> None:
    log = structlog.get_logger()
    claim = claim_with_secrets()
    log.info("planted", access_token=CANARY, code=CANARY, state=CANARY, Cookie=CANARY)
    log.info("planted", headers={"Authorization": f"Bearer {CANARY}"}, body=CANARY.encode())
    log.info("planted", deep=[{"data": {"refresh_token": CANARY}}], nobody=RefusesToSpeak())
    log.info("planted", claim=claim, tokens=[claim.tokens], error=ValueError(f"code={CANARY}"))
    text = f"planted refresh_token={CANARY}"
    log.info(text, url=f"https://a.example/cb?code={CANARY}")
    log.bind(password=CANARY).warning("planted", dsn=f"postgresql://u:{CANARY}@db/x")


def _log_secrets_in_exceptions() -> None:
    log = structlog.get_logger()
    secret_local = CANARY
    assert secret_local
    try:
        try:
            int(f"client_secret={CANARY}")
        except ValueError as cause:
            cause.add_note(f"sent Authorization: Bearer {CANARY}")
            raise RuntimeError(f"GET https://u:{CANARY}@host/?state={CANARY} failed") from cause
    except RuntimeError:
        log.exception("planted")
        logging.getLogger("aiohttp.server").exception("planted")


def _log_secrets_in_records() -> None:
    logger = logging.getLogger("aiohttp.client")
    logger.warning("planted %r", {"access_token": CANARY})
    logger.error("planted %s", f"refresh_token={CANARY}", extra={"token": CANARY})


async def test_what_asyncio_reports_is_a_line() -> None:
    """The event loop's own complaints go through the pipeline."""
    with captured_log() as captured:
        error = RuntimeError(f"token={CANARY}")
        asyncio.get_running_loop().call_exception_handler({"message": "lost", "exception": error})
        text = captured.text()
    assert json.loads(text)["event"] == "lost"
    assert CANARY not in text
