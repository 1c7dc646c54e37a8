"""The first token of a stream is what a person waits for: not the head, and not events that say nothing yet."""

import pytest

from llm_proxy.records.first_token import first_token_ms, waited_ms

ANTHROPIC = [
    (0, 'data: {"type": "message_start", "message": {"content": []}}\n'),
    (40, 'data: {"type": "ping"}\n'),
    (600, 'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}\n'),
]
CHAT = [
    (5, 'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n'),
    (300, 'data: {"choices":[{"delta":{"content":"Hi"}}]}\n'),
]
RESPONSES = [
    (5, 'data: {"type":"response.created","response":{"output":[]}}\n'),
    (700, 'data: {"type":"response.reasoning_summary_text.delta","delta":"Hm"}\n'),
]
GEMINI = [(90, 'data: {"candidates":[{"content":{"parts":[{"text":"Hi"}]}}]}\n')]
CONVERSE = [(10, 'data: {"role":"assistant"}\n'), (80, 'data: {"contentBlockDelta":{"delta":{"text":"Hi"}}}\n')]


def entry(chunks, status=200, **timing):
    told = [{"delta_ms": ms, "raw": raw} for ms, raw in chunks]
    return {"status": status, "timing": {"ttfb_ms": 1500, "total_ms": 9000} | timing, "chunks": told}


@pytest.mark.parametrize(
    ("chunks", "after"), [(ANTHROPIC, 600), (CHAT, 300), (RESPONSES, 700), (GEMINI, 90), (CONVERSE, 80)]
)
def test_it_is_the_first_piece_of_an_answer(chunks, after):
    """Counted from the request's arrival, whatever API it is."""
    assert first_token_ms(entry(chunks)) == waited_ms(entry(chunks)) == 1500 + after


def test_what_the_log_says_holds():
    """Also where the body has been left out since."""
    assert first_token_ms({"status": 200, "timing": {"ttfb_ms": 1, "first_token_ms": 77}}) == 77


@pytest.mark.parametrize(
    ("response", "waited"),
    [
        ({"status": 200, "timing": {"ttfb_ms": 40}}, 40),
        ({"status": 429, "timing": {"ttfb_ms": 40}}, None),
        ({"status": None, "timing": {"ttfb_ms": 0}}, None),
        ({"status": 200, "timing": "soon"}, None),
        ({"status": 200, "timing": {"ttfb_ms": "soon"}, "chunks": [1, {"raw": 2}, {"raw": GEMINI[0][1]}]}, None),
        ({}, None),
    ],
)
def test_without_a_stream_it_is_the_head_and_an_error_has_none(response, waited):
    """Nor is there one in what somebody else has written."""
    assert waited_ms(response) == waited
    assert first_token_ms(response) is None
