"""Figures: sums and percentiles are those of the calls of each hour, day and month, and charts are what tables say."""

from __future__ import annotations

import csv
import io
import itertools
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from aiohttp.test_utils import TestClient, TestServer

from llm_proxy.explorer import asking, guard, render, site
from llm_proxy.explorer.asking import BadValue
from llm_proxy.explorer.options import Options
from llm_proxy.explorer.pages import figures
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.queries import Filter, open_index
from llm_proxy.index.record import Record
from scripts.make_logs import make
from tests.explored import record

END = 1_795_000_000
NOW = datetime.fromtimestamp(END, UTC)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    found = record(tmp_path_factory.mktemp("record"), END)
    make(found.logs, calls=400, sessions=60, end=END)
    make(found.logs, calls=200, sessions=1, seed=9, end=END + 25 * 86_400)  # some two hours long
    indexer = Indexer(found.index, found.logs)
    indexer.catch_up_all()
    indexer.close()
    return found


@pytest.fixture(scope="module")
def calls(made):
    with open_index(made.index) as opened:
        return list(opened.calls(Filter()))


def shown(made, query="", now=NOW):
    pairs = [tuple(pair.split("=", 1)) for pair in query.split("&") if pair]
    asked = asking.asked("/figures", figures.PARAMS, pairs, {}, now)
    with open_index(made.index) as opened:
        return figures.view(Record(opened, made.logs), asked)


def percentile(values, share):
    ordered = sorted(values)
    return ordered[-(-len(ordered) * share // 100) - 1] if ordered else None


FILTERS = {
    "": lambda call: True,
    "model=claude-opus-4-5&model=gpt-5.2-codex": lambda call: call.model in ("claude-opus-4-5", "gpt-5.2-codex"),
    "project=compiler": lambda call: call.project == "compiler",
    "project=compiler&model=claude-haiku-4-5": lambda call: (
        (call.project, call.model) == ("compiler", "claude-haiku-4-5")
    ),
    "provider=openai": lambda call: call.provider == "openai",
}


@pytest.mark.parametrize(
    "span",
    [
        "range=30d",
        "range=7d",
        "range=24h",
        "range=12m",
        "from=2026-10-25&to=2026-11-08",
        "to=2026-11-10&from=2026-11-09",
    ],
)
@pytest.mark.parametrize("filters", FILTERS)
def test_each_span_comes_to_what_its_calls_do(made, calls, span, filters):
    """Sums, percentiles and gaps, with the sums that are kept and without them, against the calls themselves."""
    view = shown(made, f"{span}&{filters}&utc=1")
    chosen = [call for call in calls if FILTERS[filters](call)]
    panels = {panel.name: {series.name: series.values for series in panel.series} for panel in view.panels}
    assert view.spans[-1].running == (not span.startswith(("from", "to")))
    inside = []
    for place, one in enumerate(view.spans):
        assert one.since_ns == (view.spans[place - 1].until_ns if place else one.since_ns)
        some = [call for call in chosen if one.since_ns <= call.started_ns < one.until_ns]
        inside += some
        if not some:
            assert all(series[place] is None for panel in panels.values() for series in panel.values())
            continue
        assert panels["requests"]["without an error"][place] + panels["requests"]["with an error"][place] == len(some)
        used = [call.usage for call in some if call.usage]
        assert sum(series[place] for series in panels["tokens"].values()) == sum(usage.total for usage in used)
        spent = sum(
            (call.usd for call in some if call.usd is not None and call.basis in ("list", "override")), Decimal(0)
        )
        assert sum((series[place] for series in panels.get("spend", {}).values()), Decimal(0)) == spent
        firsts = [call.ttfb_ms for call in some if call.ttfb_ms is not None]
        for share in (50, 95, 99):
            assert panels["first_token"][f"p{share}"][place] == percentile(firsts, share)
            assert panels["latency"][f"p{share}"][place] == percentile(
                [call.total_ms for call in some if call.total_ms is not None], share
            )
        assert panels["errors"]["errors"][place] == sum(call.failed for call in some) / len(some)
        prompt = sum(usage.prompt for usage in used)
        assert panels["cache"]["hit rate"][place] == (
            sum(usage.cache_read for usage in used) / prompt if prompt else None
        )
    totals = view.sums.totals
    assert (totals.calls, totals.errors) == (len(inside), sum(call.failed for call in inside))
    assert view.sums.first_token.p95 == percentile([call.ttfb_ms for call in inside if call.ttfb_ms is not None], 95)
    long = view.spans[-1].until_ns - view.spans[0].since_ns
    assert view.sums.before.calls == sum(
        view.spans[0].since_ns - long <= call.started_ns < view.spans[0].since_ns for call in chosen
    )


@pytest.mark.parametrize("by", ["model", "project", "session"])
@pytest.mark.parametrize("filters", FILTERS)
def test_groups_come_to_what_their_calls_do(made, calls, by, filters):
    view = shown(made, f"by={by}&{filters}&utc=1")
    since, until = view.spans[0].since_ns, view.spans[-1].until_ns
    chosen = [call for call in calls if FILTERS[filters](call) and since <= call.started_ns < until]
    assert view.group_count == len({getattr(call, by) for call in chosen})
    for group in view.groups:
        some = [call for call in chosen if getattr(call, by) == group.key]
        assert (group.sums.calls, group.sums.errors) == (len(some), sum(call.failed for call in some))
        assert group.sums.usage.total == sum(call.usage.total for call in some if call.usage)
        assert group.first_token.p50 == percentile([call.ttfb_ms for call in some if call.ttfb_ms is not None], 50)
    worth = [group.sums.cost.usd + group.sums.cost.equivalent for group in view.groups]
    assert all(a - b > Decimal("-0.00001") for a, b in itertools.pairwise(worth))


@pytest.mark.parametrize("by", ["project", "session"])
def test_a_session_that_reaches_beyond_counts_with_what_is_within(made, calls, by):
    """The kept sums of a session are of no use where the time that is asked about begins in the middle of it."""
    hour = 3600 * 10**9
    of_session = {}
    for call in calls:
        of_session.setdefault(call.session, []).append(call.started_ns // hour)
    within = next(min(hours) + 1 for hours in of_session.values() if min(hours) < max(hours))
    view = shown(made, f"range=24h&by={by}&utc=1", datetime.fromtimestamp((within + 23) * 3600 + 1800, UTC))
    since, until = view.spans[0].since_ns, view.spans[-1].until_ns
    assert since == within * hour and any(min(hours) < within <= max(hours) for hours in of_session.values())
    chosen = [call for call in calls if since <= call.started_ns < until]
    found = {group.key: group.sums.calls for group in view.groups}
    assert found == {
        key: sum(getattr(call, by) == key for call in chosen) for key in {getattr(one, by) for one in chosen}
    }


def test_days_have_the_hours_they_have(made, monkeypatch):
    """On the day the clocks are put back a day is 25 hours long, and no call falls between two days."""
    monkeypatch.setenv("TZ", "Europe/Vienna")
    time.tzset()
    try:
        view = shown(made, "from=2026-10-24&to=2026-10-27")
        hours = [(one.until_ns - one.since_ns) // (3600 * 10**9) for one in view.spans]
        assert [one.label for one in view.spans] == ["24 Oct", "25 Oct", "26 Oct", "27 Oct"] and hours == [
            24,
            25,
            24,
            24,
        ]
        first = datetime.fromtimestamp(view.spans[0].since_ns / 1e9, ZoneInfo("Europe/Vienna"))
        assert (first.hour, first.minute) == (0, 0)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_months(made):
    view = shown(made, "range=12m&utc=1")
    assert view.spans[-1].label == "Nov 2026" and 12 <= len(view.spans) <= 13
    assert all(datetime.fromtimestamp(one.since_ns / 1e9, UTC).day == 1 for one in view.spans[1:])


@pytest.mark.parametrize(
    "query", ["from=2026-11-02&to=2026-11-01", "from=1990-01-01&to=2026-01-01", "range=1d", "by=colour"]
)
def test_what_cannot_be_shown_is_refused(made, query):
    with pytest.raises(BadValue):
        shown(made, query)


@pytest.fixture
async def client(made):
    state = made.logs.parent / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    headers = guard.bearer(guard.new_secret(state))
    app = site.application(Options(index=str(made.index), logs=str(made.logs), state=str(state)))
    async with TestClient(TestServer(app), headers=headers) as opened:
        yield opened


async def test_every_panel_is_a_table_and_a_csv(client):
    """The page has all figures without scripts, and the CSV has them in plain numbers."""
    page = await (await client.get("/llm-proxy/figures?utc=1")).text()
    told = await (await client.get("/llm-proxy/api/figures?utc=1")).json()
    for panel in told["panels"]:
        assert f'id="{panel["name"]}"' in page
        answer = await client.get(f"/llm-proxy/figures.csv?of={panel['name']}&utc=1")
        assert answer.content_type == "text/csv"
        rows = list(csv.reader(io.StringIO(await answer.text())))
        assert rows[0] == ["since", *(series["name"] for series in panel["series"])]
        assert len(rows) == 1 + len(told["spans"])
        for place, series in enumerate(panel["series"], start=1):
            assert [float(row[place]) if row[place] else None for row in rows[1:]] == [
                None if value is None else float(value) for value in series["values"]
            ]
    rows = list(
        csv.DictReader(io.StringIO(await (await client.get("/llm-proxy/figures.csv?of=groups&by=project")).text()))
    )
    assert {row["project"] for row in rows} >= {"ledger", "compiler"}
    assert (
        " style=" not in page
        and "&lt;script&gt;window.pwned" in await (await client.get("/llm-proxy/figures?by=model")).text()
    )


def test_what_others_made_is_what_it_says():
    """Each vendored file has the SHA-256 and the licence that the lock names, and nothing else lies there."""
    folder = render.STATIC / "vendor"
    locked = json.loads((folder / "vendor.json").read_text())
    files = {file: about["sha256"] for package in locked.values() for file, about in package["files"].items()}
    assert {path.name for path in folder.iterdir()} == {*files, "vendor.json"}
    for file, known in files.items():
        assert sha256((folder / file).read_bytes()).hexdigest() == known, file
    assert locked["uplot"]["version"] == "1.6.32" and locked["uplot"]["license"] == "MIT"
    assert "MIT License" in (folder / "uPlot.LICENSE").read_text()


def test_the_lock_is_kept(tmp_path):
    """`scripts/vendor --check` needs no network and names a file that is not as it should be."""
    command = [sys.executable, str(ROOT / "scripts" / "vendor"), "--check"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    for path in ("scripts/vendor", "llm_proxy/explorer/static/vendor"):
        source, copy = ROOT / path, tmp_path / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        for file in [source] if source.is_file() else source.iterdir():
            to = copy if source.is_file() else copy / file.name
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(file.read_bytes())
    with (tmp_path / "llm_proxy/explorer/static/vendor/uPlot.min.css").open("a") as file:
        file.write("/* */")
    spoiled = subprocess.run(
        [sys.executable, str(tmp_path / "scripts/vendor"), "--check"], capture_output=True, text=True, check=False
    )
    assert spoiled.returncode == 1 and "uPlot.min.css" in spoiled.stderr
