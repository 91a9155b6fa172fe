"""A reply as the one ciphertext that a record of the journal has.

The hard idea: what the provider sent comes back byte for byte, whatever bytes they are, and what an
earlier version has sealed opens as well.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import structlog

from daemon.domain.errors import DecryptionError
from daemon.domain.journal import JournaledReply, Purpose
from daemon.domain.reply import RawReply
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.journal_keys import COLUMN

log = structlog.get_logger()


def seal_reply(entry: JournaledReply, cipher: TokenCipher) -> bytes:
    """Return a record's payload."""
    body = orjson.dumps(
        {
            "attempt": entry.attempt,
            "purpose": entry.purpose.value,
            "connection": entry.connection_id,
            "provider": entry.provider,
            "generation": entry.generation,
            "scopes": list(entry.scopes),
            "sent_at": entry.sent_at.isoformat(),
            "status": entry.reply.status,
            "headers": {n: _bytes_as_text(v) for n, v in entry.reply.headers.items()},
            "body": entry.reply.body.decode("latin-1"),
            "epoch": entry.epoch,
            "fields": dict(entry.fields),
            "was_in_doubt": entry.was_in_doubt,
            "caller": entry.caller,
            "callback": None if entry.callback is None else dict(entry.callback),
        }
    )
    return cipher.seal(body, connection="", column=COLUMN, generation=0)


def unseal_reply(payload: bytes, cipher: TokenCipher, path: Path) -> JournaledReply | None:
    """Return the reply; ``None``, and a line in the log, where no key at hand opens it.

    ``path`` is the file that has the record.
    """
    try:
        opened = cipher.open(payload, connection="", column=COLUMN, generation=0)
    except DecryptionError as error:
        log.warning("journal_record_not_opened", file=str(path), error=str(error))
        return None
    values: dict[str, Any] = orjson.loads(opened)
    return JournaledReply(
        attempt=values["attempt"],
        purpose=Purpose(values["purpose"]),
        connection_id=values["connection"],
        provider=values["provider"],
        generation=values["generation"],
        scopes=tuple(values["scopes"]),
        sent_at=datetime.fromisoformat(values["sent_at"]),
        reply=RawReply(
            status=values["status"],
            headers={n: _text_of_bytes(v) for n, v in values["headers"].items()},
            body=values["body"].encode("latin-1"),
        ),
        # Segments of versions before lack some; nothing could be disconnected then.
        epoch=values.get("epoch", 0),
        fields=values.get("fields", {}),
        was_in_doubt=values.get("was_in_doubt", False),
        caller=values.get("caller", ""),
        callback=values.get("callback"),
    )


def _bytes_as_text(value: str) -> str:
    """Return a header value so that JSON takes it: its bytes, one letter each."""
    return value.encode("utf-8", "surrogateescape").decode("latin-1")


def _text_of_bytes(value: str) -> str:
    return value.encode("latin-1").decode("utf-8", "surrogateescape")
