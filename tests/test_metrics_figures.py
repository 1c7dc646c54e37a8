"""What the keeper counts of calls is bounded and readable, whatever clients and upstreams call things."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from llm_proxy.dialects.digest import Answer, Asked, Digest, Usage
from llm_proxy.keeper.figures import ERRORS, LONGEST, MODELS, SERIES, Figures
from llm_proxy.keeper.quotas import MOST, Quotas
from llm_proxy.records.exchange import Body, Ending, Exchange

NOW = 1_800_000_000.0


def exchange(status: int | None = 200, ending: Ending = Ending.COMPLETE, provider: str = "anthropic") -> Exchange:
    return Exchange(
        id=UUID(int=1),
        provider=provider,
        scheme="https",
        upstream="api.anthropic.com",
        why="",
        opened=int(NOW * 1e9),
        method="POST",
        target="/v1/messages",
        request_headers=(),
        request=Body(),
        status=status,
        reason="",
        response_headers=(),
        response=Body(),
        trailers=(),
        interim=(),
        first_byte=300_000_000,
        ended=2_000_000_000,
        ending=ending,
        error="",
        answered=0,
        websocket=False,
        retried=False,
        ended_by_close=False,
        extra_bytes=False,
    )


def digest(model: str = "m", usage: Usage | None = None, **answer: Any) -> Digest:
    return Digest(Asked(api="anthropic.messages", model=model), (Answer(model=model, usage=usage, **answer),))


def samples(figures: Figures, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    found = {}
    for family in text_string_to_metric_families(figures.text(NOW)):
        for sample in family.samples:
            if sample.name == name:
                found[tuple(sample.labels[label] for label in labels)] = sample.value
    return found


def models(figures: Figures) -> dict[tuple[str, ...], float]:
    return samples(figures, "llm_proxy_requests_total", "model")


def test_a_hundred_models_have_labels_of_their_own() -> None:
    """The rest is `other`, and nothing that was counted is lost."""
    figures = Figures()
    for number in range(MODELS + 50):
        figures.take(exchange(), digest(f"m{number}", Usage(input=1)), {})
    found = models(figures)
    assert len(found) == MODELS + 1 and found[("other",)] == 50 and sum(found.values()) == MODELS + 50
    assert sum(samples(figures, "llm_proxy_tokens_total", "model").values()) == MODELS + 50


def test_names_that_are_refused_take_no_label() -> None:
    """Whoever asks for nonsense uses up nobody's label; a model that has answered keeps its own when it fails."""
    figures = Figures()
    figures.take(exchange(), digest("good"), {})
    for number in range(500):
        figures.take(exchange(404), digest(f"nonsense {number}"), {})
    figures.take(exchange(529), digest("good"), {})
    by_status = samples(figures, "llm_proxy_requests_total", "model", "status")
    assert by_status == {("good", "200"): 1, ("good", "529"): 1, ("other", "404"): 500}


@given(st.lists(st.text(st.characters(), max_size=150), max_size=5))
def test_any_name_is_a_label(names: list[str]) -> None:
    """Quotes, line ends, controls, lone surrogates: cut, without control characters, and one sample each."""
    figures = Figures()
    for name in names:
        figures.take(exchange(), digest(name, Usage(input=1), error_type=name), {})
    figures.text(NOW).encode()
    found = models(figures)
    assert sum(found.values()) == len(names)
    assert all(len(model) <= LONGEST and model.isprintable() for (model,) in found)
    kinds = samples(figures, "llm_proxy_errors_total", "kind")
    assert sum(kinds.values()) == sum(bool(name) for name in names)


def test_statuses_and_errors_are_bounded_too() -> None:
    """Statuses nobody knows share a label; so do errors beyond fifty, and combinations beyond two thousand."""
    figures = Figures()
    for status in range(100, 1000):
        figures.take(exchange(status), digest("m"), {})
    found = {status for (status,) in samples(figures, "llm_proxy_requests_total", "status")}
    assert {"200", "404", "529", "9xx"} <= found and len(found) < 90
    for number in range(ERRORS + 200):
        figures.take(exchange(400), digest("m", error_type=f"kind {number}"), {})
    assert len(samples(figures, "llm_proxy_errors_total", "kind")) <= ERRORS + 100
    assert samples(figures, "llm_proxy_errors_total", "kind")[("other",)] >= 200
    figures = Figures()
    for number in range(MODELS):
        for status in (*range(200, 209), *range(300, 309), *range(400, 419)):
            figures.take(exchange(status), digest(f"m{number}"), {})
    assert len(samples(figures, "llm_proxy_requests_total", "model", "status")) <= SERIES + 1


@pytest.mark.parametrize(
    ("status", "ending", "answer", "kind"),
    [
        (200, Ending.COMPLETE, {}, ""),
        (200, Ending.CLIENT_GONE, {}, ""),
        (529, Ending.COMPLETE, {"error_type": "overloaded_error", "error": "busy"}, "overloaded_error"),
        (200, Ending.COMPLETE, {"error": "in the stream, without a type"}, "error"),
        (503, Ending.COMPLETE, {}, "http_503"),
        (None, Ending.TIMED_OUT, {}, "timed_out"),
        (200, Ending.UPSTREAM_FAILED, {}, "upstream_failed"),
    ],
)
def test_what_counts_as_an_error(status: int | None, ending: Ending, answer: dict[str, str], kind: str) -> None:
    """The provider's word, else the status, else the ending; that a client has left is none."""
    figures = Figures()
    figures.take(exchange(status, ending), digest("m", **answer), {})
    assert samples(figures, "llm_proxy_errors_total", "kind") == ({(kind,): 1} if kind else {})


STREAMS = {
    "Anthropic": (
        'data: {"type":"message_start","message":{"content":[]}}',
        'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}',
        'data: {"type": "ping"}',
        'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}',
    ),
    "chat": (
        'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}',
        "",
        "data: {}",
        'data: {"choices":[{"delta":{"content":"a"}}]}',
    ),
    "Responses": (
        'data: {"type":"response.created","response":{"output":[]}}',
        'data: {"type":"response.in_progress"}',
        'data: {"type":"response.output_item.added"}',
        'data: {"type":"response.reasoning_summary_text.delta","delta":"a"}',
    ),
    "Gemini": ("", "", 'data: {"candidates":[]}', 'data: {"candidates":[{"content":{"parts":[{"text": "a"}]}}]}'),
    "tool": (
        'data: {"choices":[{"delta":{"content":null}}]}',
        "",
        "",
        'data: {"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{"}}]}}]}',
    ),
}


@pytest.mark.parametrize("api", STREAMS)
def test_the_first_token_is_the_first_piece_of_an_answer(api: str) -> None:
    """Not the events before it: here the fourth line, 0.3 s + 0.6 s after the request."""
    chunks = [{"raw": line, "delta_ms": 200 * number} for number, line in enumerate(STREAMS[api])]
    figures = Figures()
    timing = {"timing": {"ttfb_ms": 300, "total_ms": 2000}}
    figures.take(exchange(), digest(), timing | {"chunks": chunks})
    figures.take(exchange(), digest(), timing | {"chunks": [{"base64": "AA=="}, *chunks[:3]]})
    figures.take(exchange(), digest(), timing | {"body": "{}"})
    assert samples(figures, "llm_proxy_first_token_seconds_sum") == {(): pytest.approx(0.9)}


# -- quotas ----------------------------------------------------------------------------------------------------------


def gauges(quotas: Quotas, now: float = NOW) -> dict[tuple[str, str], float]:
    """{(property, quota): value}."""
    found = {}
    for family in text_string_to_metric_families("\n".join(quotas.lines(now)) + "\n"):
        for sample in family.samples:
            found[sample.name.removeprefix("llm_proxy_quota_"), sample.labels["quota"]] = sample.value
    return found


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(NOW + seconds, UTC).isoformat()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {
                "anthropic-ratelimit-input-tokens-limit": "2000",
                "anthropic-ratelimit-input-tokens-remaining": "500",
                "anthropic-ratelimit-input-tokens-reset": moment(60).replace("+00:00", "Z"),
            },
            {"limit": 2000, "remaining": 500, "used_ratio": 0.75, "reset_timestamp_seconds": NOW + 60},
        ),
        (
            {
                "anthropic-ratelimit-unified-7d-utilization": "0.31",
                "anthropic-ratelimit-unified-7d-reset": str(int(NOW) + 86400),
                "anthropic-ratelimit-unified-7d-status": "allowed",
            },
            {"used_ratio": 0.31, "reset_timestamp_seconds": NOW + 86400},
        ),
        (
            {
                "x-ratelimit-limit-requests": "500",
                "x-ratelimit-remaining-requests": "499",
                "x-ratelimit-reset-requests": "1m30.5s",
            },
            {"limit": 500, "remaining": 499, "used_ratio": 0.002, "reset_timestamp_seconds": NOW + 90.5},
        ),
        ({"x-ratelimit-reset-tokens": "120ms"}, {"reset_timestamp_seconds": NOW + 0.12}),
        ({"x-ratelimit-reset-tokens": "1h0m1s"}, {"reset_timestamp_seconds": NOW + 3601}),
        ({"x-ratelimit-reset-tokens": "7"}, {"reset_timestamp_seconds": NOW + 7}),
        (
            {
                "x-codex-primary-used-percent": "42.5",
                "x-codex-primary-reset-after-seconds": "18000",
                "x-codex-primary-window-minutes": "300",
            },
            {"used_ratio": 0.425, "reset_timestamp_seconds": NOW + 18000},
        ),
        (
            {"x-codex-secondary-used-percent": "100", "x-codex-secondary-reset-at": str(int(NOW) + 5)},
            {"used_ratio": 1, "reset_timestamp_seconds": NOW + 5},
        ),
        ({"anthropic-ratelimit-requests-remaining": "many", "x-ratelimit-limit-requests": "-1"}, {}),
        ({"anthropic-ratelimit-requests-limit": "1e309", "x-ratelimit-limit-tokens": "nan"}, {}),
        ({"anthropic-ratelimit-requests-reset": "2027-01-01", "x-ratelimit-reset-tokens": "soon"}, {}),
        ({'anthropic-ratelimit-a"b-limit': "1", "anthropic-ratelimit-" + "x" * 99 + "-limit": "1"}, {}),
        ({"anthropic-ratelimit-requests-limit": "٣", "retry-after": "7"}, {}),
        ({"x-ratelimit-limit-requests": "0", "x-ratelimit-remaining-requests": "0"}, {"limit": 0, "remaining": 0}),
    ],
)
def test_limits_as_providers_tell_them(fields: dict[str, str], told: dict[str, float]) -> None:
    """Each provider's names, times and durations; what is no number is no gauge."""
    quotas = Quotas()
    quotas.take("p", "m", fields.items(), NOW)
    assert {name: value for (name, _), value in gauges(quotas).items()} == pytest.approx(told)


def test_after_its_reset_all_of_a_limit_is_there_again() -> None:
    """Nobody need have called meanwhile; and the file is written again then."""
    quotas = Quotas()
    fields = {"limit": "10", "remaining": "1", "reset": "60"}
    quotas.take("p", "m", ((f"x-ratelimit-{name}-requests", value) for name, value in fields.items()), NOW)
    quotas.take("p", "", [("x-codex-primary-used-percent", "90"), ("x-codex-primary-reset-after-seconds", "90")], NOW)
    before, after = gauges(quotas, NOW + 59), gauges(quotas, NOW + 60)
    assert before["remaining", "requests"] == 1 and before["used_ratio", "requests"] == pytest.approx(0.9)
    assert after["remaining", "requests"] == 10 and after["used_ratio", "requests"] == 0
    assert after["used_ratio", "codex-primary"] == 0.9 and gauges(quotas, NOW + 90)["used_ratio", "codex-primary"] == 0
    assert [quotas.next_reset(NOW + more) - NOW for more in (0, 60)] == [60, 90]
    figures = Figures()
    answer = Digest(Asked(model="m"), (Answer(),), (("x-ratelimit-reset-requests", "60"),))
    assert figures.due(NOW)
    figures.take(exchange(), answer, {})
    figures.text(NOW)
    assert not figures.due(NOW + 60) and figures.due(NOW + 60.5)  # its answer came 0.3 s after it was asked


def test_limits_of_an_account_have_no_model_and_their_number_ends() -> None:
    """An upstream that invents a limit with each answer fills no memory."""
    quotas = Quotas()
    quotas.take("anthropic", "m", [("anthropic-ratelimit-unified-5h-utilization", "0.5")], NOW)
    (line,) = [line for line in quotas.lines(NOW) if not line.startswith("#")]
    assert line == 'llm_proxy_quota_used_ratio{provider="anthropic",model="",quota="unified-5h"} 0.5'
    for number in range(1000):
        quotas.take("anthropic", "m", [(f"x-ratelimit-limit-{number}", "1")], NOW)
    assert len(gauges(quotas)) == MOST


@given(st.text(max_size=40), st.text(max_size=30), st.floats(0, 1e12))
def test_no_header_breaks_the_page(name: str, value: str, at: float) -> None:
    """Whatever an upstream sends, what is shown is valid."""
    quotas = Quotas()
    quotas.take("p", "m", [(f"anthropic-ratelimit-{name}-reset", value), (f"x-ratelimit-reset-{name}", value)], at)
    quotas.take("p", "m", [("x-ratelimit-reset-requests", value), ("x-ratelimit-limit-requests", value)], at)
    gauges(quotas, at)
