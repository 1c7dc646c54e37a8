"""A provider that answers at once: OpenAI's chat API and Anthropic's messages, whole or as a stream, always the same.

It costs as little as an answer can, so that what stands before it is what is measured. `python -m bench_suite.instant`
prints `PORT n` and serves until SIGTERM; `/fake/counts` tells how many calls came. `--pause MS` keeps streams open that
long before their end.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from typing import cast

import uvloop

WORDS = "all good things come to those who wait and then measure " * 4
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]+)\r\n")
_STREAM = re.compile(rb'"stream" ?: ?true')
_CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_763_700_000,
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": WORDS}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 20, "completion_tokens": 48, "total_tokens": 68},
}
_MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [{"type": "text", "text": WORDS}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 20, "output_tokens": 48},
}


def _whole(body: object) -> bytes:
    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


def _event(data: dict[str, object]) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()


def _message_stream() -> tuple[bytes, bytes]:
    begun = {**_MESSAGE, "content": [], "stop_reason": None, "usage": {"input_tokens": 20, "output_tokens": 1}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    first = _event({"type": "message_start", "message": begun}) + _event(block)
    words = WORDS.split(" ")
    deltas = [
        _event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"{word} "}})
        for word in words
    ]
    last = _event({"type": "content_block_stop", "index": 0})
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    last += _event({"type": "message_delta", "delta": ended, "usage": {"output_tokens": 48}})
    last += _event({"type": "message_stop"})
    return first + b"".join(deltas[:10]), b"".join(deltas[10:]) + last


def _chat_stream() -> tuple[bytes, bytes]:
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_763_700_000, "model": "gpt-4o-mini"}

    def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
        data = {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        return f"data: {json.dumps(data)}\n\n".encode()

    words = WORDS.split(" ")
    first = chunk({"role": "assistant", "content": ""}) + b"".join(
        chunk({"content": f"{word} "}) for word in words[:10]
    )
    rest = b"".join(chunk({"content": f"{word} "}) for word in words[10:]) + chunk({}, "stop")
    usage = {**base, "choices": [], "usage": _CHAT["usage"]}
    return first, rest + f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode()


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
_WHOLE = {False: _whole(_CHAT), True: _whole(_MESSAGE)}
_STREAMS = {False: _chat_stream(), True: _message_stream()}


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Instant(asyncio.Protocol):
    calls = 0
    pause = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[: end + 2]
            length = _LENGTH.search(head)
            size = end + 4 + (int(length[1]) if length else 0)
            if len(self._data) < size:
                return
            body, self._data = self._data[end + 4 : size], self._data[size:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET "):
            self._transport.write(_whole({"requests": Instant.calls, "data": []}))
            return
        Instant.calls += 1
        anthropic = b"/messages" in head[: head.index(b"\r\n")]
        if _STREAM.search(body) is None:
            self._transport.write(_WHOLE[anthropic])
            return
        first, rest = _STREAMS[anthropic]
        self._transport.write(_HEAD + _chunked(first))
        asyncio.get_running_loop().call_later(self.pause, self._end, rest)

    def _end(self, rest: bytes) -> None:
        self._transport.write(_chunked(rest) + b"0\r\n\r\n")


async def serve() -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = await loop.create_server(Instant, "127.0.0.1", 0, backlog=4096)
    print(f"PORT {server.sockets[0].getsockname()[1]}", flush=True)
    await stopped.wait()


if __name__ == "__main__":
    if "--pause" in sys.argv:
        Instant.pause = float(sys.argv[sys.argv.index("--pause") + 1]) / 1000
    uvloop.run(serve())
