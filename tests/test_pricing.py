"""Cost: a table of hand-computed dollars, and our sums against the price library's own for any usage."""

from __future__ import annotations

import json
import warnings
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.dialects.digest import Answer, Asked, Digest, Message, Usage
from llm_proxy.records import price_data
from llm_proxy.records.pricing import Price, PriceBook, from_entry, is_subscription, to_entry

BOOK = PriceBook()
NOW = "2026-11-01T12:00"
ANTHROPIC, OPENAI, GOOGLE = "api.anthropic.com", "api.openai.com", "generativelanguage.googleapis.com"
BEDROCK = "bedrock-runtime.us-east-1.amazonaws.com"
SONNET, HAIKU, OPUS = "claude-3-5-sonnet-20241022", "claude-haiku-4-5-20251001", "claude-opus-4-1-20250805"
LONG = "claude-sonnet-4-5-20250929"  # 3, 15, .3, 3.75, 6; above 200,000 tokens of prompt 6, 22.5, .6, 7.5, 12


def _ns(when: str) -> int:
    return int(datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp()) * 1_000_000_000


def _price(
    host: str, model: str, *usages: Usage, when: str = NOW, tier: str = "", plan: bool = False, **more: Any
) -> Price:
    book = PriceBook(more["overrides"]) if more else BOOK
    return book.price(
        provider="p",
        upstream=host,
        model=model,
        usages=usages,
        when_ns=_ns(when),
        service_tier=tier,
        subscription=plan,
    )


U = Usage
# (what it shows, host, model, usage, USD, and what else is said)
CASES: list[tuple[str, str, str, Usage, str, dict[str, Any]]] = [
    # each class of its own
    ("input", ANTHROPIC, SONNET, U(input=1000), "0.003", {}),
    ("output", ANTHROPIC, SONNET, U(output=500), "0.0075", {}),
    ("cache read", ANTHROPIC, SONNET, U(cache_read=10_000), "0.003", {}),
    ("cache write, 5 minutes", ANTHROPIC, SONNET, U(cache_write_5m=2000), "0.0075", {}),
    ("cache write, 1 hour", ANTHROPIC, SONNET, U(cache_write_1h=2000), "0.012", {}),
    (
        "all of them",
        ANTHROPIC,
        SONNET,
        U(input=1000, output=500, cache_read=10_000, cache_write_5m=2000, cache_write_1h=2000),
        "0.033",
        {},
    ),
    ("reasoning lies within output", ANTHROPIC, SONNET, U(output=500, reasoning=300), "0.0075", {}),
    ("nothing used costs nothing, and is priced", ANTHROPIC, SONNET, U(), "0", {}),
    ("a small model", ANTHROPIC, HAIKU, U(input=123, output=45), "0.000348", {}),
    ("a large model", ANTHROPIC, OPUS, U(input=10, cache_read=100_000, output=1000), "0.22515", {}),
    ("cached tokens of OpenAI, beside the fresh ones", OPENAI, "gpt-4o", U(input=1000, cache_read=1000, output=100), "0.00475", {}),
    ("a dated name", OPENAI, "gpt-4o-mini-2024-07-18", U(input=10_000, cache_read=2000, output=1000), "0.00225", {}),
    ("embeddings", OPENAI, "text-embedding-3-small", U(input=8000), "0.00016", {}),
    ("cached tokens without a price of their own are input", OPENAI, "gpt-3.5-turbo", U(cache_read=1000), "0.0005", {}),
    ("a 1-hour write without a price of its own is a 5-minute one", BEDROCK, "us.anthropic.claude-sonnet-4-20250514-v1:0", U(cache_write_1h=1000), "0.00375", {}),
    # tools, by use
    ("web searches", ANTHROPIC, LONG, U(input=1000, server_tools=(("web_search", 3),)), "0.033", {}),
    ("web fetches cost their tokens only", ANTHROPIC, LONG, U(input=1000, server_tools=(("web_fetch", 5),)), "0.003", {"why": ""}),
    ("a tool without a price is named", ANTHROPIC, LONG, U(input=1000, server_tools=(("moon_phase", 2),)), "0.003", {"why": "moon_phase is not in the price data"}),
    ("file searches", OPENAI, "gpt-4o", U(server_tools=(("file_search", 4),)), "0.01", {}),
    ("grounding", GOOGLE, "gemini-2.5-flash", U(input=1000, server_tools=(("google_search", 1),)), "0.0353", {}),
    # whole-request tiers
    ("the last token of the lower tier", ANTHROPIC, LONG, U(input=200_000), "0.6", {}),
    ("one more, and all of it is dearer", ANTHROPIC, LONG, U(input=200_001), "1.200006", {}),
    ("cache reads count for the tier", ANTHROPIC, LONG, U(input=1000, cache_read=200_000, output=1000), "0.1485", {}),
    ("5-minute writes too", ANTHROPIC, LONG, U(input=1, cache_write_5m=200_000), "1.500006", {}),
    ("1-hour writes too", ANTHROPIC, LONG, U(input=1, cache_write_1h=200_000), "2.400006", {}),
    ("output does not", ANTHROPIC, LONG, U(input=200_000, output=100_000), "2.1", {}),
    ("tiers elsewhere", GOOGLE, "gemini-2.5-pro", U(input=200_001, output=1000), "0.5150025", {}),
    ("their lower tier", GOOGLE, "gemini-2.5-pro", U(input=100_000, cache_read=100_000, output=1000), "0.1475", {}),
    # the price of then
    ("before a price cut", OPENAI, "o3", U(input=1000, output=1000), "0.05", {"when": "2025-06-09T23:59"}),
    ("after it", OPENAI, "o3", U(input=1000, output=1000), "0.01", {"when": "2025-06-10T00:00"}),
    ("while long prompts were dearer", ANTHROPIC, "claude-opus-4-6", U(input=300_000), "3", {"when": "2026-03-12T23:00"}),
    ("when they no longer were", ANTHROPIC, "claude-opus-4-6", U(input=300_000), "1.5", {"when": "2026-03-13T01:00"}),
    ("by day", "api.deepseek.com", "deepseek-chat", U(input=1000, output=1000), "0.00137", {"when": "2026-11-01T12:00"}),
    ("by night", "api.deepseek.com", "deepseek-chat", U(input=1000, output=1000), "0.000685", {"when": "2026-11-01T20:00"}),
    # service tiers
    ("priority", OPENAI, "gpt-4o", U(input=1000, cache_read=1000, output=100), "0.008075", {"tier": "priority"}),
    ("flex", OPENAI, "gpt-5", U(input=1000, output=100), "0.001125", {"tier": "flex"}),
    ("default is the standard price", OPENAI, "gpt-5", U(input=1000, output=100), "0.00225", {"tier": "default", "why": ""}),
    ("a tier that the data do not know is named", OPENAI, "gpt-4o", U(input=1000), "0.0025", {"tier": "scale", "why": "'scale'"}),
    ("batch at half the price", OPENAI, "gpt-3.5-turbo", U(input=1000, output=1000), "0.001", {"tier": "batch"}),
    ("batch, Anthropic", ANTHROPIC, HAIKU, U(input=1000, output=1000), "0.003", {"tier": "batch"}),
    ("batch where the data know no price for it", ANTHROPIC, SONNET, U(input=1000), "0.003", {"tier": "batch", "why": "'batch'"}),
    ("fast", ANTHROPIC, "claude-opus-4-8", U(input=1000, output=1000), "0.06", {"tier": "fast"}),
    ("standard, Anthropic's word", ANTHROPIC, HAIKU, U(input=1000), "0.001", {"tier": "standard", "why": ""}),
    # sound and pictures
    ("audio in", GOOGLE, "gemini-2.5-flash", U(input=1000, input_audio=400), "0.00058", {}),
    ("cached audio", GOOGLE, "gemini-2.5-flash", U(cache_read=1000, cache_read_audio=500), "0.000065", {}),
    ("pictures out", GOOGLE, "gemini-2.5-flash-image", U(output=1290, output_image=1290), "0.0387", {}),
    ("a voice, both ways", OPENAI, "gpt-4o-realtime-preview", U(input=2000, input_audio=1000, output=1000, output_audio=500), "0.095", {}),
    ("audio without a price of its own is input", OPENAI, "gpt-4o", U(input=1000, input_audio=400), "0.0025", {}),
    # who sells it
    ("Bedrock, a region's: ten percent more", BEDROCK, "us.anthropic.claude-sonnet-4-5-20250929-v1:0", U(input=1000, output=1000), "0.0198", {}),
    ("Bedrock, within one region", BEDROCK, "anthropic.claude-sonnet-4-5-20250929-v1:0", U(input=1000, output=1000), "0.0198", {}),
    ("Bedrock, global", BEDROCK, "global.anthropic.claude-sonnet-4-5-20250929-v1:0", U(input=1000, output=1000), "0.018", {}),
    ("Bedrock, a profile's ARN", BEDROCK, "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.anthropic.claude-haiku-4-5-20251001-v1:0", U(input=1000), "0.0011", {}),
    ("Bedrock, through a private endpoint", "vpce-0a1b-2c3d.bedrock-runtime.eu-west-1.vpce.amazonaws.com", "amazon.nova-lite-v1:0", U(input=1000, output=1000), "0.0003", {}),
    ("Bedrock, FIPS", "bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "amazon.nova-lite-v1:0", U(input=1000), "0.00006", {}),
    ("Vertex sells Anthropic's models", "us-east5-aiplatform.googleapis.com", "claude-haiku-4-5@20251001", U(input=1000), "0.001", {}),
    ("Azure", "mine.openai.azure.com", "o3-mini", U(input=1000, output=1000), "0.0055", {}),
    ("OpenRouter", "openrouter.ai", "openai/gpt-4o-mini", U(input=1000, output=1000), "0.00075", {}),
    ("Groq", "api.groq.com", "llama-3.3-70b-versatile", U(input=1000, output=1000), "0.00138", {}),
    ("Mistral", "api.mistral.ai", "mistral-large-2512", U(input=1000, cache_read=1000, output=1000), "0.00205", {}),
    ("xAI", "api.x.ai", "grok-4-0709", U(input=1000, output=1000), "0.018", {}),
    ("a port that says nothing", "api.openai.com:443", "gpt-4o", U(input=1000), "0.0025", {}),
    # plans
    ("a ChatGPT plan: the same by the list", "chatgpt.com", "gpt-5", U(input=1000, output=100), "0.00225", {"plan": True, "basis": "subscription"}),
    ("a Claude plan", ANTHROPIC, SONNET, U(input=1000), "0.003", {"plan": True, "basis": "subscription"}),
    # overrides
    ("an override", "localhost:8000", "qwen-72b", U(input=1000, output=1000), "0.0075", {"overrides": {"qwen-72b": {"input": 1.5, "output": 6}}}),
    ("its cache classes fall back on each other", "localhost:8000", "q", U(cache_write_1h=1000, cache_read=1000), "0.003", {"overrides": {"q": {"input": 1, "output": 1, "cache_write_5m": 2}}}),
    ("it wins over the list", ANTHROPIC, SONNET, U(input=1000), "0.001", {"overrides": {"claude-3-5-*": {"input": 1}}}),
    ("its own name wins over patterns, longer ones over shorter", "h", "a-b", U(input=1000), "0.003", {"overrides": {"*": {"input": 1}, "a-?": {"input": 2}, "a-b": {"input": 3}}}),
    ("the longer pattern", "h", "a-c", U(input=1000), "0.002", {"overrides": {"*": {"input": 1}, "a-?": {"input": 2}}}),
    ("its case does not matter", "h", "Qwen", U(input=1000), "0.001", {"overrides": {"qWEN": {"input": 1}}}),
    ("free is a price", "localhost:11434", "llama3", U(input=1000, output=9), "0", {"overrides": {"*": {"input": 0, "output": 0}}}),
    ("tools and requests in an override", "h", "m", U(server_tools=(("web_search", 2),)), "0.025", {"overrides": {"m": {"web_search": "0.01", "requests": "0.005"}}}),
    ("sound from the cache is sound", "h", "m", U(cache_read=1000, cache_read_audio=1000), "0.003", {"overrides": {"m": {"input": 1, "input_audio": 3}}}),
    ("a plan is no spend even so", "chatgpt.com", "m", U(input=1000), "0.001", {"overrides": {"m": {"input": 1}}, "plan": True, "basis": "subscription"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "model", "usage", "usd", "more"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_hand_computed(host: str, model: str, usage: Usage, usd: str, more: dict[str, Any]) -> None:
    """What each call costs was computed by hand from the providers' price pages."""
    more = dict(more)
    basis = more.pop("basis", "override" if "overrides" in more else "list")
    why = more.pop("why", "")
    price = _price(host, model, usage, **more)
    assert (price.usd, price.basis) == (Decimal(usd), basis)
    assert why in price.why and bool(why) == bool(price.why)
    assert (
        price.source == ("config" if "overrides" in more else "genai-prices") and from_entry(to_entry(price)) == price
    )


UNPRICED = [
    ("Ollama", "localhost:11434", "llama3", "llama3", U(input=9), "not a provider with list prices"),
    ("somebody's server with a known model", "127.0.0.1:4000", "gpt-4o", "gpt-4o", U(input=9), "127.0.0.1:4000"),
    ("a host that only begins like a provider", "api.anthropic.com.example.net", SONNET, "", U(input=9), "example.net"),
    ("a host that only ends like one", "notapi.openai.com", "gpt-4o", "", U(input=9), "notapi"),
    ("a provider's other port", "api.openai.com:8443", "gpt-4o", "", U(input=9), ":8443"),
    ("a model that nobody knows", ANTHROPIC, "claude-from-tomorrow", "", U(input=9), "no list price of anthropic for 'claude-from-tomorrow'"),
    ("a model of somebody else", ANTHROPIC, "gpt-4o", "", U(input=9), "no list price of anthropic"),
    ("an application's profile on Bedrock tells no model", BEDROCK, "arn:aws:bedrock:us-east-1:1:application-inference-profile/abc", "", U(input=9), "no list price"),
    ("no name at all", OPENAI, "", "", U(input=9), "no list price"),
    ("an endless name", OPENAI, "gpt-4o" * 10_000, "", U(input=9), "no list price"),
    ("a class that is not charged in tokens", OPENAI, "gpt-realtime-translate", "", U(input=9), "no price for input tokens"),
    ("absurd usage", ANTHROPIC, SONNET, "", U(input=10**40), "absurd"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "model", "_", "usage", "why"), [c[1:] for c in UNPRICED], ids=[c[0] for c in UNPRICED]
)
def test_unpriced_is_not_nothing(host: str, model: str, _: str, usage: Usage, why: str) -> None:
    """What is not known has no price, never 0, and says why."""
    price = _price(host, model, usage)
    assert (price.usd, price.basis) == (None, "unpriced")
    assert why in price.why and len(price.why) < 500
    assert from_entry(to_entry(price)) == price


def test_an_override_without_a_class_that_was_used_is_unpriced() -> None:
    """Half a price would look like a whole one."""
    price = _price("h", "m", Usage(input=9, output=9), overrides={"m": {"input": 1}})
    assert (price.usd, price.basis, price.why) == (None, "unpriced", "no price for output tokens")


def test_each_answer_has_its_own_tier() -> None:
    """Two turns on one connection of 150,000 tokens each are two short requests; a third, long one is dearer."""
    short, long = Usage(input=150_000), Usage(input=250_000)
    assert _price(ANTHROPIC, LONG, short, short).usd == Decimal("0.9")
    price = _price(ANTHROPIC, LONG, short, long)
    assert price.usd == Decimal("1.95")
    assert price.units == (("input", Decimal(3)), ("input", Decimal(6)))
    assert to_entry(price)["units"] == {"input": [3, 6]} and from_entry(to_entry(price)) == price


def test_the_units_make_the_sum() -> None:
    """Tokens by class times the recorded unit prices is the recorded price, so anybody can check it."""
    usage = Usage(input=111, cache_read=222, cache_write_5m=333, cache_write_1h=444, output=555, reasoning=99)
    price = _price(ANTHROPIC, LONG, usage)
    assert price.usd == sum(getattr(usage, name) * unit for name, unit in price.units) / 1_000_000
    assert [name for name, _ in price.units] == ["input", "cache_read", "cache_write_5m", "cache_write_1h", "output"]


def test_an_entry_is_plain_json() -> None:
    """Numbers that any JSON reader adds up, and no field that says nothing."""
    entry = to_entry(_price(ANTHROPIC, SONNET, Usage(input=1)))
    assert json.loads(json.dumps(entry)) == entry
    assert (entry["usd"], entry["basis"], entry["units"], entry["source"]) == (
        0.000003,
        "list",
        {"input": 3},
        "genai-prices",
    )
    assert "why" not in entry
    assert to_entry(_price("h", "m", Usage(input=1)))["usd"] is None


# --- whole exchanges

_META = {"host": ANTHROPIC, "ts": "2026-11-01T12:00:00.123456789Z"}


def _digest(api: str, asked: str, *answers: Answer) -> Digest:
    return Digest(Asked(api=api, model=asked), answers)


def _said(usage: Usage | None, model: str = "", tier: str = "") -> Answer:
    return Answer(model=model, message=Message("assistant", ()), usage=usage, service_tier=tier)


def test_an_exchange_is_priced_by_what_answered() -> None:
    """The model that answered, its tier, the time of the request, and the plan, all from the entry and the digest."""
    request = {"_meta": _META, "headers": {"Anthropic-Beta": ["x,oauth-2025-04-20"]}}
    price = BOOK.of(
        request, "anthropic", _digest("anthropic.messages", "sonnet", _said(Usage(input=1000), HAIKU, "batch"))
    )
    assert price is not None and (price.usd, price.basis) == (Decimal("0.0005"), "subscription")


def test_bedrock_bills_the_id_that_was_asked_for() -> None:
    """The answer names the model without the region, which is ten percent."""
    request = {"_meta": _META | {"host": BEDROCK}, "headers": {}}
    asked = "global.anthropic.claude-sonnet-4-5-20250929-v1:0"
    price = BOOK.of(request, "bedrock", _digest("bedrock.invoke", asked, _said(Usage(input=1000), LONG)))
    assert price is not None and price.usd == Decimal("0.003")


def test_an_exchange_without_an_answer_has_no_price() -> None:
    """An error costs nothing; an answer that keeps its usage to itself is unpriced; a mixed one says what is missing."""
    request = {"_meta": _META, "headers": {}}
    assert BOOK.of(request, "anthropic", _digest("anthropic.messages", HAIKU)) is None
    assert BOOK.of(request, "anthropic", _digest("anthropic.messages", HAIKU, Answer(error="no"))) is None
    assert BOOK.of(request, "anthropic", _digest("anthropic.count_tokens", HAIKU, _said(Usage(input=9), HAIKU))) is None
    silent = BOOK.of(request, "anthropic", _digest("anthropic.messages", HAIKU, _said(None, HAIKU)))
    assert silent is not None and (silent.usd, silent.basis) == (None, "unpriced") and "usage" in silent.why
    mixed = BOOK.of(request, "anthropic", _digest("x", HAIKU, _said(Usage(input=1000), HAIKU), _said(None)))
    assert mixed is not None and mixed.usd == Decimal("0.001") and "1 of 2 answers" in mixed.why


def test_answers_of_other_models_have_their_own_prices() -> None:
    """An advisor in between, or a batch of several models; one that is unknown leaves the whole unpriced."""
    request = {"_meta": _META, "headers": {}}
    used = Usage(input=1000)
    price = BOOK.of(request, "anthropic", _digest("anthropic.messages", HAIKU, _said(used, OPUS), _said(used, HAIKU)))
    assert price is not None and price.usd == Decimal("0.016")
    assert price.units == (("input", Decimal(15)), ("input", Decimal(1)))
    batch = _digest("anthropic.batches", "", _said(used, HAIKU, "batch"), _said(used, HAIKU, "standard"))
    assert getattr(BOOK.of(request, "anthropic", batch), "usd", None) == Decimal("0.0015")
    unknown = BOOK.of(request, "anthropic", _digest("x", HAIKU, _said(used, HAIKU), _said(used, "who")))
    assert unknown is not None and (unknown.usd, unknown.basis, unknown.units) == (None, "unpriced", ())
    assert "'who'" in unknown.why


@pytest.mark.parametrize(
    ("host", "headers", "expected"),
    [
        ("chatgpt.com", {}, True),
        ("chatgpt.com:443", {}, True),
        ("cloudcode-pa.googleapis.com", {}, True),
        ("127.0.0.1:9", {"Chatgpt-Account-Id": ["a"]}, True),
        (ANTHROPIC, {"Anthropic-Beta": ["fine-grained", "oauth-2025-04-20,other"]}, True),
        (ANTHROPIC, {"authorization": ["Bearer sk-ant-oat01-abc"]}, True),
        (ANTHROPIC, {"Authorization": ["Bearer sk-ant-...wxyz"]}, False),
        (ANTHROPIC, {"X-Api-Key": ["sk-ant-...wxyz"], "Anthropic-Beta": ["extended-cache-ttl-2025-04-11"]}, False),
        (OPENAI, {}, False),
    ],
)
def test_plans_are_recognised(host: str, headers: dict[str, list[str]], expected: bool) -> None:
    """Who pays by the month does not pay by the token."""
    assert is_subscription({"_meta": {"host": host}, "headers": headers}) is expected


@pytest.mark.parametrize("headers", [None, 5, [], ["a"], {"Authorization": None}, {"anthropic-beta": [None, 5, {}]}])
@pytest.mark.parametrize("host", [None, 5, [], ""])
def test_headers_and_hosts_that_are_none_tell_no_plan(host: object, headers: object) -> None:
    """A log may be anybody's; what is no text there is passed over."""
    assert is_subscription({"_meta": {"host": host}, "headers": headers}) is False
    assert is_subscription({"headers": headers}) is False


@pytest.mark.parametrize(
    "meta",
    [
        {"host": None},
        {"host": 5},
        {"host": ""},
        {"ts": None},
        {"ts": 5},
        {"ts": ""},
        {"ts": "never"},
        {"ts": "0001-01-01T00:00:00"},
        {"ts": "0001-01-01T00:00:00+14:00"},
        {"ts": "9999-12-31T23:59:59-14:00"},
    ],
)
def test_an_entry_that_says_not_whom_it_called_or_when_is_refused(meta: dict[str, object]) -> None:
    """With one kind of error, which is no other's."""
    answer = _digest("anthropic.messages", HAIKU, _said(Usage(input=1000), HAIKU))
    with pytest.raises(ValueError):
        BOOK.of({"_meta": _META | meta}, "anthropic", answer)
    with pytest.raises(ValueError):
        BOOK.of({}, "anthropic", answer)


# --- against the library

_HOSTS = {
    "anthropic": ANTHROPIC,
    "openai": OPENAI,
    "google": GOOGLE,
    "aws": BEDROCK,
    "groq": "api.groq.com",
    "mistral": "api.mistral.ai",
    "deepseek": "api.deepseek.com",
    "openrouter": "openrouter.ai",
    "x-ai": "api.x.ai",
}
_MODELS = [
    (_HOSTS[provider.id], provider.id, model.id)
    for provider in price_data.bundled().providers
    if provider.id in _HOSTS
    for model in provider.models
]
_TIERS = {
    "": None,
    "batch": {"processing": "batch"},
    "priority": {"service_tier": "priority"},
    "flex": {"service_tier": "flex"},
}
_COUNTS = st.integers(0, 300_000)


@st.composite
def _usages(draw: st.DrawFn) -> Usage:
    fresh, read, output = draw(_COUNTS), draw(_COUNTS), draw(_COUNTS)
    return Usage(
        input=fresh,
        cache_read=read,
        cache_write_5m=draw(_COUNTS),
        cache_write_1h=draw(_COUNTS),
        output=output,
        reasoning=draw(st.integers(0, output // 2)),
        output_audio=draw(st.integers(0, output // 2)),
        input_audio=draw(st.integers(0, fresh)),
        cache_read_audio=draw(st.integers(0, read)),
        server_tools=(("web_search", draw(st.integers(0, 5))), ("file_search", draw(st.integers(0, 5)))),
    )


def _library_usage(usage: Usage) -> Any:
    from genai_prices import Usage as LibraryUsage

    tools = dict(usage.server_tools)
    return LibraryUsage(
        input_tokens=usage.prompt,
        output_tokens=usage.output,
        cache_read_tokens=usage.cache_read,
        cache_write_tokens=usage.cache_write_5m + usage.cache_write_1h,
        cache_write_5m_tokens=usage.cache_write_5m,
        cache_write_1h_tokens=usage.cache_write_1h,
        input_audio_tokens=usage.input_audio + usage.cache_read_audio,
        cache_audio_read_tokens=usage.cache_read_audio,
        input_image_tokens=0,
        cache_image_read_tokens=0,
        output_audio_tokens=usage.output_audio,
        output_reasoning_tokens=usage.reasoning,
        web_searches=tools["web_search"],
        storage_searches=tools["file_search"],
    )


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(_MODELS),
    _usages(),
    st.datetimes(datetime(2024, 1, 1), datetime(2027, 6, 1)),
    st.sampled_from(sorted(_TIERS)),
)
def test_sums_agree_with_the_library(sold: tuple[str, str, str], usage: Usage, when: datetime, tier: str) -> None:
    """Whatever was used, whenever, in whichever tier: to the last digit what the library computes."""
    from genai_prices import calc_price

    host, provider, model = sold
    price = _price(host, model, usage, when=when.replace(microsecond=0).isoformat(), tier=tier)
    if price.usd is None:
        assert "no price for" in price.why or "no list price" in price.why
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = calc_price(
            _library_usage(usage),
            model,
            provider_id=provider,
            genai_request_timestamp=when.replace(microsecond=0, tzinfo=UTC),
            price_context=_TIERS[tier],
        )
    assert price.usd == expected.total_price.quantize(Decimal("1e-12"))
