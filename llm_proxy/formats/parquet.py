"""A table of calls as Parquet, for DuckDB, pandas and the like. Needs the extra `parquet`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import IO, Any

from llm_proxy.dialects.digest import TOKEN_CLASSES
from llm_proxy.errors import ExtraMissing
from llm_proxy.formats.call import Call

_GROUP = 16 << 20  # characters of bodies in a row group: what is held in memory
_TEXTS: tuple[str, ...] = (
    "id",
    "session",
    "provider",
    "upstream",
    "project",
    "program",
    "method",
    "url",
    "ending",
    "error",
)
_TEXTS += ("api", "model", "stop_reason", "service_tier", "price_basis", "request_body", "response_body")


def write(calls: Iterable[Call], out: IO[bytes]) -> None:
    """Raises ExtraMissing, OSError."""
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        command = f"{sys.executable} -m pip install pyarrow"
        raise ExtraMissing(f"--format parquet needs pyarrow (the extra `parquet`), here: {command}") from None
    schema = _schema(arrow)
    rest = iter(calls)
    with parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        while rows := _group(rest):
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))


def _schema(arrow: Any) -> Any:
    fields = [(name, arrow.string()) for name in _TEXTS]
    fields += [("started", arrow.timestamp("ns", "UTC")), ("seq", arrow.int64()), ("status", arrow.int64())]
    fields += [
        ("ttfb_ms", arrow.int64()),
        ("first_token_ms", arrow.int64()),
        ("total_ms", arrow.int64()),
        ("usd", arrow.float64()),
    ]
    fields += [("partial", arrow.bool_()), *((f"tokens_{name}", arrow.int64()) for name in TOKEN_CLASSES)]
    return arrow.schema(fields)


def _group(calls: Iterator[Call]) -> list[dict[str, Any]]:
    rows, size = [], 0
    for call in calls:
        row = _row(call)
        rows.append(row)
        size += 1000 + len(row["request_body"]) + len(row["response_body"])
        if size > _GROUP:
            break
    return rows


def _row(call: Call) -> dict[str, Any]:
    row, usage = call.row, call.row.usage
    told: dict[str, Any] = {name: getattr(row, name, None) or None for name in _TEXTS}
    told |= {
        "url": call.url,
        "price_basis": row.basis or None,
        "request_body": call.request_body.decode("utf-8", "replace"),
        "response_body": call.response_body.decode("utf-8", "replace"),
        "started": row.started_ns,
        "seq": row.seq,
        "status": row.status,
        "ttfb_ms": call.head_ms,
        "first_token_ms": row.ttfb_ms,
        "total_ms": row.total_ms,
        "usd": None if row.usd is None else float(row.usd),
        "partial": row.partial,
    }
    return told | {f"tokens_{name}": getattr(usage, name) if usage is not None else None for name in TOKEN_CLASSES}
