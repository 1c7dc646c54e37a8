"""What the fake's models say: bodies of invoke, converse and count-tokens, and the frames of their streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.fakebedrock import frames

WORDS = ("Hello", " from", " Bedrock", ".")
TEXT = "".join(WORDS)
INPUT, OUTPUT, CACHED = 12, 5, 100
LATENCY = {"latencyMs": 535}

Json = dict[str, Any]


def invoked(model: str) -> Json:
    """A plain answer in the shape of the model's maker."""
    if "amazon.nova" in model:
        return conversed() | {"usage": {"inputTokens": INPUT, "outputTokens": OUTPUT, "totalTokens": INPUT + OUTPUT}}
    if "anthropic" not in model and not model.startswith("arn:"):
        return {
            "generation": TEXT,
            "prompt_token_count": INPUT,
            "generation_token_count": OUTPUT,
            "stop_reason": "stop",
        }
    return {
        "id": "msg_bdrk_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5-20251001",
        "content": [{"type": "text", "text": TEXT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": INPUT,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": CACHED,
            "output_tokens": OUTPUT,
        },
    }


def invoke_events(model: str, words: int = len(WORDS)) -> Iterator[Json]:
    """The model's own events, with Bedrock's counts in the last; `words` of them are text."""
    metrics = {
        "amazon-bedrock-invocationMetrics": {
            "inputTokenCount": INPUT,
            "outputTokenCount": OUTPUT,
            "invocationLatency": 535,
            "firstByteLatency": 128,
        }
    }
    texts = [WORDS[number % len(WORDS)] for number in range(words)]
    if "anthropic" not in model and not model.startswith("arn:"):
        yield from ({"generation": text, "stop_reason": None} for text in texts)
        yield {"generation": "", "stop_reason": "stop"} | metrics
        return
    message = invoked(model) | {"content": [], "stop_reason": None}
    yield {"type": "message_start", "message": message | {"usage": message["usage"] | {"output_tokens": 1}}}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    for text in texts:
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    yield {"type": "content_block_stop", "index": 0}
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": OUTPUT}}
    yield {"type": "message_stop"} | metrics


def invoke_stream(model: str, words: int = len(WORDS)) -> Iterator[bytes]:
    return map(frames.chunk, invoke_events(model, words))


def _usage() -> Json:
    return {
        "inputTokens": INPUT,
        "outputTokens": OUTPUT,
        "totalTokens": INPUT + OUTPUT + CACHED,
        "cacheReadInputTokens": CACHED,
        "cacheWriteInputTokens": 0,
    }


def conversed() -> Json:
    message = {"role": "assistant", "content": [{"text": TEXT}]}
    return {"output": {"message": message}, "stopReason": "end_turn", "usage": _usage(), "metrics": LATENCY}


def converse_stream(words: int = len(WORDS)) -> Iterator[bytes]:
    yield frames.event("messageStart", {"role": "assistant", "p": "abcd"})
    for number in range(words):
        delta = {"text": WORDS[number % len(WORDS)]}
        yield frames.event("contentBlockDelta", {"contentBlockIndex": 0, "delta": delta, "p": "abcdefgh"})
    yield frames.event("contentBlockStop", {"contentBlockIndex": 0, "p": "ab"})
    yield frames.event("messageStop", {"stopReason": "end_turn", "p": "abc"})
    yield frames.event("metadata", {"usage": _usage(), "metrics": LATENCY, "p": "a"})


def profiles(region: str) -> Json:
    model = "anthropic.claude-haiku-4-5-20251001-v1:0"
    return {
        "inferenceProfileSummaries": [
            {
                "inferenceProfileName": "US Claude Haiku 4.5",
                "inferenceProfileArn": f"arn:aws:bedrock:{region}:123456789012:inference-profile/us.{model}",
                "inferenceProfileId": f"us.{model}",
                "models": [{"modelArn": f"arn:aws:bedrock:{region}::foundation-model/{model}"}],
                "status": "ACTIVE",
                "type": "SYSTEM_DEFINED",
            }
        ]
    }


def models(region: str) -> Json:
    model = "anthropic.claude-haiku-4-5-20251001-v1:0"
    arn = f"arn:aws:bedrock:{region}::foundation-model/{model}"
    return {"modelSummaries": [{"modelArn": arn, "modelId": model, "modelName": "Claude Haiku 4.5"}]}
