"""Why a prompt cache missed: each cause at each provider, what it cost, and that a cache that works is left alone."""

from decimal import Decimal

import pytest

from llm_proxy.dialects.digest import Usage
from llm_proxy.explorer import cache_miss
from llm_proxy.explorer.cache_miss import diagnose, missed, previous_of
from tests.calls import call, row

RATES = {name: Decimal(usd) for name, usd in (("input", "3"), ("cache_read", "0.3"), ("cache_write_5m", "3.75"))}
LONG = "Keep answers short. " * 400
MARK = {"cache_control": {"type": "ephemeral"}}


def claude(*, tools=("Bash", "Edit"), system=LONG, said=("Hello",), mark=MARK, **more):
    content = [{"role": "user" if n % 2 == 0 else "assistant", "content": one} for n, one in enumerate(said)]
    content[-1] = {"role": "user", "content": [{"type": "text", "text": said[-1]} | mark]}
    offered = [{"name": name, "description": f"{name} does what it says."} for name in tools]
    return {
        "model": "m",
        "tools": offered,
        "system": [{"type": "text", "text": system} | mark],
        "messages": content,
    } | more


LEFT = Usage(input=4, cache_read=0, cache_write_5m=20_000, output=300)
LOST = Usage(input=4, cache_read=0, cache_write_5m=21_000, output=300)


def two(before, after, *, usage=LOST, left=LEFT, gap=30.0, **about):
    """Diagnosed: two calls that lie `gap` seconds apart."""
    first = call(before, 1, usage=left)
    return diagnose(first, call(after, 2, at=gap, usage=usage, **about), RATES)


AGAIN = ("Hello", "Hi there", "And now?")
CASES = {
    "tools": (claude(), claude(tools=("Bash", "Edit", "Grep"), said=AGAIN), "tools"),
    "description": (claude(), claude(tools=("Bash", "Edit changed"), said=AGAIN), "tools"),
    "order of tools": (claude(), claude(tools=("Edit", "Bash"), said=AGAIN), "tools"),
    "date": (
        claude(system="Today is 2026-11-20.\n" + LONG),
        claude(system="Today is 2026-11-21.\n" + LONG, said=AGAIN),
        "timestamp",
    ),
    "clock": (
        claude(system=LONG + "Now: Friday, Nov 20, 14:02:11"),
        claude(system=LONG + "Now: Saturday, Nov 21, 09:12:44", said=AGAIN),
        "timestamp",
    ),
    "id": (
        claude(system=f"Request 0199f3a2-6c1e-7000\n{LONG}"),
        claude(system=f"Request 0199f3a2-77aa-7000\n{LONG}", said=AGAIN),
        "identifier",
    ),
    "system": (claude(), claude(system=LONG + "Be kind.", said=AGAIN), "system"),
    "parameter": (claude(tool_choice={"type": "auto"}), claude(tool_choice={"type": "any"}, said=AGAIN), "parameters"),
    "history": (claude(said=AGAIN), claude(said=("Hello", "Hi you", "And now?", "Well", "So?")), "history"),
    "compaction": (
        claude(said=("a", "b", "c", "d", "e", "f", "g")),
        claude(said=("This session goes on from one before: …",)),
        "compaction",
    ),
    "evicted": (claude(), claude(said=AGAIN), "evicted"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_change_of_a_prompt_has_its_cause(name):
    """What a client changed is told, wherever in the prompt it stands."""
    before, after, cause = CASES[name]
    found = two(before, after)
    assert found.cause == cause
    assert found.lead and found.why
    assert "{" not in found.lead + found.why
    assert found.lost == 20_000
    assert found.could_read == 20_000
    assert found.usd == Decimal("0.069")  # 20,000 × (3.75 − 0.30) / M


def test_first_difference_is_a_path_with_both_texts():
    """A reader sees where it is, and what stood and stands there."""
    found = two(claude(), claude(tools=("Bash", "Edits"), said=AGAIN))
    assert (found.path, found.character) == ("tools[1].name", 4)
    assert ("".join(text for text, _ in found.before), "".join(text for text, _ in found.now)) == ("Edit", "Edits")
    assert found.now == (("Edits", True),)
    assert found.readable == 0
    assert found.breakpoint == "system[0]"
    assert 0 < found.matched < 1000
    assert found.previous == "call-1"
    assert "model" in found.ruled_out
    assert "system prompt" in found.ruled_out
    assert any(one.startswith("time limit (29.0 s of 5 min)") for one in found.ruled_out)


def test_the_name_of_the_changed_tool_is_told():
    """The sentence names it, so that a user knows which server to look at."""
    before, after = claude(), claude(said=AGAIN)
    after["tools"][1]["description"] = "Edits at a given day."
    assert two(before, after).lead == "The tool list changed: description of Edit is different."
    assert two(claude(), claude(tools=("Bash",), said=AGAIN)).lead == "The tool list changed: Edit went."


@pytest.mark.parametrize(
    ("gap", "ttl", "cause"),
    [(250, "", "evicted"), (400, "", "expired"), (400, "1h", "evicted"), (4000, "1h", "expired")],
)
def test_expiry_by_the_time_a_breakpoint_asks_for(gap, ttl, cause):
    """Five minutes, or an hour where the request wants it."""
    mark = {"cache_control": {"type": "ephemeral"} | ({"ttl": ttl} if ttl else {})}
    found = two(claude(mark=mark), claude(said=AGAIN, mark=mark), gap=gap)
    assert found.cause == cause
    assert any(one.startswith("time limit") for one in found.ruled_out) == (cause != "expired")


def test_model_switched():
    """Each model has its own cache; what matched is then no matter."""
    found = two(claude(), claude(said=AGAIN), model="claude-opus-4-5")
    assert found.cause == "model"
    assert found.matched is None
    assert "claude-opus-4-5" in found.lead
    assert "model" not in found.ruled_out


def test_dates_in_model_names_are_no_switch():
    """claude-sonnet-4-5-20250929 is claude-sonnet-4-5, also at Bedrock."""
    names = ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929", "eu.anthropic.claude-sonnet-4-5-20250929-v1:0")
    assert {cache_miss.family(name) for name in names} == {"claude-sonnet-4-5"}
    assert cache_miss.family("gpt-4.1-mini-2025-04-14") == "gpt-4.1-mini"


def test_sent_before_the_cache_was_there():
    """Two calls at the same time: the second cannot read what the first has not written yet."""
    assert two(claude(), claude(said=AGAIN), gap=0.5).cause == "concurrent"


def test_no_breakpoint_at_all():
    """Nothing is ever cached: what it cost not to mark anything."""
    bare = Usage(input=21_000, output=5)
    found = two(claude(mark={}), claude(said=AGAIN, mark={}), usage=bare, left=Usage(input=20_000, output=5))
    assert found.cause == "no_breakpoint"
    assert found.lost > 15_000
    assert found.usd == (Decimal(3) - Decimal("0.3")) * found.lost / 1_000_000


def test_breakpoint_out_of_reach():
    """More than 20 blocks between the last breakpoint and the one before."""
    before = claude(mark={})
    before["system"][0] |= MARK
    after = claude(said=("Hello", *"ab" * 14, "End"), mark={})
    after["messages"][-1]["content"][0] |= MARK
    assert two(before, after).cause == "lookback"


def test_moving_a_breakpoint_is_no_change():
    """Clients move cache_control along; a text alone and a list with that text are the same."""
    before, after = claude(), claude(said=AGAIN)
    found = two(before, after)
    assert found.path == ""
    assert found.cause == "evicted"


def test_a_cache_that_works_is_left_alone():
    """Nothing is said where what was there was read, nor of small differences."""
    read = Usage(input=4, cache_read=20_000, cache_write_5m=900, output=10)
    assert two(claude(), claude(said=AGAIN), usage=read) is None
    nearly = Usage(input=4, cache_read=19_200, cache_write_5m=1700, output=10)
    assert two(claude(), claude(said=AGAIN), usage=nearly) is None


def test_the_first_call_and_short_ones_lose_nothing():
    """They are named, and cost nothing."""
    first = diagnose(None, call(claude(), usage=LEFT))
    assert (first.cause, first.lost, first.usd) == ("first", 0, None)
    tiny = Usage(input=40, output=5)
    short = two(claude(), claude(said=AGAIN), usage=tiny, left=tiny)
    assert short is None or (short.cause, short.lost) == ("short", 0)


# --- other providers


def chat(*said, system="Be brief. " * 800, tools=("weather",)):
    messages = [{"role": "system", "content": system}]
    messages += [{"role": "user" if n % 2 == 0 else "assistant", "content": one} for n, one in enumerate(said)]
    return {"messages": messages, "tools": [{"type": "function", "function": {"name": name}} for name in tools]}


def responses(*said, instructions="Be brief. " * 800):
    return {"instructions": instructions, "input": [{"role": "user", "content": one} for one in said]}


def gemini(*said, system="Be brief. " * 800):
    contents = [{"role": "user", "parts": [{"text": one}]} for one in said]
    return {"systemInstruction": {"parts": [{"text": system}]}, "contents": contents}


def converse(*said, system="Be brief. " * 800):
    messages = [{"role": "user", "content": [{"text": one}, {"cachePoint": {"type": "default"}}]} for one in said]
    return {"system": [{"text": system}, {"cachePoint": {"type": "default"}}], "messages": messages}


PROVIDERS = {
    "chat": ("openai.chat", "openai", "api.openai.com", chat),
    "responses": ("openai.responses", "openai", "chatgpt.com", responses),
    "gemini": ("gemini.generate", "gemini", "generativelanguage.googleapis.com", gemini),
    "converse": ("bedrock.converse", "bedrock", "bedrock-runtime.eu-central-1.amazonaws.com", converse),
}


def both(name, before, after, *, read=0, gap=30.0, prompt=9000):
    api, provider, upstream, _ = PROVIDERS[name]
    about = {"api": api, "provider": provider, "upstream": upstream, "model": "one"}
    write = 8900 if name == "converse" else 0
    first = call(before, 1, usage=Usage(input=prompt - write, cache_write_5m=write, output=9), **about)
    usage = Usage(input=prompt + 200 - read, cache_read=read, output=9)
    return diagnose(first, call(after, 2, at=gap, usage=usage, **about), RATES)


@pytest.mark.parametrize("name", PROVIDERS)
def test_each_provider_says_what_it_can_read_by_its_own_rules(name):
    """System prompts, histories and expiry at every provider whose caching is known."""
    make = PROVIDERS[name][3]
    keyword = "instructions" if name == "responses" else "system"
    changed = both(name, make("a"), make("a", "b", "c", **{keyword: "Be long. " * 800}))
    assert changed.cause == "system"
    assert changed.lost > 8000
    assert changed.matched < 200
    history = both(name, make("a", "b"), make("a", "x", "c"))
    assert history.cause == "history"
    assert both(name, make("a"), make("a", "b"), gap=5000).cause == "expired"
    assert both(name, make("a"), make("a", "b")).cause == "evicted"
    assert both(name, make("a"), make("a", "b"), read=8832) is None


def test_openai_hits_are_whole_128s_and_paid_as_input():
    """9,000 tokens could be read as 8,960; what was lost is the difference to the price of input."""
    found = both("chat", chat("a"), chat("a", "b"))
    assert found.could_read == 8960
    assert found.usd == Decimal("2.7") * 8960 / 1_000_000
    assert found.readable is None


def test_chat_tools_come_first():
    """A changed tool is the first difference, before the system message."""
    found = both("chat", chat("a"), chat("a", "b", tools=("weather", "time")))
    assert (found.cause, found.path) == ("tools", "tools[1]")


def test_an_answer_kept_with_the_provider_is_not_compared():
    """previous_response_id: the prompt is not in the request, so the difference cannot be told, and that is said."""
    after = responses("b") | {"previous_response_id": "resp_1"}
    found = both("responses", responses("a"), after)
    assert (found.cause, found.path, found.matched) == ("unseen", "", None)


def test_others_who_speak_the_same_api_may_have_no_cache():
    """A local server that never reports cached tokens has missed nothing; one that did may miss."""
    usage = Usage(input=9000, output=1)
    about = {"api": "openai.chat", "provider": "openai", "upstream": "127.0.0.1:8000", "model": "one"}
    assert missed(row(1, usage=usage, **about), row(2, usage=usage, **about)) is None
    worked = Usage(input=1000, cache_read=8000, output=1)
    assert missed(row(1, usage=worked, **about), row(2, usage=usage, **about)).lost == 8960


# --- by the index alone


def test_the_cheap_way_agrees_with_the_whole_one():
    """Lists say that a call missed without reading it; the page of the call says the same figures."""
    first, second = call(claude(), 1, usage=LEFT), call(claude(said=AGAIN), 2, at=30, usage=LOST)
    cheap, whole = missed(first.row, second.row), diagnose(first, second, RATES)
    assert (cheap.could_read, cheap.read, cheap.lost) == (whole.could_read, whole.read, whole.lost)
    assert cache_miss.cost_of(cheap.lost, LOST, RATES) == whole.usd
    assert missed(None, second.row) is None
    assert missed(first.row, row(2, usage=None)) is None
    assert missed(first.row, row(2, usage=LOST, status=529)) is None


def test_compared_with_the_last_answered_call_of_the_same_model():
    """A small model in between, a failed call and other APIs are passed over; a switch of models is not."""
    calls = [
        row(1, usage=LEFT),
        row(2, usage=Usage(input=300), model="claude-haiku-4-5"),
        row(3, status=529),
        row(4, usage=None),
        row(5, usage=Usage(input=9), api="anthropic.count_tokens"),
        row(6, usage=LOST),
    ]
    assert previous_of(calls, calls[-1]) is calls[0]
    assert previous_of(calls, calls[0]) is None
    switched = [row(1, usage=LEFT), row(2, usage=LOST, model="claude-opus-4-5")]
    assert previous_of(switched, switched[1]) is switched[0]


def test_what_was_lost_over_many_calls():
    """Each call with its own session's; spend and what subscriptions paid apart; unknown prices are counted, not 0."""
    calls = [
        row(1, usage=LEFT, session="a"),
        row(2, usage=LEFT, session="b"),
        row(3, usage=LOST, session="a"),
        row(4, usage=LOST, session="b", basis="subscription"),
        row(5, usage=LEFT, session="c"),
        row(6, usage=Usage(cache_read=20_000), session="c"),
        row(7, usage=LEFT, session="d", model="odd"),
        row(8, usage=LOST, session="d", model="odd"),
    ]
    found = cache_miss.lost(calls, lambda one: {} if one.model == "odd" else RATES)
    each = Decimal("0.069")
    assert found == cache_miss.Lost(3, 60_000, each, each, 1)
    assert cache_miss.lost([], lambda one: RATES) == cache_miss.Lost()


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[",
        "[]",
        "null",
        '"text"',
        {"messages": 5, "tools": "x", "system": {"a": 1}},
        {"messages": [None, 3, {"content": 4}, {"content": [None, "x", {"type": None}]}]},
        {"tools": {"a": 1}, "system": [1, None], "messages": {}},
    ],
)
def test_odd_requests_are_told_as_unseen_or_changed_and_never_raise(body):
    """Requests are anybody's."""
    for before, after in ((body, claude()), (claude(), body), (body, body)):
        found = two(before, after)
        assert found.lost == 20_000
        assert found.cause


def test_what_was_cut_is_not_compared():
    """A request that is not recorded as a whole would differ wherever it was cut."""
    first, second = call(claude(), 1, usage=LEFT), call(claude(said=AGAIN), 2, at=30, usage=LOST)
    first.request["truncated"] = "limit"
    assert diagnose(first, second).cause == "unseen"


def test_unknown_prices_give_no_dollars():
    """Unknown is not 0."""
    found = diagnose(call(claude(), 1, usage=LEFT), call(claude(said=AGAIN), 2, at=30, usage=LOST))
    assert found.usd is None
    assert found.lost == 20_000


def test_pictures_do_not_weigh_as_their_base64():
    """A megabyte of a picture is not a million characters of prompt."""
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 1_000_000}}
    before, after = claude(said=("a", "b", "c", "d")), claude(said=("a", "B", "c", "d"))
    for body in (before, after):
        body["messages"][2]["content"] = [picture]
    found = two(before, after)
    assert found.cause == "history"
    assert 8_000 < found.matched < 15_000  # the system prompt is more than half of it
