"""`METHOD,URL,"REQUEST","RESPONSE"`: a line per call without a header row, as HTTP LLM Proxy Stream logs them.

Method and URL are quoted only where RFC 4180 demands it, bodies always. Text is written as it is: a spreadsheet may
take a cell that begins with `=`, `+`, `-` or `@` for a formula.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

from llm_proxy.formats.call import Call


def write(calls: Iterable[Call], out: IO[bytes]) -> None:
    """Raises OSError."""
    for call in calls:
        out.write(line(call.row.method, call.url, call.request_body, call.response_body))


def line(method: str, url: str, request: bytes, response: bytes) -> bytes:
    """One call. Bytes that are no UTF-8 become U+FFFD."""
    plain = ",".join(_quoted(cell) if any(sign in cell for sign in ',"\r\n') else cell for cell in (method, url))
    bodies = ",".join(_quoted(body.decode("utf-8", "replace")) for body in (request, response))
    return f"{plain},{bodies}\n".encode("utf-8", "replace")


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'
