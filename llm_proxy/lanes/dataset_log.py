"""The dataset sink: records as proxy-llm's README has them, and the pieces of streams beside.

    session_<model>/session_<model>_YYYYMMDD_HHMMSS.jsonl[.gz]
    streams/session_<model>_YYYYMMDD.jsonl

A client's `X-Session-ID` takes the place of `session_<model>`. Whatever a name holds, it never leaves the folder.
Records of the gateway's calls have one field more, `gateway`, which says whose they are.
Leaves out training data, which is an export (`formats.dataset`).
"""

from __future__ import annotations

import gzip
import re
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from llm_proxy.formats.call import Call, headers_of
from llm_proxy.formats.jsonl import body_field
from llm_proxy.lanes.appending import PACKED, Appender, records_of
from llm_proxy.lanes.deleting import Gone, id_of, whose

_encode = msgspec.json.Encoder().encode
_SAFE = re.compile(r"[^A-Za-z0-9._-]+")
MAX_SIZE = 100 * 10**6
# What a new file begins with: the part of its moment that must be the same for the old one to go on.
_PERIOD = {"daily": "%Y-%m-%d", "weekly": "%G-%V", "size": ""}


class DatasetLog(Appender):
    """`options`: `folder` (else `dataset` in the one given), `compress`, `rotate` (daily, weekly, size), `max_size`."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        super().__init__()
        self._folder = Path(options.get("folder") or folder / "dataset").absolute()
        self._compress = bool(options.get("compress"))
        self._rotate = str(options.get("rotate") or "daily")
        self._max_size = int(options.get("max_size") or MAX_SIZE)

    def write(self, calls: Sequence[Call]) -> None:
        for call in calls:
            session = session_of(call)
            pieces = b"".join(_encode(piece) + b"\n" for piece in stream(call, session))
            if pieces:  # before the record: whoever reads that finds them
                day = time.strftime("%Y%m%d", time.localtime(call.row.started_ns // 10**9))
                self.append(self._folder / "streams" / f"{session}_{day}.jsonl", pieces)
            line = _encode(as_object(call, session) | whose(call.request)) + b"\n"
            data = gzip.compress(line, mtime=0) if self._compress else line
            self.append(self._file(session, call, len(data)), data, lines=not self._compress)
        self.remember_last()

    def forget(self, gone: Gone) -> str:
        """Pieces of streams first: only the records know whose calls they are of."""
        files = [path for path in sorted(self._folder.glob("*/*")) if _is_ours(path)]
        records = [path for path in files if path.parent.name != "streams"]
        ids = set(gone.calls)
        for path in records:
            with suppress(EOFError, zlib.error, gzip.BadGzipFile):  # it is named below
                ids.update(filter(None, (id_of(line, gone) for line in records_of(path))))
        known = Gone(gone.rules, ids)
        ordered = sorted(files, key=lambda path: path.parent.name != "streams")
        return "; ".join(filter(None, [self.take_out(path, lambda line: id_of(line, known)) for path in ordered]))

    def close(self) -> None:
        """Nothing is held open."""

    def _file(self, session: str, call: Call, size: int) -> Path:
        """The file that goes on, or a new one. Which one that is stands in the ledger."""
        ended = time.localtime((call.row.ended_ns or call.row.started_ns) // 10**9)
        period = time.strftime(_PERIOD[self._rotate], ended)
        known = self.ledger.get(f"now {session}")
        if known is not None and known[1] == period:
            path = Path(known[0])
            taken = self.ledger.get(known[0], [0, 0])[1]
            if self._rotate != "size" or taken + size <= self._max_size:
                return path
        name = f"{session}_{time.strftime('%Y%m%d_%H%M%S', ended)}"
        ending = ".jsonl.gz" if self._compress else ".jsonl"
        path = self._folder / session / (name + ending)
        number = 1
        while path.exists():  # more than one within a second
            number += 1
            path = self._folder / session / f"{name}_{number}{ending}"
        self.ledger[f"now {session}"] = [str(path), period]
        return path


def _is_ours(path: Path) -> bool:
    return path.name.endswith((".jsonl", ".jsonl" + PACKED)) and path.is_file() and not path.is_symlink()


def session_of(call: Call) -> str:
    """A name that is safe as a file's: the client's own, else by model."""
    given = next(iter(headers_of(call.request).get("X-Session-Id", ())), "")
    return _safe(given) if given else "session_" + _safe(model_of(call) or "default")


def model_of(call: Call) -> str:
    """As the client asked for it: behind a name of one's own stands another, and both would be sessions."""
    return call.digest.asked.model or call.row.model or ""


def _safe(name: str) -> str:
    told = _SAFE.sub("_", name).strip("._")[:100] or "default"
    return told if told == name else f"{told}-{sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"


def as_object(call: Call, session: str) -> dict[str, Any]:
    """A record with the README's fields; what does not apply is left out."""
    row = call.row
    told: dict[str, Any] = {
        "id": row.id,
        "timestamp": call.started.astimezone().isoformat(),
        "session_id": session,
        "endpoint": row.path.removeprefix("/v1/").lstrip("/"),
        "method": row.method,
        "model": model_of(call),
        "provider": row.provider,
        "request_body": _json(call.request_body),
    }
    if row.status is not None:
        told["status_code"] = row.status
    if call.response_body and not call.streamed:
        told["response_body"] = _json(call.response_body)
    told |= {"stream": call.streamed, "duration": f"{row.total_ms or 0}ms"}
    if row.error:
        told["error"] = row.error
    if row.usage is not None:
        used = {"prompt_tokens": row.usage.prompt, "completion_tokens": row.usage.output}
        told["tokens_used"] = used | {"total_tokens": row.usage.total}
    answer = call.digest.last.message if call.streamed else None
    if answer is not None:
        told["aggregated_response"] = {"choices": [{"message": {"content": answer.text}}]}
    return told


def stream(call: Call, session: str) -> Iterator[dict[str, Any]]:
    """A line per piece of a stream, in order."""
    chunks = (call.response or {}).get("chunks")
    for index, chunk in enumerate(chunks if isinstance(chunks, list) else ()):
        if not isinstance(chunk, dict):
            continue
        moment = str(chunk.get("ts") or datetime.now().astimezone().isoformat())
        piece = chunk.get("raw", chunk.get("base64", chunk.get("frame", "")))
        yield {"id": call.row.id, "chunk": piece, "timestamp": moment, "session_id": session, "index": index}


def _json(data: bytes) -> Any:
    """To the digit, where it is JSON."""
    if not data:
        return None
    try:
        msgspec.json.decode(data)
        return msgspec.Raw(msgspec.json.format(data, indent=-1))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return body_field(data)["body"]
