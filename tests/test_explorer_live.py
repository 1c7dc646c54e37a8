"""Calls in flight: from frames of the journal to words, for every API, without secrets, to any number of viewers."""

import asyncio
import base64
import contextlib
import gzip
import http.client
import json
import struct
import time
import uuid
import zlib
from pathlib import Path

import pytest
from aiohttp import ClientSession, ClientTimeout, web

from llm_proxy.explorer.guard import bearer, new_secret
from llm_proxy.explorer.live import hub as hubs
from llm_proxy.explorer.live.call import TAIL, Call, Manner
from llm_proxy.explorer.live.veil import LONGEST, Veil
from llm_proxy.explorer.live.watch import MOST_CALLS, Watch
from llm_proxy.explorer.options import Options
from llm_proxy.explorer.site import BELL, SITE, application
from llm_proxy.journal import segments
from llm_proxy.journal.frames import Kind, scan, unpack_open
from llm_proxy.records.exchange import Ending
from llm_proxy.records.redaction import Redactor
from tests import explored, journals

MS = 1_000_000
KEY = "sk-ant-api03-" + "Zx8Qw3Lm5Np7Rt9Vb2Yc4"
SSE = ("Content-Type: text/event-stream",)
REDACTOR = Redactor((), lambda kind, secret: 0)


def sse(*events, named=True):
    lines = (f"event: {one['type']}\n" if named and "type" in one else "" for one in events)
    return [f"{name}data: {json.dumps(one)}\n\n".encode() for name, one in zip(lines, events, strict=True)]


def frame(name, payload, kind="event"):
    """One of Amazon's."""
    headers = b""
    for key, value in ((f":{kind}-type", name), (":message-type", kind)):
        headers += bytes((len(key),)) + key.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    body = json.dumps(payload).encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
    whole = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + body
    return whole + struct.pack(">I", zlib.crc32(whole))


def invoked(event):
    return frame("chunk", {"bytes": base64.b64encode(json.dumps(event).encode()).decode()})


def heard(made, manner=Manner()):  # noqa: B008  # frozen
    """A call that has taken all frames of a made one, and what it said by the way."""
    frames = list(scan(b"".join(made.frames)))
    call = Call(frames[0], unpack_open(frames[0].payload), manner)
    said = []
    for one in frames[1:]:
        call.take(one)
        said += call.said()
    return call.seen, said


def told(said):
    """Words by kind, tools' names before theirs."""
    found = []
    for one in said:
        if found and found[-1][0] == one.kind and not one.name:
            found[-1][1] += one.text
        else:
            found.append([one.kind, f"{one.name}:{one.text}" if one.name else one.text])
    return [tuple(one) for one in found]


ANTHROPIC = sse(
    {
        "type": "message_start",
        "message": {"model": "claude-opus-4-5", "usage": {"input_tokens": 90, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Let me "}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "see"}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Rain. "}},
    {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "t", "name": "Bash"}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a": '}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "1.0}"}},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 40}},
    {"type": "message_stop"},
)
SAID = [("thinking", "Let me see"), ("text", "Rain. "), ("tool", 'Bash:{"a": 1.0}')]

CHAT = sse(
    {"model": "gpt-4.1", "choices": [{"index": 0, "delta": {"role": "assistant", "reasoning_content": "Let me see"}}]},
    {"model": "gpt-4.1", "choices": [{"index": 0, "delta": {"content": "Rain. "}}]},
    {"choices": [{"index": 1, "delta": {"content": "another choice"}}]},
    {
        "choices": [
            {
                "index": 0,
                "delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "Bash", "arguments": ""}}]},
            }
        ]
    },
    {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1.0}'}}]}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    {"choices": [], "usage": {"prompt_tokens": 90, "completion_tokens": 40, "total_tokens": 130}},
)
RESPONSES = sse(
    {"type": "response.created", "response": {"id": "r", "model": "gpt-5.2-codex", "status": "in_progress"}},
    {"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning"}},
    {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": "Let me see"},
    {"type": "response.output_item.added", "output_index": 1, "item": {"type": "message"}},
    {"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "delta": "Rain. "},
    {"type": "response.output_item.added", "output_index": 2, "item": {"type": "function_call", "name": "Bash"}},
    {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": '{"a": 1.0}'},
    {
        "type": "response.completed",
        "response": {
            "model": "gpt-5.2-codex",
            "status": "completed",
            "usage": {"input_tokens": 90, "output_tokens": 40},
        },
    },
)
GEMINI = sse(
    {
        "candidates": [{"content": {"parts": [{"text": "Let me see", "thought": True}]}}],
        "modelVersion": "gemini-2.5-pro",
    },
    {"candidates": [{"content": {"parts": [{"text": "Rain. "}]}}]},
    {
        "candidates": [
            {"content": {"parts": [{"functionCall": {"name": "Bash", "args": {"a": 1.5}}}]}, "finishReason": "STOP"}
        ],
        "usageMetadata": {"promptTokenCount": 90, "candidatesTokenCount": 30, "thoughtsTokenCount": 10},
    },
)
OLLAMA = [
    json.dumps(line).encode() + b"\n"
    for line in (
        {"model": "llama3.2", "message": {"thinking": "Let me see"}, "done": False},
        {"message": {"content": "Rain. "}, "done": False},
        {"message": {"tool_calls": [{"function": {"name": "Bash", "arguments": {"a": 1.5}}}]}, "done": False},
        {"message": {"content": ""}, "done": True, "done_reason": "stop", "prompt_eval_count": 90, "eval_count": 40},
    )
]
CONVERSE = [
    frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "Let me see"}}}),
    frame("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"text": "Rain. "}}),
    frame("contentBlockStart", {"contentBlockIndex": 2, "start": {"toolUse": {"name": "Bash", "toolUseId": "t"}}}),
    frame("contentBlockDelta", {"contentBlockIndex": 2, "delta": {"toolUse": {"input": '{"a": 1.0}'}}}),
    frame("messageStop", {"stopReason": "tool_use"}),
    frame("metadata", {"usage": {"inputTokens": 90, "outputTokens": 40, "totalTokens": 130}}),
]
INVOKE = [invoked(json.loads(one.split(b"data: ", 1)[1])) for one in ANTHROPIC]
ROUNDED = [*SAID[:2], ("tool", 'Bash:{"a":1.5}')]

APIS = {
    "anthropic": ("/v1/messages", SSE, ANTHROPIC, SAID, "claude-opus-4-5"),
    "chat": ("/v1/chat/completions", SSE, [*CHAT, b"data: [DONE]\n\n"], SAID, "gpt-4.1"),
    "responses": ("/v1/responses", SSE, RESPONSES, SAID, "gpt-5.2-codex"),
    "gemini": ("/v1beta/models/gemini-2.5-pro:streamGenerateContent", SSE, GEMINI, ROUNDED, "gemini-2.5-pro"),
    "ollama": ("/api/chat", ("Content-Type: application/x-ndjson",), OLLAMA, ROUNDED, "llama3.2"),
    "converse": (
        "/model/amazon.nova-pro-v1%3A0/converse-stream",
        ("Content-Type: application/vnd.amazon.eventstream",),
        CONVERSE,
        SAID,
        "",
    ),
    "invoke": (
        "/model/anthropic.claude-opus-4-5-v1%3A0/invoke-with-response-stream",
        ("Content-Type: application/vnd.amazon.eventstream",),
        INVOKE,
        SAID,
        "claude-opus-4-5",
    ),
}


def paced(pieces, step=20):
    return [(101 + number * step, piece) for number, piece in enumerate(pieces)]


@pytest.mark.parametrize("name", APIS)
def test_every_api_is_read_along_word_by_word(name):
    """Thinking, text and tools as they come, whichever API; tokens, model and first token with them."""
    target, headers, stream, said, model = APIS[name]
    seen, words = heard(journals.Call(1, target=target, headers=headers, pieces=paced(stream, 300)))
    assert told(words) == said
    assert (seen.model, seen.output, seen.counted, seen.usage.prompt) == (model, 40, True, 90)
    assert seen.did == "Bash"
    assert seen.first_ms >= 101 and seen.speed > 0
    assert (seen.phase, seen.ending, seen.failed) == ("over", "complete", False)


@pytest.mark.parametrize("name", APIS)
def test_pieces_may_be_cut_anywhere(name):
    """Three bytes at a time say the same."""
    target, headers, stream, said, _ = APIS[name]
    whole = b"".join(stream)
    pieces = paced([whole[at : at + 3] for at in range(0, len(whole), 3)], 1)
    _, words = heard(journals.Call(1, target=target, headers=headers, pieces=pieces))
    assert told(words) == said


def test_codings_and_chunks_are_taken_off():
    """gzip within chunked framing, flushed event by event, is read as it comes."""
    packer = zlib.compressobj(wbits=31)
    pieces = []
    for event in ANTHROPIC:
        data = packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)
        pieces.append(b"%x\r\n%b\r\n" % (len(data), data))
    headers = (*SSE, "Content-Encoding: gzip", "Transfer-Encoding: chunked")
    _, words = heard(journals.Call(1, headers=headers, pieces=paced(pieces)))
    assert told(words) == SAID


def _message(text, masked):
    data, mask = text.encode(), b"\1\2\3\4"
    length = bytes((len(data),)) if len(data) < 126 else b"\x7e" + struct.pack(">H", len(data))
    if not masked:
        return b"\x81" + length + data
    coded = bytes(one ^ mask[place % 4] for place, one in enumerate(data))
    return b"\x81" + bytes((length[0] | 0x80,)) + length[1:] + mask + coded


def test_websocket_turns_follow_each_other():
    """Over one connection each response.create is a turn of its own; output adds up."""
    events = [one.split(b"data: ", 1)[1].strip().decode() for one in RESPONSES]
    call = journals.Call(
        1,
        method="GET",
        target="/v1/responses",
        request=b"",
        request_headers=("Upgrade: websocket", "Connection: Upgrade"),
        status="101 Switching Protocols",
        headers=("Upgrade: websocket", "Connection: Upgrade"),
        pieces=(),
    )
    frames = list(scan(b"".join([call.open, call.head])))
    followed = Call(frames[0], unpack_open(frames[0].payload), Manner())
    followed.take(frames[1])
    for turn in range(2):
        [asked] = scan(call.frame(Kind.REQUEST, 200 * MS, _message('{"type":"response.create"}', True)))
        followed.take(asked)
        assert followed.seen.phase == "waiting"
        for number, event in enumerate(events):
            [answer] = scan(call.frame(Kind.RESPONSE, (300 + turn * 500 + number) * MS, _message(event, False)))
            followed.take(answer)
        assert told(followed.said()) == SAID
    assert followed.seen.output == 80
    assert followed.seen.phase == "tool" and followed.seen.tool == "Bash"


def test_phases_go_by_what_has_arrived():
    """Sending, waiting, then what is said; an answer that cannot be read along is being received."""
    made = journals.Call(1, headers=SSE, pieces=paced(ANTHROPIC))
    frames = list(scan(b"".join(made.frames)))
    call = Call(frames[0], unpack_open(frames[0].payload), Manner())
    phases = [call.seen.phase]
    for one in frames[1:]:
        call.take(one)
        phases.append(call.seen.phase)
    assert list(dict.fromkeys(phases)) == ["sending", "waiting", "thinking", "text", "tool", "over"]
    plain = journals.Call(2, answer=b'{"type":"message"}')
    frames = list(scan(b"".join(plain.frames[:-1])))
    call = Call(frames[0], unpack_open(frames[0].payload), Manner())
    for one in frames[1:]:
        call.take(one)
    assert (call.seen.phase, call.seen.response_bytes) == ("receiving", 18)


@pytest.mark.parametrize(
    ("pieces", "headers"),
    [
        ([b"\xff\xfe" * 500], SSE),
        ([b"data: {\n\n", b"data: []\n\ndata: 7\n\n", b'data: {"type":{}}\n\n'], SSE),
        ([b"zz\r\nnot chunked"], (*SSE, "Transfer-Encoding: chunked")),
        ([b"not gzip"], (*SSE, "Content-Encoding: gzip")),
        ([b"x"], (*SSE, "Content-Encoding: made-up")),
        ([b"\0" * 64], ("Content-Type: application/vnd.amazon.eventstream",)),
        ([gzip.compress(b"data: " + b"a" * (9 << 20))], (*SSE, "Content-Encoding: gzip")),
        (sse({"type": "content_block_delta", "index": {}, "delta": {"type": "text_delta", "text": 7}}), SSE),
    ],
)
def test_what_is_damaged_ends_reading_along_and_not_the_call(pieces, headers):
    """Whatever the bytes: nothing raises, and the end is seen."""
    seen, _ = heard(journals.Call(1, headers=headers, pieces=paced(pieces)))
    assert seen.phase == "over"


def test_memory_is_bounded_however_much_is_said():
    """The last words stay, the rest goes."""
    text = "never ending rain " * 40
    events = sse(*({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},) * 400)
    made = journals.Call(1, headers=SSE, pieces=paced(events, 1))
    frames = list(scan(b"".join(made.frames)))
    call = Call(frames[0], unpack_open(frames[0].payload), Manner())
    for one in frames[1:]:
        call.take(one)  # and nobody asks
    assert sum(len(one.text) for one in call.seen.words) <= TAIL + len(text)
    assert sum(len(one.text) for one in call.said()) <= 2 * TAIL


def test_a_call_that_ends_badly_says_how():
    """An error status, a client that left, one that left after the last event."""
    failed, _ = heard(journals.Call(1, status="529 Overloaded"))
    gone, _ = heard(journals.Call(2, headers=SSE, pieces=paced(ANTHROPIC[:6]), ending=Ending.CLIENT_GONE))
    after, _ = heard(journals.Call(3, headers=SSE, pieces=paced(ANTHROPIC), ending=Ending.CLIENT_GONE))
    assert (failed.failed, failed.status) == (True, 529)
    assert (gone.failed, gone.ending) == (False, "client_gone")
    assert (after.failed, after.ending) == (False, "complete")


# --- secrets


def shown(text, size, **options):
    veil = Veil(Redactor(options.pop("own", ()), lambda kind, secret: 0), **options)
    given = [veil.feed(text[at : at + size]) for at in range(0, len(text), size)]
    return [*given, veil.finish()]


PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\n"
    + "MIIEowIBAAKCAQEAx7Vq8Kp0Zr5mJ3tYw2nQf4hLs6Dc9\n" * 12
    + "-----END RSA PRIVATE KEY-----"
)
SECRETS = {
    "key": (f"use {KEY} now", KEY, "use <ANTHROPIC_KEY> now"),
    "aws": ("id AKIAIOSFODNN7EXAMPLF and more", "AKIAIOSFODNN7EXAMPLF", "id <AWS_KEY> and more"),
    "password": ("see postgres://ann:hunter2x9@db/x now", "hunter2x9", "see postgres://ann:<URL_PASSWORD>@db/x now"),
    "private key": (f"here:\n{PEM}\nthat was it", "MIIEowIBAAKCAQEA", "here:\n<PRIVATE_KEY>\nthat was it"),
    "named": ("export OPENAI_API_KEY = q9Wz8Yx7Vu6Ts5Rq4Po3Nm2 ok", "q9Wz8Yx7Vu6Ts5Rq4Po3Nm2", ""),
}


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("name", SECRETS)
def test_no_piece_of_a_secret_is_shown(name, size):
    """However the model's pieces are cut, what is shown is what the record would say."""
    text, secret, expected = SECRETS[name]
    pieces = shown(text, size)
    assert "".join(pieces) == (expected or REDACTOR.text(text))
    for start in range(len(secret) - 8):
        assert secret[start : start + 9] not in "".join(pieces)


def test_words_are_not_held_back_for_long():
    """All but the last word is shown at once; what has no blank at all is left out, not shown in part."""
    veil = Veil(REDACTOR)
    assert veil.feed("the rain in Sp") == "the rain in "
    assert veil.feed("ain ") == "Spain "
    assert Veil(REDACTOR).feed("雨が降る") == "雨が降る"
    assert shown("a " + "x" * (LONGEST + 10) + " b", 100)[-1].endswith("b")
    assert "xxx" not in "".join(shown("x" * 3 * LONGEST, 64))[:-LONGEST]


def test_own_kinds_are_found_across_blanks():
    """One's own expressions may have blanks: then whole lines are waited for."""
    own = (("CARD", r"\d{4} \d{4} \d{4}"),)
    assert "".join(shown("pay 1234 5678 9012 now\nand go", 3, own=own, by_line=True)) == "pay <CARD> now\nand go"


def test_calls_are_shown_without_secrets_and_without_words_where_none_are_kept():
    """What stands in cards, rows and events went through the same redaction; metadata_only shows none of it."""
    delta = [KEY[:20], KEY[20:], " is", " the key"]
    events = sse(
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": one}} for one in delta)
    )
    made = journals.Call(1, headers=SSE, pieces=paced(events))
    seen, said = heard(made, Manner(REDACTOR))
    assert told(said) == [("text", "<ANTHROPIC_KEY> is the key")]
    assert seen.did == "<ANTHROPIC_KEY> is the key" and KEY[:16] not in repr(seen)
    silent, said = heard(made, Manner(REDACTOR, silent=True))
    assert not said and not silent.words and not silent.did and silent.output


# --- the journal


def changes(watch):
    found = []
    while (step := watch.step()) is not None:
        found += step
    return found


def test_calls_that_are_open_already_are_found(tmp_path):
    """The first look goes through what the journal still holds; what is over by then is not told."""
    journal = journals.Journal(tmp_path, segment_size=2000)
    over, opened = journals.Call(1), journals.Call(2, headers=SSE, pieces=paced(ANTHROPIC))
    journal.add(*opened.frames[:6])
    journal.add(*over.frames)
    watch = Watch(tmp_path, Manner())
    [seen] = watch.look()
    assert (seen.id, seen.phase, seen.words[0].text) == (str(opened.id), "thinking", "Let me ")
    [first] = changes(watch)
    assert first.opened and first.seen.id == seen.id
    journal.add(*opened.frames[6:])
    assert watch.look() == []
    last = changes(watch)
    assert [one.seen.phase for one in last] == ["over"], "what a page read is told to those who follow"
    assert told(last[0].words) == [("thinking", "see"), *SAID[1:]]
    watch.close()


def test_files_may_go_blocks_may_be_damaged_and_runs_may_end(tmp_path):
    """The keeper deletes, disks err, daemons start anew: watching goes on."""
    journal = journals.Journal(tmp_path, segment_size=1)
    calls = [journals.Call(number, session=f"s{number}") for number in range(1, 5)]
    watch = Watch(tmp_path, Manner())
    assert changes(watch) == []
    journal.add(calls[0].open)
    assert [one.seen.id for one in changes(watch)] == [str(calls[0].id)]
    journal.add(calls[1].open)  # its block is damaged
    number = segments.numbers(tmp_path)[-1]
    path = segments.path_of(tmp_path, number)
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)
    journal.add(calls[2].open)
    assert [one.seen.id for one in changes(watch)] == [str(calls[2].id)]
    for other in segments.numbers(tmp_path)[:-1]:
        segments.path_of(tmp_path, other).unlink()
    journal.add(calls[3].open)
    assert [one.seen.id for one in changes(watch)] == [str(calls[3].id)]
    journal.close()
    second = journals.Journal(tmp_path)
    fresh = journals.Call(1)
    second.add(fresh.open)
    found = changes(watch)
    assert [(one.seen.id, one.seen.ending) for one in found[:-1]] == [
        (str(calls[place].id), "interrupted") for place in (0, 2, 3)
    ]
    assert found[-1].opened and found[-1].seen.id == str(fresh.id)
    watch.close()


def test_a_folder_that_is_emptied_and_begun_again_is_noticed(tmp_path):
    """A daemon that settled everything begins with segment 1 again."""
    old = journals.Journal(tmp_path, segment_size=1)
    for number in range(1, 6):
        old.add(journals.Call(number).open)
    watch = Watch(tmp_path, Manner())
    assert len(changes(watch)) == 5
    old.close()
    for number in segments.numbers(tmp_path):
        segments.path_of(tmp_path, number).unlink()
    fresh = journals.Call(1)
    journals.Journal(tmp_path).add(fresh.open)
    generation = watch.generation
    assert [(one.seen.id, one.opened) for one in changes(watch)] == [(str(fresh.id), True)]
    assert watch.generation > generation
    watch.close()


def test_more_calls_than_can_be_followed_are_counted(tmp_path):
    """The number of calls held is bounded."""
    journal = journals.Journal(tmp_path)
    calls = [journals.Call(number) for number in range(1, MOST_CALLS + 11)]
    journal.add(*(call.open for call in calls))
    watch = Watch(tmp_path, Manner())
    assert len(changes(watch)) == MOST_CALLS and watch.beyond == 10
    journal.add(calls[-1].frames[-1])
    changes(watch)
    assert watch.beyond == 9
    watch.close()


def test_nobody_watches_nothing_is_kept_open(tmp_path):
    """A page alone leaves no file open: what the keeper deletes must give its place on the disk back."""
    journals.Journal(tmp_path).add(journals.Call(1).open)
    watch = Watch(tmp_path, Manner())
    assert len(watch.look()) == 1
    held = [one for one in Path("/proc/self/fd").iterdir() if str(tmp_path) in _target(one)]
    assert [one for one in held if "O_RDONLY" in _mode(one)] == []


def _target(link):
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _mode(link):
    flags = next(line for line in Path(f"/proc/self/fdinfo/{link.name}").read_text().splitlines() if "flags" in line)
    return "O_RDONLY" if int(flags.split()[1], 8) & 3 == 0 else "O_WRONLY"


# --- pages and event streams


class Scene:
    """An explorer over a made record and a journal that the test writes; `ring` is what the daemon does."""

    def __init__(self, folder):
        made = explored.record(folder)
        self.journal = journals.Journal(folder / "journal")
        (folder / "state").mkdir()
        self.headers = bearer(new_secret(folder / "state"))
        self.app = application(
            Options(str(made.index), str(made.logs), str(folder / "state"), str(folder / "journal"), version="test")
        )
        self.made = made
        self.url = ""

    def add(self, *frames):
        self.journal.add(*frames)
        self.app[BELL].ring()

    async def __aenter__(self):
        self.runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/llm-proxy"
        self.client = ClientSession(headers=self.headers, timeout=ClientTimeout(total=20))
        return self

    async def __aexit__(self, *_):
        await self.client.close()
        await self.runner.cleanup()

    async def get(self, path):
        async with self.client.get(self.url + path) as answer:
            return answer.status, await answer.text()

    @contextlib.asynccontextmanager
    async def events(self, query="", last=""):
        """A function that waits for the next event of one of these kinds: (kind, data, id)."""
        headers = {"Last-Event-ID": last} if last else {}
        async with self.client.get(f"{self.url}/live/events{query}", headers=headers) as answer:
            assert answer.status == 200

            async def following(*kinds):
                async with asyncio.timeout(10):
                    while True:
                        fields = {}
                        while (line := (await answer.content.readline()).decode().rstrip("\n")) or not fields:
                            name, _, value = line.partition(": ")
                            fields[name] = value
                        if fields.get("event") in kinds:
                            return fields["event"], json.loads(fields["data"]), fields["id"]

            yield following


@pytest.fixture
async def scene(tmp_path):
    async with Scene(tmp_path) as made:
        yield made


async def test_a_call_is_told_from_its_first_frame_to_its_last(scene):
    """Opened with its card, its words as they come, then over as a row; the page says the same without a stream."""
    call = journals.Call(1, headers=SSE, pieces=paced(ANTHROPIC), target="/v1/messages?beta=true")
    async with scene.events() as following:
        _, hello, _ = await following("hello")
        assert hello["calls"] == [] and len(hello["finished"]) > 10
        scene.add(call.open, call.request)
        _, opened, _ = await following("opened")
        assert opened["id"] == str(call.id) and "waiting for the first byte" in opened["html"]
        scene.add(call.head, *call.response[:6])
        _, said, _ = await following("said")
        assert said["words"] == [["thinking", "Let me see", ""], ["text", "Rain. ", ""]]
        assert (said["phase"], said["counted"]) == ("text", False) and said["usd"] > 0
        status, page = await scene.get("/live")
        assert status == 200 and "Rain. " in page and str(call.id) in page
        _, api = await scene.get("/api/live")
        [shown] = json.loads(api)["calls"]
        assert (shown["model"], shown["phase"], shown["words"][1]) == (
            "claude-opus-4-5",
            "text",
            ["text", "Rain. ", ""],
        )
        scene.add(*call.response[6:], call.end)
        _, over, _ = await following("over")
        assert "Bash" in over["html"]
    assert json.loads((await scene.get("/api/live"))[1])["calls"] == []


async def test_a_stream_goes_on_where_it_was_or_says_that_it_begins_anew(scene, monkeypatch):
    """`Last-Event-ID` of this run and not too long ago: only what came since. Else `hello`, with everything as of now."""
    calls = [journals.Call(number) for number in range(1, 4)]
    async with scene.events() as following:
        await following("hello")
        scene.add(calls[0].open)
        _, _, last = await following("opened")
    scene.add(calls[1].open)
    async with scene.events(last=last) as following:
        kind, data, later = await following("hello", "opened")
        assert (kind, data["id"]) == ("opened", str(calls[1].id))
    for bad in ("nonsense", "aaaaaaaaaaaa-3", last.replace("-", "-9999"), "-1", f"{last}x"):
        async with scene.events(last=bad) as following:
            kind, data, _ = await following("hello", "opened")
            assert kind == "hello" and {one["id"] for one in data["calls"]} == {str(one.id) for one in calls[:2]}
    hub = scene.app[SITE].live
    hub._events = type(hub._events)(hub._events, maxlen=2)  # a short memory
    scene.add(*(call.frames[-1] for call in calls[:2]), calls[2].open)
    async with scene.events(last=later) as following:
        kind, data, _ = await following("hello", "opened", "over")
        assert kind == "hello"


async def test_filters_choose_by_project_and_model(scene):
    """A call that is another model's is not told."""
    mine = journals.Call(1, headers=SSE, pieces=paced(ANTHROPIC))
    other = journals.Call(2, target="/v1/chat/completions", headers=SSE, pieces=paced(CHAT))
    async with scene.events("?model=claude-opus-4-5") as following:
        await following("hello")
        scene.add(*other.frames[:-1], *mine.frames[:-1])
        _, opened, _ = await following("opened")
        assert opened["id"] == str(mine.id)
    _, page = await scene.get("/live?model=gpt-4.1")
    assert str(other.id) in page and str(mine.id) not in page
    for path in ("/live", "/live/events"):
        assert (await scene.get(path + "?model=" + "x" * 600))[0] == 400
    async with scene.client.head(scene.url + "/live/events") as head:
        assert head.status == 200


async def test_marks_tell_where_calls_begin_and_end_and_nothing_else(scene):
    """For lists of sessions: no words, no HTML."""
    ledger = scene.made.sessions["ledger"]
    frames = [with_id(frame, uuid.UUID(scene.made.calls["ledger"][0])) for frame in journals.Call(1).frames]
    async with scene.events(f"?only=marks&session={ledger}") as following:
        _, hello, _ = await following("hello")
        assert hello["finished"] == [] and hello["calls"] == []
        scene.add(*frames[:-1])
        _, mark, _ = await following("placed")
        assert mark == {"id": scene.made.calls["ledger"][0], "session": ledger, "open": True}
        scene.add(frames[-1])
        assert (await following("over", "said"))[:2] == ("over", mark | {"open": False})


async def test_what_is_recorded_is_told_with_its_place_and_price(scene):
    """Once the keeper has written a call its row says what the index knows: session, project, cost."""
    recorded = scene.made.calls["ledger"][0]
    frames = [with_id(frame, uuid.UUID(recorded)) for frame in journals.Call(1).frames]
    async with scene.events() as following:
        await following("hello")
        scene.add(*frames[:-1])
        _, placed, _ = await following("placed")
        assert f"/llm-proxy/sessions/{scene.made.sessions['ledger']}?call={recorded}" in placed["html"]
        scene.add(frames[-1])
        _, row, _ = await following("recorded")
        assert "ledger" in row["html"] and "$" in row["html"]


def with_id(raw, id):
    """A frame with another call's id, where it is an OPEN."""
    [one] = scan(raw)
    return raw if one.kind != Kind.OPEN else raw[:24] + id.bytes + raw[40:]


async def test_a_slow_viewer_holds_up_nobody(scene):
    """One that reads nothing at all; the other is told everything, and memory stays what it was."""
    deltas = [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "rain " * 600}}] * 40
    async with scene.client.get(f"{scene.url}/live/events") as slow:
        assert slow.status == 200
        async with scene.events() as following:
            await following("hello")
            for number in range(1, 80):
                call = journals.Call(number, headers=SSE, pieces=paced(sse(*deltas), 1))
                scene.add(*call.frames)
                kind = ""
                while kind != "over":
                    kind, data, _ = await following("over", "hello")
                    assert kind == "over" and data["id"] == str(call.id)
        assert len(scene.app[SITE].live._events) <= hubs.EVENTS


async def test_viewers_are_bounded(scene, monkeypatch):
    """Beyond some dozens of pages a further one is told so."""
    monkeypatch.setattr(hubs, "VIEWERS", 2)
    async with scene.events() as one, scene.events() as other:
        await one("hello")
        await other("hello")
        async with scene.client.get(f"{scene.url}/live/events") as third:
            assert third.status == 503
    async with asyncio.timeout(30):
        while scene.app[SITE].live.viewers:
            await asyncio.sleep(0.01)


async def test_the_journal_is_read_only_while_somebody_watches(scene, monkeypatch):
    """The last viewer gone, nothing is followed; the next one begins with what is open then."""
    monkeypatch.setattr(hubs, "LINGER", 0.1)
    call = journals.Call(1)
    async with scene.events() as following:
        await following("hello")
        scene.add(call.open)
        await following("opened")
    hub = scene.app[SITE].live
    async with asyncio.timeout(10):
        while hub._tasks or hub._watch._reader is not None:
            await asyncio.sleep(0.01)
    async with scene.events() as following:
        while not (found := await following("hello", "opened"))[1].get("id") and not found[1]["calls"]:
            pass


def test_without_a_daemon_the_page_says_that_nothing_can_be_live(tmp_path):
    """Stand-alone: what has finished is shown, and no stream is opened."""

    async def visit():
        made = explored.record(tmp_path)
        (tmp_path / "state").mkdir()
        headers = bearer(new_secret(tmp_path / "state"))
        runner = web.AppRunner(application(Options(str(made.index), str(made.logs), str(tmp_path / "state"))))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        async with (
            ClientSession(headers=headers) as client,
            client.get(f"http://127.0.0.1:{port}/llm-proxy/live") as one,
        ):
            text = await one.text()
        await runner.cleanup()
        return one.status, text

    status, text = asyncio.run(visit())
    assert status == 200 and "no daemon is running" in text and "data-events" not in text


async def test_through_the_daemon_words_arrive_while_the_call_goes_on(start, fake):
    """Client, proxy, journal, explorer, stream: the first words are seen before the answer is over."""
    await asyncio.to_thread(_through_the_daemon, start("--port", "0"), fake.port)


def _through_the_daemon(daemon, fake):
    daemon.wait_for_recording()
    secret = daemon.state / "secret"
    headers = bearer(secret.read_text().strip() if secret.exists() else new_secret(daemon.state))
    stream = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
    deadline = time.monotonic() + 60
    while True:  # the first visit starts it
        stream.request("GET", "/llm-proxy/live/events", headers=headers)
        answer = stream.getresponse()
        if answer.status == 200:
            break
        answer.read()
        assert answer.status == 503 and time.monotonic() < deadline
        time.sleep(0.1)
    lines_until(answer, b"event: hello")
    client = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
    body = json.dumps({"model": "claude-opus-4-5", "stream": True, "max_tokens": 9, "messages": []})
    path = f"/anthropic/127.0.0.1:{fake}/v1/messages"
    client.request("POST", path, body, {"X-Fake": "endless; slow=20"})
    lines_until(answer, b'"words":[["text"')
    client.close()
    lines_until(answer, b"event: over")
    stream.close()


def lines_until(answer, mark):
    """Read on until a line holds it."""
    deadline = time.monotonic() + 60
    while mark not in (line := answer.readline()):
        assert line and time.monotonic() < deadline, f"{mark} did not come"
