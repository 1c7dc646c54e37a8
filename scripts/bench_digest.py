"""How long understanding takes: a long conversation and a long stream, per dialect.

    python scripts/bench_digest.py [--messages N] [--size BYTES] [--rounds N]

The conversation is an agent's: questions, tool calls, results, answers. The best and the median of some rounds are
printed, in milliseconds; `keys` is what it costs to recognise every message again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from llm_proxy.dialects import registry
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Message

Json = Any
WORDS = ("the", "file", "café", "returns", "None", "\n    ", "self.value", "=", '"text"', "index", "→", "of", "a")


def prose(chance: random.Random, size: int) -> str:
    said: list[str] = []
    length = 0
    while length < size:
        word = chance.choice(WORDS)
        said.append(word)
        length += len(word) + 1
    return " ".join(said)


# --- conversations: four messages make a turn


def anthropic(texts: list[str]) -> Json:
    messages = []
    for number in range(0, len(texts) - 3, 4):
        ask, look, found, answer = texts[number : number + 4]
        call = {"type": "tool_use", "id": f"toolu_{number}", "name": "Read", "input": {"path": "a.py", "note": look}}
        result = {"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": [{"type": "text", "text": found}]}
        messages += [
            {"role": "user", "content": [{"type": "text", "text": ask}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}, call]},
            {"role": "user", "content": [result]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    return {"model": "claude-opus-4-8", "max_tokens": 1000, "stream": True, "messages": messages}


def chat(texts: list[str]) -> Json:
    messages = []
    for number in range(0, len(texts) - 3, 4):
        ask, look, found, answer = texts[number : number + 4]
        arguments = json.dumps({"path": "a.py", "note": look})
        function = {"name": "read", "arguments": arguments}
        messages += [
            {"role": "user", "content": ask},
            {"role": "assistant", "tool_calls": [{"id": f"call_{number}", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": f"call_{number}", "content": found},
            {"role": "assistant", "content": answer},
        ]
    return {"model": "gpt-5.2", "messages": messages}


def responses(texts: list[str]) -> Json:
    items: list[Json] = []
    for number in range(0, len(texts) - 3, 4):
        ask, look, found, answer = texts[number : number + 4]
        arguments = json.dumps({"path": "a.py", "note": look})
        items += [
            {"role": "user", "content": [{"type": "input_text", "text": ask}]},
            {"type": "function_call", "call_id": f"call_{number}", "name": "read", "arguments": arguments},
            {"type": "function_call_output", "call_id": f"call_{number}", "output": found},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": answer}]},
        ]
    return {"model": "gpt-5.2", "input": items}


def gemini(texts: list[str]) -> Json:
    contents = []
    for number in range(0, len(texts) - 3, 4):
        ask, look, found, answer = texts[number : number + 4]
        contents += [
            {"role": "user", "parts": [{"text": ask}]},
            {"role": "model", "parts": [{"functionCall": {"name": "read", "args": {"path": "a.py", "note": look}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "read", "response": {"output": found}}}]},
            {"role": "model", "parts": [{"text": answer}]},
        ]
    return {"contents": contents}


def converse(texts: list[str]) -> Json:
    messages = []
    for number in range(0, len(texts) - 3, 4):
        ask, look, found, answer = texts[number : number + 4]
        use = {"toolUseId": f"tooluse_{number}", "name": "read", "input": {"path": "a.py", "note": look}}
        messages += [
            {"role": "user", "content": [{"text": ask}]},
            {"role": "assistant", "content": [{"toolUse": use}]},
            {
                "role": "user",
                "content": [{"toolResult": {"toolUseId": use["toolUseId"], "content": [{"text": found}]}}],
            },
            {"role": "assistant", "content": [{"text": answer}]},
        ]
    return {"messages": messages}


CONVERSATIONS: dict[str, tuple[str, Callable[[list[str]], Json]]] = {
    "anthropic.messages": ("/v1/messages", anthropic),
    "bedrock.converse": ("/model/amazon.nova-pro-v1%3A0/converse", converse),
    "openai.chat": ("/v1/chat/completions", chat),
    "openai.responses": ("/v1/responses", responses),
    "gemini.generate": ("/v1beta/models/gemini-3.1-pro-preview:generateContent", gemini),
    "ollama.chat": ("/api/chat", chat),
}


# --- streams


def anthropic_stream(words: list[str]) -> bytes:
    usage = {"input_tokens": 10, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage}
    block = {"type": "text", "text": ""}
    events: list[Json] = [{"type": "message_start", "message": message}]
    events.append({"type": "content_block_start", "index": 0, "content_block": block})
    for word in words:
        events.append({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}})
    events += [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": len(words)}},
        {"type": "message_stop"},
    ]
    return b"".join(b"event: %s\ndata: %s\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events)


def chat_stream(words: list[str]) -> bytes:
    frame = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5.2"}
    choices = [{"index": 0, "delta": {"content": word}, "finish_reason": None} for word in words]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    return (
        b"".join(b"data: %s\n\n" % json.dumps({**frame, "choices": [c]}).encode() for c in choices)
        + b"data: [DONE]\n\n"
    )


STREAMS: dict[str, Callable[[list[str]], bytes]] = {"anthropic.messages": anthropic_stream, "openai.chat": chat_stream}


# --- measuring


def milliseconds(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """The best and the median."""
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        taken.append((time.perf_counter() - begun) * 1000)
    return min(taken), statistics.median(taken)


def first_keys(messages: Sequence[Message]) -> tuple[float, int]:
    """Milliseconds, and how many messages."""
    taken, _ = milliseconds(lambda: [message.key for message in messages], 1)
    return taken, len(messages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--size", type=int, default=2_000_000, help="bytes of the conversation, about")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    chance = random.Random(1)
    texts = [prose(chance, int(options.size / options.messages * 0.93)) for _ in range(options.messages)]
    print(f"{'conversation':<20} {'bytes':>9} {'messages':>8} {'best':>7} {'median':>7} {'keys':>7}")
    for api, (path, make) in CONVERSATIONS.items():
        body = json.dumps(make(texts), ensure_ascii=False).encode()
        best, median = milliseconds(
            lambda api=api, path=path, body=body: registry.asked(api, path, body), options.rounds
        )
        # A message makes its key once.
        keys, told = min(first_keys(registry.asked(api, path, body).messages) for _ in range(options.rounds))
        print(f"{api:<20} {len(body):>9} {told:>8} {best:>7.1f} {median:>7.1f} {keys:>7.1f}")
    print(f"\n{'stream':<20} {'bytes':>9} {'events':>8} {'best':>7} {'median':>7}")
    words = [prose(chance, 12) for _ in range(10_000)]
    for api, stream in STREAMS.items():
        content = Content("events", stream(words), media_type="text/event-stream")
        work = lambda api=api, content=content: registry.answers(api, CONVERSATIONS[api][0], content)  # noqa: E731
        best, median = milliseconds(work, options.rounds)
        print(f"{api:<20} {len(content.data):>9} {len(words):>8} {best:>7.1f} {median:>7.1f}")


if __name__ == "__main__":
    main()
