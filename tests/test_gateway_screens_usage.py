"""The gateway's page of usage: its charts' geometry, its sums beside the API's, and whose they are."""

import csv
import io
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.screens import fields
from llm_proxy.gateway.screens.charts import HEIGHT, Series, chart
from tests import gatewayscreens
from tests.gatewayscreens import ADMIN, judge

browser, visit, look, screens, windows = (
    gatewayscreens.browser,
    gatewayscreens.visit,
    gatewayscreens.look,
    gatewayscreens.screens,
    gatewayscreens.windows,
)

ADA = "ada@example.com"
DAYS = 40
_MODELS = (
    ("claude-sonnet-4-5", "anthropic"),
    ("gpt-5", "openai"),
    ("gpt-5-mini", "openai"),
    ("gemini-2.5-pro", "gemini"),
)
_COLUMNS = (
    *("id", "request_id", "attempt", "user_id", "api", "alias_used", "provider_used", "model_used", "stream"),
    *("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "cost"),
    *("status_code", "ending", "error", "milliseconds", "first_token_milliseconds", "created_at", "project"),
)


@pytest.fixture(scope="module")
def used(screens):
    """Forty days of calls of two people, as the store keeps them; on one day there was none."""
    screens.person(ADA)
    folder = screens.gateway.daemon.home / ".local/share/llm-proxy/gateway/gateway.db"
    now = datetime.now(UTC)
    rows = []
    for day in range(DAYS):
        for number in range(0 if day == 3 else 1 + day % 5):
            model, provider = _MODELS[(day + number) % len(_MODELS)]
            failed, name = (day + number) % 9 == 0, f"req-{day}-{number}"
            at = (now - timedelta(days=day)).replace(hour=0, minute=0, second=number + 1)
            rows.append(
                (
                    *(f"{name}-1", name, 1, 1 + number % 2, "chat", "<b>smart</b>", provider, model, True),
                    *(1000 * (day + 1), 50 + number, 600, 100, 0),
                    None if model == "gpt-5-mini" else 10**7 * (day + 1),
                    *((529, "upstream_failed", "overloaded") if failed else (200, "complete", "")),
                    *(2000, 400, at.strftime("%Y-%m-%d %H:%M:%S.%f"), "site" if number else ""),
                )
            )
    with closing(sqlite3.connect(folder)) as store, store:
        marks = ", ".join("?" * len(_COLUMNS))
        store.executemany(f"INSERT INTO request_logs ({', '.join(_COLUMNS)}) VALUES ({marks})", rows)
    return rows


PAGES = ("/usage", "/usage?range=24h&by=user", "/usage?range=12m&by=project", "/usage?from=2020-01-01&to=2020-02-01")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_for_everybody(screens, used, windows, path):
    """axe-core finds nothing, in light and, at 400 px where nothing scrolls sideways, in dark."""
    page = windows("light", ADMIN)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
    assert page.goto(screens.url + path).status == 200
    judge(page)
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 400, "height": 900})
    judge(page)


def test_bars_are_as_high_as_what_they_stand_for(screens, used, look):
    """As the browser draws them: heights by day in proportion to its requests, nothing on a day without any."""
    page = look("/usage?range=30d", ADMIN)
    panel = page.locator("section[aria-labelledby=h-requests]")
    bars = panel.locator(".bar")
    assert bars.count() == 30
    heights = panel.evaluate(
        "(one) => [...one.querySelectorAll('.bar')].map((bar) => [...bar.querySelectorAll('rect:not(.hit)')]"
        ".reduce((sum, part) => sum + part.getBoundingClientRect().height, 0))"
    )
    wanted = [sum(row[0].startswith(f"req-{day}-") for row in used) for day in range(29, -1, -1)]
    assert wanted[26] == heights[26] == 0
    unit = heights[29] / wanted[29]
    assert heights == pytest.approx([count * unit for count in wanted], abs=0.1)
    bars.nth(29).hover()
    assert panel.locator(".legend .at").inner_text() == f"{datetime.now(UTC).day} {datetime.now(UTC):%b}"
    assert panel.locator(".legend b").first.inner_text() == "0"  # answered, of one that failed
    page.mouse.move(0, 0)
    assert panel.locator(".legend .at").inner_text() == ""


@pytest.mark.parametrize("by", ["model", "alias", "provider", "project", "key", "user", "team"])
def test_a_table_has_the_api_s_sums(screens, used, by):
    """Row for row, and so has the CSV, over time; markup in names is text."""
    admin = screens.person(ADMIN)
    since = (datetime.now(UTC) - timedelta(days=29)).date()
    api = screens.gateway.want(
        200, "GET", f"/manage/usage?group_by={by}&all=true&from={since}", token=screens.gateway.admin
    )
    body = admin.get(f"/usage?by={by}").body.decode()
    table = body[body.index('id="groups"') : body.index("Last calls")]
    assert table.count('<tr><th scope="row">') == len(api) > 0
    for one in api:
        assert f"<td>{one['requests']:,}</td>" in table
    assert "<b>smart" not in body and "&lt;b&gt;smart" in body
    rows = list(csv.DictReader(io.StringIO(admin.get(f"/usage.csv?by={by}").body.decode())))
    assert sum(int(row["requests"]) for row in rows) == sum(one["requests"] for one in api)
    assert sum(float(row["cost"]) for row in rows) == pytest.approx(sum(one["cost"] for one in api))


def test_the_figures_on_top_are_the_sums(screens, used, look):
    """Cost without what is unpriced, and how much that is; success; means of whole answers."""
    page = look("/usage?range=90d", ADMIN)
    told = page.locator(".kpis").inner_text()
    failed = sum(row[16] == "upstream_failed" for row in used)
    unpriced = sum(row[14] is None for row in used)
    cost = sum(row[14] or 0 for row in used) / 1e9
    for wanted in (
        f"{failed} failed",
        f"{100 * (1 - failed / len(used)):.1f} %",
        f"{unpriced} calls unpriced",
        f"${cost:.2f}",
        "2.00 s",
        "400 ms",
    ):
        assert wanted in told, (wanted, told)
    assert page.locator("[aria-labelledby=h-calls] tbody tr").count() == 20


def test_everybody_sees_his_own(screens, used):
    """A member's page counts his own calls; what is others' he cannot ask for."""
    ada = screens.person(ADA)
    own = sum(row[3] == 2 and datetime.fromisoformat(row[20]).date() > _days_ago(30) for row in used)
    body = ada.get("/usage").body.decode()
    assert f"<dt>Requests</dt><dd>{own} " in body and ADMIN not in body
    assert ada.get("/usage?of=all").status == 403
    assert ada.get("/usage?of=1").status == 404
    assert ada.get("/usage?by=user").status == 400
    assert ada.get("/usage.csv?of=all").status == 403
    admins = screens.person(ADMIN).get("/usage?of=2").body.decode()
    assert f"<dt>Requests</dt><dd>{own} " in admins


def test_all_calls_are_gone_through_page_by_page(screens, used, look):
    """Each once, the newest first, and back to them."""
    page = look("/usage?range=90d", ADMIN)
    seen = []
    for _ in range(1 + len(used) // 20):
        rows = page.locator("[aria-labelledby=h-calls] tbody tr")
        seen += [row.locator("time").get_attribute("datetime") for row in rows.all()]
        older = page.get_by_role("link", name="Older calls")
        if not older.count():
            break
        older.click()
    assert len(seen) == len(used) and seen == sorted(seen, reverse=True)
    judge(page)
    page.get_by_role("link", name="Newest").click()
    assert page.locator("[aria-labelledby=h-calls] time").first.get_attribute("datetime") == seen[0]
    assert screens.person(ADMIN).get("/usage?before=nonsense").status == 400


def _days_ago(number):
    return (datetime.now(UTC) - timedelta(days=number)).date()


@pytest.mark.parametrize(
    ("query", "bars"),
    [
        ("range=24h", {24}),
        ("range=7d", {7}),
        ("range=90d", {90}),
        ("range=12m", {12, 13}),
        ("from={first}&to={first}", {24}),
        ("from={first}&to={last}", {10}),
        ("from={last}", {3}),
    ],
)
def test_a_range_has_a_bar_for_each_hour_day_or_month(screens, used, query, bars):
    """Also where nothing was."""
    query = query.format(first=_days_ago(11), last=_days_ago(2))
    body = screens.person(ADMIN).get(f"/usage?{query}").body.decode()
    cost = body[body.index('id="h-cost"') : body.index('id="h-tokens"')]
    assert cost.count('<g class="bar') in bars


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("range=1h", "must be one of 24h, 7d, 30d, 90d, 12m"),
        ("by=weather", "must be one of model, alias"),
        ("from=yesterday", "must be a day like 2026-01-31"),
        ("from=2026-02-01&to=2026-01-01", "must not be after"),
        ("from=1990-01-01&to=2026-01-01", "must be less than 3660 days before"),
        ("of=nobody", "must be a number"),
        ("colour=red", "is none; there are range, by, of"),
    ],
)
def test_what_cannot_be_asked_is_told(screens, query, said):
    answer = screens.person(ADMIN).get(f"/usage?{query}")
    assert answer.status == 400 and said in answer.body.decode()


@pytest.mark.parametrize(
    ("values", "unit", "top"),
    [
        ((0.3, 0.9), "usd", 1),
        ((11.0,), "usd", 20),
        ((0.0007,), "usd", 0.0008),
        ((1,), "count", 2),
        ((23,), "count", 30),
        ((5,), "count", 6),
        ((1_000_000,), "tokens", 1_000_000),
    ],
)
def test_the_uppermost_line_means_something_round(values, unit, top):
    """Never below the highest bar, and so does the line in the middle."""
    labels = [str(number) for number in range(len(values))]
    assert chart("one", "One", unit, labels, [Series("a", "c1", values)]).top == pytest.approx(top)


def test_parts_stand_upon_each_other():
    """From the line of 0 up, within the room of their bar; a series of nothing is left out."""
    made = chart(
        "one",
        "One",
        "count",
        ["a", "b"],
        [Series("x", "c1", (3, 0)), Series("y", "c2", (1, 5)), Series("z", "c3", (0, 0))],
    )
    assert [one.name for one in made.series] == ["x", "y"] and made.total == 9
    first, second = made.bars
    low, high = first.parts
    assert float(low.y) + float(low.height) == pytest.approx(HEIGHT, abs=0.02)
    assert float(high.y) + float(high.height) == pytest.approx(float(low.y), abs=0.02)
    assert float(low.height) == pytest.approx(3 * float(high.height), abs=0.05)
    assert len(second.parts) == 1 and float(second.parts[0].y) >= 0
    assert float(first.x) >= float(first.room) and float(first.x) + float(first.width) <= float(second.room)


@pytest.mark.parametrize("text", ["1e9", "٣", "-1", "1.2.3", "0x10", "nan", "9" * 16])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(Refusal, match="Budget: an amount"):
        fields.dollars("Budget", text)


@pytest.mark.parametrize(("text", "amount"), [("", None), (" $1,000.50 ", 1000.5), ("0", 0.0), ("$ 7", 7.0)])
def test_an_amount_is_read_as_people_write_it(text, amount):
    assert fields.dollars("Budget", text) == amount
