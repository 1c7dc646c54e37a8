"""The explorer in a real browser: what happens is seen as it happens, and nothing of what is recorded runs."""

import json
import time
import uuid

import pytest

from llm_proxy.index.ingest import Indexer
from tests import journals
from tests.browser import browser, look, served, visit  # noqa: F401  # fixtures
from tests.explored import HOSTILE
from tests.test_explorer_live import SSE, paced, sse, with_id

SERIALS = iter(range(1, 10_000))


def call(*texts, **options):
    """A call that says these, one event each."""
    begun = {"type": "message_start", "message": {"model": "claude-opus-4-5", "usage": {"input_tokens": 9}}}
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": one}} for one in texts
    ]
    options.setdefault("wall", time.time_ns())
    return journals.Call(next(SERIALS), headers=SSE, pieces=paced(sse(begun, *deltas), 5), **options)


def bar(page, word):
    """Wait until the state bar says it."""
    page.wait_for_function("word => document.querySelector('#follow b').textContent === word", arg=word)


def test_calls_appear_speak_and_finish(served, look):  # noqa: F811
    """A card at the top, its words as they come, at the end a row; the bar says Following, and nobody reloads."""
    page = look("/live")
    bar(page, "Following")
    one = call("The old reader ", "guessed the delimiter. ", "It was wrong. ")
    served.add(one.open, one.request)
    card = page.locator(f"#f-{one.id}")
    card.wait_for()
    assert "waiting for the first byte" in card.inner_text()
    served.add(one.head, *one.response[:3])
    page.wait_for_function(
        "id => document.querySelector(`#f-${id} [data-stream]`).textContent.includes('delimiter')", arg=str(one.id)
    )
    assert "first token" in card.inner_text() and card.get_attribute("data-phase") == "text"
    assert page.locator("[data-inflight]").inner_text() == "1"
    served.add(*one.response[3:], one.end)
    page.locator(f"#d-{one.id}").wait_for()
    assert card.count() == 0 and page.locator("#none").is_visible()
    assert page.locator("#d-" + str(one.id)).inner_text().count("The old reader guessed")


def test_a_word_is_on_the_screen_in_time(served, look):  # noqa: F811
    """From the journal to the text on the page within 300 ms, median of twenty words."""
    page = look("/live")
    bar(page, "Following")
    words = [f"word{number} " for number in range(20)]
    one = call(*words)
    served.add(one.open, one.request, one.head, one.response[0])
    page.locator(f"#f-{one.id}").wait_for()
    page.evaluate(
        """id => { window.seen = {}; new MutationObserver(() => {
            for (const word of document.querySelector(`#f-${id} [data-stream]`)?.textContent.match(/word\\d+ /g) ?? [])
                window.seen[word] ??= Date.now();
        }).observe(document.querySelector('#flights'), {childList: true, subtree: true, characterData: true}); }""",
        str(one.id),
    )
    sent = {}
    for word, frame in zip(words, one.response[1:], strict=True):
        sent[word] = time.time() * 1000
        served.add(frame)
        page.wait_for_function("word => window.seen[word]", arg=word)
    seen = page.evaluate("window.seen")
    took = sorted(seen[word] - sent[word] for word in words)
    served.add(one.end)
    assert took[len(took) // 2] < 3000, took  # a wide guard: measured are some 20 ms


def test_space_pauses_and_going_on_catches_up(served, look):  # noqa: F811
    """The page stands still and says so; what came meanwhile is counted, and there when one goes on."""
    page = look("/live")
    bar(page, "Following")
    first, second = call("before ", "after "), call("later ")
    served.add(first.open, first.request, first.head, *first.response[:2])
    stream = page.locator(f"#f-{first.id} [data-stream]")
    stream.get_by_text("before").wait_for()
    page.keyboard.press("Space")
    bar(page, "Paused")
    served.add(*first.response[2:], second.open)
    page.get_by_role("button", name="1 new call", exact=True).wait_for()
    assert "after" not in stream.inner_text() and page.locator(f"#f-{second.id}").count() == 0
    assert page.locator("#pause").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Space")
    bar(page, "Following")
    stream.get_by_text("after").wait_for()
    page.locator(f"#f-{second.id}").wait_for()
    served.add(first.end, second.end)


def test_the_page_never_scrolls_by_itself(served, look):  # noqa: F811
    """Who reads further down keeps the place: new calls wait behind a pill."""
    page = look("/live", height=400)
    bar(page, "Following")
    page.mouse.wheel(0, 300)
    bar(page, "Paused")
    page.wait_for_function("scrollY === Math.min(300, document.documentElement.scrollHeight - innerHeight)")
    at = page.evaluate("scrollY")
    calls = [call("rain ") for _ in range(3)]
    served.add(*(frame for one in calls for frame in one.frames[:-1]))
    pill = page.get_by_role("button", name="3 new calls")
    pill.wait_for()
    assert page.evaluate("scrollY") == at and page.locator("#flights article").count() == 0
    pill.click()
    bar(page, "Following")
    page.wait_for_function("document.querySelectorAll('#flights article').length === 3 && scrollY === 0")
    served.add(*(one.end for one in calls))


def test_what_is_told_anew_waits_too(served, look):  # noqa: F811
    """A paused page stands still also when its stream begins anew, as behind a daemon that has started again."""
    page = look("/live")
    bar(page, "Following")
    served.journal.segment_size = 0  # so that a journal made anew has a lower number
    first, later = call("before "), [call("later ") for _ in range(2)]
    served.add(*first.frames[:-1])
    page.locator(f"#f-{first.id}").get_by_text("before").wait_for()
    page.keyboard.press("Space")
    bar(page, "Paused")
    folder = served.journal.folder
    served.journal.close()
    for segment in folder.glob("*.seg"):
        segment.unlink()
    served.journal = journals.Journal(folder)
    served.add(*(frame for one in later for frame in one.frames[:-1]))
    page.get_by_role("button", name="2 new calls").wait_for()
    shown = "[...document.querySelectorAll('#flights article')].map(one => one.id)"
    assert page.evaluate(shown) == [f"f-{first.id}"]
    page.keyboard.press("Space")
    bar(page, "Following")
    assert sorted(page.evaluate(shown)) == sorted(f"f-{one.id}" for one in later)
    served.add(*(one.end for one in later))


def test_a_lost_connection_is_said_and_made_again(served, look):  # noqa: F811
    """Reconnecting, with how long ago the last event was; then Following, with what came meanwhile."""
    page = look("/live")
    bar(page, "Following")
    page.context.set_offline(True)
    served.disconnect()
    bar(page, "Reconnecting")
    assert "last event" in page.locator("#follow").inner_text()
    one = call("meanwhile ")
    served.add(*one.frames[:-1])
    page.context.set_offline(False)
    bar(page, "Following")
    page.locator(f"#f-{one.id}").get_by_text("meanwhile").wait_for()
    served.add(one.end)


def test_only_the_state_bar_is_announced(served, look):  # noqa: F811
    """A screen reader is not read every word."""
    page = look("/live")
    bar(page, "Following")
    one = call("quiet ")
    served.add(*one.frames[:-1])
    page.locator(f"#f-{one.id}").wait_for()
    live = page.evaluate(
        "[...document.querySelectorAll('[aria-live], [role=status], [role=log]')].map(e => [e.getAttribute('aria-live') ?? 'status', e.closest('#follow') !== null])"
    )
    assert [kind for kind, inside in live if not inside and kind != "off"] == []
    served.add(one.end)


def test_without_javascript_it_is_the_state_as_of_now(served, look):  # noqa: F811
    """The words so far, and a link that loads the page again."""
    one = call("as of now ")
    served.add(*one.frames[:-1])
    page = look("/live", java_script_enabled=False)
    assert "as of now" in page.locator(f"#f-{one.id}").inner_text()
    assert "this page does not change by itself" in page.locator("#follow").inner_text()
    page.get_by_role("link", name="Reload").click()
    assert page.locator(f"#f-{one.id}").count() == 1
    served.add(one.end)


# --- hostile records

HOSTILE_PAGES = (
    "/",
    "/?sort=cost",
    "/search?q=pwned",
    "/search?q=%3Cscript%3Ewindow.pwned%3D1%3C%2Fscript%3E",
    "/figures?range=30d",
    "/figures?range=30d&tab=table&of=spend",
    "/figures?range=30d&by=project",
    "/live",
    "/sessions/{hostile}",
    "/sessions/{hostile}?view=calls",
    *("/calls/{%d}" % number for number in range(4)),  # noqa: UP031
    *(f"/calls/{{{number}}}?tab={tab}" for number in range(4) for tab in ("diff", "events", "http", "raw")),
    "/sessions/%3Cscript%3Ewindow.pwned=1%3C%2Fscript%3E",
    "/?project=%3Cimg%20src%3Dx%20onerror%3Dwindow.pwned%3D2%3E&nosuch=%3Csvg%2Fonload%3Dwindow.pwned%3D3%3E",
    "/?n=%22%3E%3Csvg%2Fonload%3Dwindow.pwned%3D4%3E",
    "/nothing/%22%3E%3Csvg%2Fonload%3Dwindow.pwned%3D4%3E",
)


@pytest.mark.parametrize("path", HOSTILE_PAGES)
def test_nothing_of_what_is_recorded_runs(served, look, path):  # noqa: F811
    """Whatever a model, a client or a URL says, in every field: it is text. Nothing loads from elsewhere, nothing is
    reported by the content security policy; opening everything that opens changes nothing of that."""
    calls = served.made.calls["hostile"]
    page = look(path.format(*calls, **served.made.sessions) if "{" in path else path)
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
    home = page.url
    for _ in range(3):  # what opens may hold what opens
        page.evaluate("document.querySelectorAll('main details:not([open])').forEach(one => one.open = true)")
        page.wait_for_load_state("networkidle")
    for button in page.locator("main button:visible").all()[:12]:
        if button.is_visible():
            button.click(timeout=2000, force=True)
    page.keyboard.press("Escape")
    page.wait_for_load_state("networkidle")
    assert page.url.split("#")[0] == home.split("#")[0]
    assert page.evaluate("window.pwned") is None
    assert (
        page.evaluate(
            "document.querySelectorAll('main script, main iframe, main object, main embed, main base, main link, main style, main meta, main form[action^=http]').length"
        )
        == 0
    )
    bad = page.evaluate(
        """[...document.querySelectorAll('*')].filter(one => [...one.attributes].some(({name, value}) =>
            name.startsWith('on') || name === 'style' && one.closest('main') && !one.closest('.uplot') ||
            /^(href|src|action|formaction|xlink:href)$/.test(name) && /^\\s*(javascript|vbscript|data:text)/i.test(value)))
            .map(one => one.outerHTML.slice(0, 200))"""
    )
    assert not bad


def test_nothing_of_what_is_said_live_runs(served, look):  # noqa: F811
    """Words, thoughts, tool names, models, paths and errors of calls in flight, and of those that have just ended."""
    page = look("/live")
    bar(page, "Following")
    bad = "".join(HOSTILE)
    events = [
        {"type": "message_start", "message": {"model": HOSTILE[1], "usage": {"input_tokens": 3}}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": one + " "}}
            for one in HOSTILE
        ),
        {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "name": HOSTILE[2]}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": bad + " "}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "thinking_delta", "thinking": bad + " "}},
        {"type": "error", "error": {"type": HOSTILE[0], "message": bad}},
    ]
    one = journals.Call(
        next(SERIALS),
        target='/v1/messages?"><img/src=x/onerror=window.pwned=1>',
        upstream='"><svg/onload=window.pwned=2>',
        headers=SSE,
        pieces=paced(sse(*events, named=False), 5),
        error=bad,
        wall=time.time_ns(),
    )
    served.add(*one.frames[:2])
    page.locator(f"#f-{one.id}").wait_for()
    served.add(*one.frames[2:-1])
    page.wait_for_function("id => document.querySelector(`#f-${id}`).textContent.includes('iframe')", arg=str(one.id))
    assert page.evaluate("document.querySelectorAll('main img, main iframe, main script, main svg').length") == 0
    served.add(one.end)
    page.locator(f"#d-{one.id}").wait_for()
    assert page.evaluate("window.pwned") is None
    assert look("/live").evaluate("window.pwned") is None


def test_a_live_turn_grows_at_the_end_of_its_conversation(served, look):  # noqa: F811
    """The open call of a session speaks on the conversation's page, and is told on no other's."""
    sessions = served.made.sessions
    ours = served.made.calls["live"][-1]
    page, other = look(f"/sessions/{sessions['live']}"), look(f"/sessions/{sessions['ledger']}")
    one = call("It lives longer now. ")
    frames = [with_id(frame, uuid.UUID(ours)) for frame in one.frames]
    served.add(*frames[:-1])
    page.locator(f".turn #f-{ours}").get_by_text("It lives longer now.").wait_for()
    assert other.locator(".lc").count() == 0
    served.add(frames[-1])
    page.locator(f"#f-{ours}").get_by_text("over; being recorded").wait_for()


def test_what_stands_around_a_live_turn_follows_it(served, look):  # noqa: F811
    """When the open call is recorded, heading, figures, outline and ending of the conversation's page say so too."""
    session, ours = served.made.sessions["live"], served.made.calls["live"][-1]
    page = look(f"/sessions/{session}")
    assert page.locator(".phead", has_text="1 call open").count() and page.locator(".outline", has_text="open").count()
    (log,) = served.made.logs.glob(f"*/*/{session}.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    answer = next(line for line in lines if line["type"] == "response")
    asked = next(line for line in lines if line["_meta"].get("request_id") == ours)
    with log.open("a") as file:
        file.write(json.dumps(answer | {"_meta": asked["_meta"], "seq": asked["seq"]}) + "\n")
    indexer = Indexer(served.made.index, served.made.logs)
    indexer.catch_up_all()
    indexer.close()
    served.add(*(with_id(frame, uuid.UUID(ours)) for frame in call("Done. ").frames))
    page.locator(".ending", has_text="ended complete").wait_for()
    assert not page.locator(".phead", has_text="open").count() and not page.locator(".outline", has_text="open").count()
    assert "2 turns" in page.locator(".phead .stats").inner_text()


def test_the_bar_tells_how_many_are_in_flight(served, look):  # noqa: F811
    """On the live page the number at its name grows and goes with the calls."""
    page = look("/live")
    bar(page, "Following")
    badge, before = page.locator(".nav .cnt"), page.locator("#flights article").count()
    one = call("soon ")
    served.add(one.open, one.request)
    page.locator(f"#f-{one.id}").wait_for()
    assert badge.inner_text() == str(before + 1)
    served.add(one.head, *one.response, one.end)
    page.locator(f"#d-{one.id}").wait_for()
    assert badge.is_visible() == bool(before)
