"""Logs that anybody may have written: whatever stands in them, the commands that ask the record answer."""

import io
import json
import tempfile
from importlib import import_module
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_proxy.cli import show
from llm_proxy.cli.grammar import FORMATS
from llm_proxy.cli.sessions import as_object
from llm_proxy.cli.view import bodies
from llm_proxy.formats import markdown
from llm_proxy.formats.call import Call
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.queries import Filter, open_index
from llm_proxy.index.record import Record
from llm_proxy.service.ask import Places
from llm_proxy.service.reprice import reprice
from llm_proxy.settings import load
from tests.spoiled import spoiled


def _meta(second, call=None):
    meta = {"ts": f"2026-01-02T03:04:{second:02}Z", "machine": "a@b", "host": "h:1", "session": "s"}
    return meta | ({"request_id": call} if call else {})


def _pair(call, seq, request, response):
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": f"hi {call}"}]})
    about = {"seq": seq, "headers": {"Content-Type": ["text/plain"], "A": ["b", "c"]}, "size": 3}
    asked = {"type": "request", "_meta": _meta(seq, call), "method": "POST", "path": "/v1/messages", "query": "a=b"}
    answered = {"type": "response", "_meta": _meta(seq + 1, call), "status": 200, "ending": "complete"}
    return [
        asked | about | {"body": body} | request,
        answered | about | {"timing": {"ttfb_ms": 1, "total_ms": 2}} | response,
    ]


_MESSAGE = {
    "role": "assistant",
    "content": [{"type": "text", "text": "yo"}],
    "usage": {"input_tokens": 1, "output_tokens": 2},
}
_EVENT = f"data: {json.dumps({'type': 'message_start', 'message': _MESSAGE})}\n"
_DIGEST = {"api": "anthropic.messages", "usage": {"input": 1, "server_tools": {"web_search": 1}}, "stop_reason": "x"}
_PRICE = {"usd": 0.5, "basis": "list", "units": {"input": 3}}
_TURN = {"type": "text", "from": "client", "raw": '{"type":"response.create","input":"hi"}'}
DOCUMENTS = [
    {"type": "session_start", "_meta": _meta(0), "provider": "p", "client": {"project": "x", "pid": 1}, "agent": "a"},
    {"type": "fork", "_meta": _meta(0), "parent_session": "t", "from_seq": 1},
    *_pair("c1", 1, {}, {"body": json.dumps(_MESSAGE), "digest": _DIGEST, "price": _PRICE}),
    *_pair("c2", 3, {}, {"chunks": [{"raw": _EVENT}, {"base64": "AA=="}], "error": "e"}),
    *_pair("c3", 5, {"path": "/v1/responses", "body": ""}, {"status": 101, "websocket": {"messages": [_TURN]}}),
    *_pair(
        "c4",
        7,
        {"body": "AA==", "body_encoding": "base64"},
        {"body": "AA==", "body_encoding": "base64", "status": 10**10},
    ),
    {"type": "price", "_meta": _meta(9, "c1"), "seq": 1, "price": _PRICE},
]
CONFIGURED = load({}, {}, None).settings
LINES = st.tuples(*(st.one_of(st.just(json.dumps(one).encode()), spoiled(one)) for one in DOCUMENTS))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(LINES)
def test_whatever_stands_in_a_log_can_be_asked_for(lines):
    """Indexed, summed, searched, shown, exported in every format, and priced again, without an error."""
    with tempfile.TemporaryDirectory() as name:
        logs = Path(name, "logs")
        (logs / "h/2026-01-02").mkdir(parents=True)
        (logs / "h/2026-01-02/s.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        indexer = Indexer(Path(name, "index.db"), logs)
        indexer.catch_up_all()
        indexer.close()
        with open_index(Path(name, "index.db")) as index:
            record = Record(index, logs)
            for by in ("total", "day", "model", "project", "session", "provider"):
                index.stats(Filter(), by)
            index.search("hi", Filter(), 5)
            calls = list(index.calls(Filter()))
            for session in index.sessions(Filter(), None):
                show.print_json(as_object(session, utc=False))
                "".join(markdown.conversation(session, index.calls_of(session.id), record.digest))
            for call in calls:
                show.print_json(record.entries(call))
                b"".join(bodies(entry) for entry in record.entries(call) if entry is not None)
            for form in FORMATS:
                if form != "markdown":
                    told = (Call(call, *record.entries(call)) for call in calls)
                    import_module(f"llm_proxy.formats.{form}").write(told, io.BytesIO())
        reprice(Filter(), Places(logs, Path(name, "index.db")), CONFIGURED, dry_run=True)
