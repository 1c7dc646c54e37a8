"""No sink gets more of a gateway's user's call than he wants to be kept, whatever its format."""

import asyncio
import gzip
import json
import os
import subprocess
import sys
from contextlib import ExitStack, suppress

import asyncpg
import pytest

from llm_proxy.keeper.options import Options
from llm_proxy.lanes.csv_log import COLUMNS
from llm_proxy.lanes.cursors import Cursors
from llm_proxy.lanes.options import TABLES
from llm_proxy.lanes.options import Options as Lanes
from tests import lokibed
from tests.fakeloki import FakeLoki
from tests.otlpbed import Receiver
from tests.sharedbed import shared
from tests.test_gateway_privacy_record import ALL, MAIL, settled, wait
from tests.test_keeper import Place

__all__ = ["shared"]

OTHERS = b"of nobody"  # a call that the gateway has not made
WORDS = ("canary", MAIL, "ab3_ab3_", "171 555")
PERSONAL = (MAIL, "canary-owner", "ab3_ab3_", "171 555", "canary-binary", "canary-pixels")

# Level -> how many of ALL's calls each sink gets, and what it must not find in them.
LEVELS = {
    "none": (0, (*WORDS, "claude-sonnet", "ann@team", "1a2b3c4d.17")),
    "metadata": (len(ALL), WORDS),
    "redacted": (len(ALL), PERSONAL),
}
SINKS = ("loki", "otlp", "csv", "daily", "dataset", "shared-index")


def sent(place, loki, otlp, url):
    """What each sink has been given, as bytes."""
    files = place.folder / "files"
    tables = {
        "loki": lokibed.OPTIONS | {"url": loki.url},
        "otlp": {"endpoint": otlp.url, "content": True},
        "csv": {"file": str(files / "csv/log.csv"), "columns": list(COLUMNS), "header": False},
        "daily": {"folder": str(files / "daily")},
        "dataset": {"folder": str(files / "dataset"), "compress": True},
        "shared-index": {"url": url, "machine": "desk"},
    }
    given = Lanes(str(place.state), str(place.logs), tuple(tables.items()))
    for name in SINKS:  # from the first call on
        Cursors(place.state / "sinks.db").set(name, 0, {})
    command = [sys.executable, "-m", "llm_proxy.lanes", given.to_json()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, env=os.environ | given.variables())
    assert TABLES in given.variables()

    def done():
        process.stdin.write(b".")
        with suppress(OSError, ValueError):
            told = json.loads((place.state / "sinks.json").read_text())["sinks"]
            return [told[name]["passed"] for name in SINKS if told[name]["state"] == "ok" and not told[name]["since"]]
        return []

    try:
        wait(lambda: len(found := done()) == len(SINKS) and min(found) > 0, limit=60)
        counts = set(done())
    finally:
        process.communicate(timeout=30)
    got = {
        name: b"".join(_read(path) for path in sorted(files.glob(f"{name}/**/*")) if path.is_file()) for name in SINKS
    }
    got["loki"] = json.dumps([repr(one) for one in loki.entries()]).encode()
    got["otlp"] = b"\n".join(repr(one.request).encode() for one in otlp.got)
    got["shared-index"] = asyncio.run(_rows(url)).encode()
    return counts, got, b"".join(_read(path) for path in place.state.rglob("*") if path.is_file())


def _read(path):
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


async def _rows(url):
    """All that stands in the database."""
    db = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        tables = await db.fetch(
            "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables"
            " WHERE schemaname LIKE 'llm_proxy%'"
        )
        return "\n".join([one[0] for (name,) in tables for one in await db.fetch(f"SELECT t::text FROM {name} t")])
    finally:
        await db.close()


@pytest.mark.parametrize("level", [*LEVELS, ""])
def test_what_a_sink_is_given_is_no_more_than_what_is_kept(tmp_path, shared, level):
    """Loki, OpenTelemetry with content, CSV with all columns, recordings, dataset, the index of all machines."""
    place = Place(tmp_path, Options(index=str(tmp_path / "state/index.db"), projects=False, posts=True))
    settled(place, level)
    with ExitStack() as stack:
        loki = stack.enter_context(FakeLoki())
        otlp = Receiver()
        stack.callback(otlp.stop)
        counts, got, state = sent(place, loki, otlp, shared)
    if level:
        calls, hidden = LEVELS[level]
        assert counts == {calls + 1}
        wrong = [f"{name}: {word}" for name, data in got.items() for word in hidden if word.encode() in data.lower()]
        assert wrong == []
        assert not any(word.encode() in state.lower() for word in hidden)
    else:  # this also shows that the canaries sing, in each
        assert all(b"canary-asked" in data or b"canary-said" in data for data in got.values()), got.keys()
    assert all(OTHERS in data for data in got.values())
    if level in ("metadata", "redacted"):  # a recording has no field for the model
        assert [name for name, data in got.items() if b"claude-sonnet-4-5" not in data and name != "daily"] == []
