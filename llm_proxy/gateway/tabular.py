"""Tables as CSV (RFC 4180), for spreadsheets: a row of names first, and no text that a spreadsheet would compute. Pure.

Leaves out what is in them (`manage.usage`, `manage.usage_calls`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Document

FORMAT: Final = "`csv` or `json`, whatever is accepted; JSON where neither is said."
_KIND: Final = "text/csv; charset=utf-8; header=present"
_FORMATS: Final = ("csv", "json")
# With these spreadsheets begin a formula, the wide ones too (OWASP, CSV injection).
_FORMULA: Final = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


def wanted(query: Mapping[str, str], accept: str) -> bool:
    """Whether it is to be CSV: by the query's `format`, else by what is accepted. Raises Refusal 400."""
    given = query.get("format", "")
    if given and given not in _FORMATS:
        words = f"the query's 'format' must be {' or '.join(_FORMATS)}, got {given[:40]!r}"
        raise Refusal(400, "invalid_parameter", words, param="format")
    if given:
        return given == "csv"
    liked = dict(map(_liked, accept.split(",")))
    return liked.get("text/csv", 0.0) > liked.get("application/json", 0.0)


def _liked(one: str) -> tuple[str, float]:
    """A media range and its weight (RFC 9110 12.5.1); what is no weight is none."""
    kind, *parameters = (part.strip().lower() for part in one.split(";"))
    weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
    try:
        return kind, min(max(float(weight), 0.0), 1.0)
    except ValueError:
        return kind, 0.0


def document(name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], next: str = "") -> Document:
    """To be kept as `name`.csv. `next` is where it goes on (RFC 8288)."""
    out = io.StringIO()
    writer = csv.writer(out)  # its lines end with CR LF, as the RFC has it
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    if next:
        headers["Link"] = f'<{next}>; rel="next"'
    return Document(out.getvalue().encode("utf-8", "replace"), _KIND, headers)


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0").rstrip(".")  # never in powers of ten, which not all read
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value
