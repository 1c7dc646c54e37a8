"""Every page is also JSON, described by OpenAPI: what is described is what is answered, and nothing breaks on the way."""

import asyncio
import contextlib
import json
import re
import threading
import time
from urllib.parse import quote, urlencode

import pytest
from aiohttp.test_utils import TestClient, TestServer
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from openapi_spec_validator import validate

from llm_proxy.explorer import guard, openapi, site
from llm_proxy.explorer.asking import whole
from llm_proxy.explorer.options import Options
from llm_proxy.explorer.page import Extra, Page
from llm_proxy.explorer.routes import EXTRAS, PAGES
from llm_proxy.index.queries import TookTooLong
from tests.explored import HOSTILE, record


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return record(tmp_path_factory.mktemp("explored"))


@contextlib.asynccontextmanager
async def _client(made, **options):
    state = made.logs.parent / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    headers = guard.bearer(guard.new_secret(state))
    app = site.application(Options(index=str(made.index), logs=str(made.logs), state=str(state), **options))
    async with TestClient(TestServer(app), headers=headers) as client:
        yield client


@pytest.fixture
async def client(made):
    async with _client(made) as client:
        yield client


def _addresses(page, made):
    """Paths that the page can be asked at: all ids there are, all words its parameters take."""
    names = re.findall(r"\{(\w+)", page.path)
    ids = {"sessions": made.sessions.values(), "calls": [id for ids in made.calls.values() for id in ids]}
    first = page.path.split("/")[1]
    paths = [page.path.replace("{id}", quote(id, safe="")) for id in ids.get(first, ())] if names else [page.path]
    for path in paths:
        yield path
    chosen = [(param.name, choice) for param in page.params for choice in param.choices]
    chosen += [(param.name, str(param.default)) for param in page.params if type(param.default) is int]
    chosen += [
        (param.name, text)
        for param in page.params
        if param.rule.startswith("text")
        for text in ("claude", *HOSTILE[:3])
    ]
    for path in paths[:3]:
        for pair in chosen:
            yield f"{path}?{urlencode([pair])}"


def _api(page, path):
    return "/llm-proxy/api" + (f"/sessions{path[1:]}" if page.path == "/" else path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_what_is_described_is_what_is_answered(client, made, page):
    """Of each session and call, and with each value of each parameter: the schema holds, and the page is there too."""
    told = await (await client.get("/llm-proxy/api/openapi.json")).json()
    path = f"/llm-proxy/api{openapi.path_of(page)}"
    schema = told["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema, f"{page.name}: its view says no type that it returns"
    judge = Draft202012Validator(schema | {"components": told["components"]})
    error = Draft202012Validator(told["components"]["schemas"]["Error"])
    fine = 0
    for address in _addresses(page, made):
        answer = await client.get(_api(page, address))
        if answer.status != 200:
            assert answer.status in (400, 404, 410), (address, await answer.text())
            error.validate(await answer.json())
        elif answer.content_type == "application/json" and "Content-Disposition" not in answer.headers:
            fine += 1
            wrong = best_match(judge.iter_errors(await answer.json()))
            assert wrong is None, f"{address}: {wrong.json_path}: {wrong.message[:500]}"
        shown = await client.get("/llm-proxy" + address)
        assert shown.status == answer.status, (address, await shown.text())
        if shown.content_type == "text/html":
            text = await shown.text()
            assert text.count("<h1") == 1 and "</html>" in text, address
    assert fine


def test_the_description_is_openapi(made):
    """By the specification's own schema; every page is in it, every path parameter, every extra that has a title."""
    told = openapi.describe(PAGES, EXTRAS, "/llm-proxy", "1")
    validate(told)
    assert len(told["paths"]) == len(PAGES) + sum(bool(extra.title) for extra in EXTRAS)
    ids = [operation["get"]["operationId"] for operation in told["paths"].values()]
    assert len(set(ids)) == len(ids)
    assert '"decimal"' not in json.dumps(told) and "llm_proxy." not in json.dumps(told)


async def test_the_overview(client):
    """For people a page with every operation and its parameters, for programs the same as JSON."""
    page = await (await client.get("/llm-proxy/api/", headers={"Accept": "text/html"})).text()
    told = await (await client.get("/llm-proxy/api/")).json()
    assert told["openapi"] == "/llm-proxy/api/openapi.json"
    for one in told["operations"]:
        assert f"<code>{one['path']}</code>" in page
    home = next(one for one in told["operations"] if one["path"] == "/llm-proxy/api/sessions")
    assert "n" in home["parameters"] and "utc" in home["parameters"]
    again = await client.get("/llm-proxy/api", allow_redirects=False)
    assert (again.status, again.headers["Location"]) == (307, "/llm-proxy/api/")


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("nothing", 404),
        ("sessions?n=0", 400),
        ("sessions?n=x%00%1b", 400),
        ("sessions?utc=2", 400),
        ("sessions/no-such-session", 404),
        ("calls/no-such-call", 404),
        ("calls/..%2F..%2Fstate%2Fsecret", 404),
        ("static/..%2fguard.py", 404),
    ],
)
async def test_errors_are_json_below_api_and_pages_elsewhere(client, address, status):
    """Both say what is wrong; what was asked for is escaped."""
    told = await client.get(f"/llm-proxy/api/{address}")
    assert told.status == status and set(await told.json()) == {"error", "message"}
    page = await client.get(f"/llm-proxy/{address.replace('sessions?', '?')}")
    assert page.status == status and page.content_type == "text/html"
    assert (await told.json())["error"] in (await page.text()).replace("&#39;", "'")


async def test_an_unknown_parameter_is_ignored_and_named(client):
    """Nothing is silently left out."""
    page = await (await client.get("/llm-proxy/?colour=red&%3Cscript%3E=1&n=5")).text()
    assert "ignored: colour, &lt;script&gt;" in page


async def test_queries_that_take_too_long_are_stopped(made, monkeypatch):
    """503, as a page and as JSON, with what to do about it; others are served meanwhile."""

    def view(record, asked) -> openapi.Any:
        if asked["n"] == 1:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                list(record.index.rows("SELECT count(*) FROM texts a, texts b, texts c", {}))
        raise TookTooLong

    slow = Page("/slow", "slow", "Slow.", (whole("n", "N.", 0, 1, 0),), view, limit=0.3)
    monkeypatch.setattr(site, "PAGES", (*PAGES, slow))
    async with _client(made) as client:
        began = time.monotonic()
        answers = await asyncio.gather(*(client.get(f"/llm-proxy/{kind}slow?n=1") for kind in ("", "api/")))
        assert time.monotonic() - began < 5
        assert [answer.status for answer in answers] == [503, 503]
        assert "Narrow it" in await answers[0].text() and "Narrow it" in (await answers[1].json())["message"]


async def test_visitors_do_not_wait_for_each_other(made, monkeypatch):
    """While one view computes, another page comes and an event stream goes on."""
    begun, over = threading.Event(), threading.Event()

    def view(record, asked) -> openapi.Any:
        begun.set()
        while not over.is_set():  # holds the interpreter's lock as long as it is let
            sum(range(1000))
        raise TookTooLong

    async def events(request):
        stream = site.web.StreamResponse()
        await stream.prepare(request)
        for _ in range(50):
            await stream.write(f"{time.monotonic()}\n".encode())
            await asyncio.sleep(0.02)
        return stream

    monkeypatch.setattr(site, "PAGES", (*PAGES, Page("/slow", "slow", "Slow.", (), view)))
    monkeypatch.setattr(site, "EXTRAS", (*EXTRAS, Extra("/ticks", events)))
    async with _client(made) as client:
        slow = asyncio.create_task(client.get("/llm-proxy/slow"))
        await asyncio.to_thread(begun.wait, 5)
        ticks = await client.get("/llm-proxy/ticks")
        assert (await client.get("/llm-proxy/api/sessions")).status == 200
        times = [float(line) for line in (await ticks.text()).split()]
        assert len(times) == 50 and not slow.done()
        over.set()
        assert (await slow).status == 503


async def test_a_defect_is_told_without_its_details(made, monkeypatch, caplog):
    """500, and the trace goes to the log."""

    def view(record, asked) -> openapi.Any:
        raise RuntimeError("/home/secret path")

    monkeypatch.setattr(site, "PAGES", (*PAGES, Page("/broken", "broken", "Broken.", (), view)))
    async with _client(made) as client:
        for kind in ("", "api/"):
            answer = await client.get(f"/llm-proxy/{kind}broken")
            assert answer.status == 500 and "secret path" not in await answer.text()
    assert "secret path" in caplog.text


async def test_the_foot_and_the_bar_say_how_it_stands(made, tmp_path):
    """How much is recorded; whether recording goes on, by the keeper's own word, and not longer than it lives."""
    journal = tmp_path / "journal"
    journal.mkdir()

    async def bar(**options):
        async with _client(made, **options) as client:
            page = await (await client.get("/llm-proxy/")).text()
        assert re.search(r"\d+ sessions, \d+ calls, [\d.]+ (?:kB|MB)", page)
        return re.search(r'class="rec" title="([^"]*)"><i class="dot (\w*)"></i><span>([^<]*)<', page).groups()

    def keeper(**facts):
        (journal / "keeper.json").write_text(json.dumps({"pid": 1, "state": "ok"} | facts))

    assert (await bar())[1:] == ("", "stand-alone")
    assert (await bar(socket="/x"))[1:] == ("err", "not recording")
    assert (await bar(journal=str(journal)))[1:] == ("warn", "degraded")
    keeper()
    assert (await bar(journal=str(journal)))[1:] == ("ok", "recording")
    for facts in (
        {"state": "trouble", "last_error": "<b>full"},
        {"lag_bytes": 10**9},
        {"pid": 2**22 + 1},
        {"pid": "x"},
    ):
        keeper(**facts)
        said = await bar(journal=str(journal))
        assert said[1:] == ("warn", "degraded") and "<b>" not in said[0]


async def test_before_there_is_an_index(made, tmp_path):
    """A daemon that has just begun: a page that looks again by itself, not a defect."""
    async with _client(made._replace(index=tmp_path / "index.db")) as client:
        page = await client.get("/llm-proxy/")
        assert (page.status, page.headers["Retry-After"], page.headers["Refresh"]) == (503, "2", "2")
        (tmp_path / "index.db").write_bytes(b"no database at all" * 100)
        told = await client.get("/llm-proxy/api/sessions")
        assert told.status == 503 and "llm-proxy reindex" in (await told.json())["message"]
