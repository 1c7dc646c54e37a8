"""Clients under whose load the program is broken, each with a log of its own of what it was given.

Responses are read with llhttp, so that nothing of `llm_proxy` judges itself. `Load` makes the calls, `check` holds the
session logs against what clients and provider saw. Leaves out breaking anything.
"""

import asyncio
import collections
import hashlib
import itertools
import json
import random
import time
from dataclasses import dataclass, field

import httptools

SESSION = "X-Claude-Code-Session-Id"
# (weight, what the fake provider is asked for, whether it is a stream, bytes of padding in the request, chunked)
KINDS = (
    (8, "words=40", False, 500, False),
    (3, "words=30; slow=4", True, 500, False),
    (2, "words=5; slow=80", True, 500, False),
    (1, "huge=300000", False, 200_000, False),
    (1, "words=10", False, 120_000, True),
)
_WEIGHTS = [kind[0] for kind in KINDS]


@dataclass(slots=True)
class Call:
    """One call as its client saw it. `body` is kept whole only while the call is not `complete`."""

    id: str
    session: str
    request_sha256: str
    request_size: int
    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    sha256: str = ""
    complete: bool = False
    seconds: float = 0.0

    # what llhttp calls
    def on_message_complete(self):
        self.complete = True

    def on_body(self, data):
        self.body += data


class Load:
    """`count` clients that call `fake` through the proxy on `port` for as long as the context lasts.

    A client keeps its connection, connects again when it breaks, and never repeats a call: each has an id of its own
    in `X-Call`. `calls` is what they were given, `arrived` how much of each request the provider had received.
    """

    def __init__(self, port, fake, *, count=8, rng=None, pause=0.05, kinds=KINDS):
        self.port, self.fake, self.pause, self.kinds = port, fake, pause, kinds
        self.rng = rng or random.Random()
        self.calls = {}
        self.arrived = collections.defaultdict(bytes)
        self.completed = 0
        self._numbers = itertools.count(1)
        self._count = count
        self._stop = False
        self._tasks = []
        self._news = asyncio.Condition()

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(self._client(f"load-{number}")) for number in range(self._count)]
        return self

    async def __aexit__(self, kind, error, trace):
        """The calls under way come to their end, if they can."""
        self._stop = True
        _, late = await asyncio.wait(self._tasks, timeout=15)
        for task in late:
            task.cancel()
        for done in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(done, Exception):
                raise done
        self._look_at_provider()

    async def more(self, count=1, timeout=30):
        """Until so many more calls are complete."""
        goal = self.completed + count
        async with asyncio.timeout(timeout), self._news:
            await self._news.wait_for(lambda: self.completed >= goal)

    def slowest(self, since=0):
        """Seconds of the slowest complete call that began as call number `since` or later."""
        return max(call.seconds for call in itertools.islice(self.calls.values(), since, None) if call.complete)

    async def _client(self, session):
        while not self._stop:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.02)  # between two lives of the proxy
                continue
            try:
                while not self._stop:
                    await self._call(session, reader, writer)
                    await asyncio.sleep(self.rng.random() * self.pause)
            except (OSError, EOFError):
                continue
            finally:
                writer.close()

    async def _call(self, session, reader, writer):
        _, faults, streams, padding, chunked = self.rng.choices(self.kinds, [kind[0] for kind in self.kinds])[0]
        name = f"call-{next(self._numbers)}"
        content = f"{name} " + "".join(self.rng.choices("abcdefgh ", k=100)) * (padding // 100)
        asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
        body = json.dumps(asked | ({"stream": True} if streams else {})).encode()
        call = self.calls[name] = Call(name, session, hashlib.sha256(body).hexdigest(), len(body))
        begun = time.monotonic()
        head = (
            f"POST /anthropic/127.0.0.1:{self.fake.port}/v1/messages HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Content-Type: application/json\r\nX-Call: {name}\r\n{SESSION}: {session}\r\nX-Fake: {faults}\r\n"
        )
        if chunked:
            writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            for start in range(0, len(body), 30_000):
                piece = body[start : start + 30_000]
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await asyncio.sleep(0.01)
            writer.write(b"0\r\n\r\n")
        else:
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        parser = httptools.HttpResponseParser(call)
        while not call.complete:
            data = await reader.read(1 << 16)
            if not data:
                raise EOFError
            parser.feed_data(data)
            call.status = parser.get_status_code()
        call.seconds = time.monotonic() - begun
        call.sha256 = hashlib.sha256(call.body).hexdigest()
        call.body = bytearray()
        self.completed += 1
        if self.completed % 100 == 0:
            self._look_at_provider()
        async with self._news:
            self._news.notify_all()

    def _look_at_provider(self):
        """What it saw of calls that broke is kept; the rest would fill the memory."""
        keep = []
        for request, response in zip(self.fake.requests, self.fake.responses, strict=True):
            call = self.calls.get(request.header("X-Call") or "")
            if call is not None:
                self.arrived[call.id] = b"" if call.complete else request.body
                if not request.complete or not (call.complete or response.complete):
                    keep.append((request, response))
        self.fake.requests[:] = [request for request, _ in keep]
        self.fake.responses[:] = [response for _, response in keep]


def read_logs(folder):
    """{file: entries}; every line must be whole and JSON, every file 0600, every folder 0700, and nothing else there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.stat().st_mode & 0o777
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path} is {mode:o}"
        if path.is_dir():
            continue
        assert path.suffix == ".jsonl", path
        data = path.read_bytes()
        assert data.endswith(b"\n"), f"{path} ends with half a line"
        found[path] = [json.loads(line) for line in data.splitlines()]
    assert folder.stat().st_mode & 0o777 == 0o700
    return found


def body_of(entry):
    """The body of an entry, of a stream all its lines."""
    if "chunks" in entry:
        return b"".join(chunk["raw"].encode() for chunk in entry["chunks"])
    return entry["body"].encode()


def check(load, folder, *, broken=("interrupted",), lossy=False):
    """Hold the session logs in `folder` against `load`: each call once, whole, in its session.

    `broken` are the endings a call may have that its client did not get to the end. With `lossy` calls may be missing
    and bodies may be marked as truncated, which are counted: (missing, truncated).
    """
    sessions = {path: entries for path, entries in read_logs(folder).items() if path.name != "recording-gaps.jsonl"}
    if not lossy:
        assert not (folder / "recording-gaps.jsonl").exists()
    requests, responses, by_call = {}, {}, {}
    homes = collections.Counter()
    for path, entries in sessions.items():
        assert entries[0]["type"] == "session_start", path
        homes[entries[0]["client_session"]] += 1
        numbers = collections.Counter()
        for entry in entries:
            if entry["type"] == "session_start":
                continue
            assert entry["_meta"]["session"] == path.stem
            kept = requests if entry["type"] == "request" else responses
            assert entry["_meta"]["request_id"] not in kept, f"{entry['type']} twice: {entry['_meta']}"
            kept[entry["_meta"]["request_id"]] = entry
            if entry["type"] == "request":
                numbers[entry["seq"]] += 1
                (name,) = entry["headers"]["X-Call"]
                assert name not in by_call, f"{name} twice"
                assert load.calls[name].session == entries[0]["client_session"]
                by_call[name] = entry
        assert not [number for number, count in numbers.items() if count > 1], f"{path} has numbers twice"
        assert sorted(numbers) == list(range(1, len(numbers) + 1)), f"{path} leaves numbers out"
    assert not [session for session, count in homes.items() if count > 1], f"sessions in several files: {homes}"
    assert set(requests) == set(responses)
    missing = truncated = 0
    for call in load.calls.values():
        request = by_call.get(call.id)
        if request is None:
            seen = call.status or call.id in load.arrived
            assert lossy or not seen, f"not in the logs: {call}, {load.arrived.get(call.id)}"
            missing += bool(seen)
            continue
        response = responses[request["_meta"]["request_id"]]
        assert response["seq"] == request["seq"]
        if "truncated" in request or "truncated" in response:
            assert lossy, (request, response)
            truncated += 1
        else:
            _check_call(call, request, response, load.arrived.get(call.id, b""), broken)
    return missing, truncated


def _check_call(call, request, response, arrived, broken):
    sent, got = body_of(request), body_of(response) if "body" in response or "chunks" in response else b""
    if call.complete:
        assert hashlib.sha256(sent).hexdigest() == call.request_sha256, call
        assert hashlib.sha256(got).hexdigest() == call.sha256, (call, response)
        assert (response["status"], response["ending"]) == (call.status, "complete"), (call, response)
        assert request["size"] == call.request_size and response["size"] == len(got)
        assert call.status == 200, (call, response)
        return
    # The proxy may have had all of it when it was killed, and the client not yet.
    assert response["ending"] in (*broken, "complete"), (call, response)
    assert sent.startswith(arrived), f"the provider had more of {call} than was recorded: {len(arrived)} of {len(sent)}"
    assert got.startswith(call.body), f"the client had more than was recorded: {call}, {response}"
    assert response["status"] == call.status or not call.status
