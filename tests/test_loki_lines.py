"""What goes to Loki: entries as the log has them, an agent's steps between them, each once, in few labels."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.dialects.tool_use import calls as called
from llm_proxy.dialects.tool_use import results
from llm_proxy.formats.call import Call
from llm_proxy.formats.loki import LONGEST, REMEMBERED, SPAN, Common, Track, lines
from llm_proxy.index.queries import Place
from llm_proxy.lanes.reading import Reader
from llm_proxy.records.exchange import Ending
from llm_proxy.records.understood import moment_of
from llm_proxy.sinks import session_jsonl
from llm_proxy.sinks.outbox import Posted, Waiting
from tests import agents
from tests.calls import row
from tests.fakeloki import Store
from tests.goldens import golden, names
from tests.spoiled import spoiled

COMMON = Common("prod", "ann@desk", 262_000)
APIS = {
    "anthropic": agents.anthropic,
    "bedrock": agents.bedrock,
    "converse": agents.converse,
    "chat": agents.chat,
    "responses": agents.responses,
    "chained": lambda: agents.responses(chained=True),
    "gemini": agents.gemini,
    "ollama": agents.ollama,
}
NO_ERRORS = ("chat", "ollama")  # cannot say that a tool failed


def told(calls, track=None, common=COMMON):
    """Lines of each call, one after the other, and the last track."""
    track, all_lines = track or Track(), []
    for call in calls:
        found, track = lines(call, track, common)
        all_lines.append(found)
    return all_lines, track


def conversation(name):
    return [agents.call(turn, number) for number, turn in enumerate(APIS[name](), start=1)]


def kinds(found):
    return [dict(line.labels)["log_type"] for line in found]


def label(line, name):
    return dict(line.labels).get(name)


def only(found, kind):
    (line,) = [line for line in found if label(line, "log_type") == kind]
    return line


def of(found, kind):
    return [line for line in found if label(line, "log_type") == kind]


def end(found):
    return json.loads(only(found, "turn_end").text)


# --- conversations


@pytest.mark.parametrize("name", APIS)
def test_an_agent_is_told_step_by_step(name):
    """Three calls of every API: results once and named, tools called, turns counted."""
    errors = name not in NO_ERRORS
    (first, second, third), track = told(conversation(name))
    entries = ["request", "response"]
    assert kinds(first) == ["session_start", "turn_start", *entries, "tool_call", "turn_end"]
    assert kinds(second) == ["tool_result", "turn_start", *entries, "tool_call", "tool_call", "turn_end"]
    assert kinds(third) == ["tool_result", "tool_result", "turn_start", *entries, "turn_end"]
    results = [line for found in (first, second, third) for line in of(found, "tool_result")]
    assert [label(line, "tool_name") for line in results] == ["Read", "Read", "Grep"]
    assert [json.loads(line.text)["is_error"] for line in results] == [errors, False, False]
    made = [line for found in (first, second, third) for line in of(found, "tool_call")]
    assert [(label(line, "tool_name"), json.loads(line.text)["tool_index"]) for line in made] == [
        ("Read", 0),
        ("Read", 0),
        ("Grep", 1),
    ]
    if name not in ("gemini", "ollama"):
        ids = [json.loads(line.text)["tool_use_id"] for line in (*results, *made)]
        assert ids == ["id_1", "id_2", "id_3", "id_1", "id_2", "id_3"]
    starts = [json.loads(only(found, "turn_start").text) for found in (first, second, third)]
    assert [start["turn_depth"] for start in starts] == [1, 2, 3]
    assert [start["error_recovered"] for start in starts] == [False, False, errors]
    facts = ("turn_depth", "tool_streak", "retry_count", "session_tool_count", "output_tokens")
    assert [tuple(end(found)[fact] for fact in facts) for found in (first, second, third)] == [
        (1, 1, 0, 1, 5),
        (2, 2, int(errors), 3, 5),
        (3, 0, 0, 3, 5),
    ]
    retries = [label(only(found, "turn_end"), "is_retry") for found in (first, second, third)]
    assert retries == ["false", "true" if errors else "false", "false"]
    assert track.pending == ()


@pytest.mark.parametrize("name", [name for name in APIS if name != "chained"])
def test_names_survive_what_is_remembered(name):
    """The history of a request holds the calls: after a restart results have names all the same."""
    *_, last = conversation(name)
    (found,), _ = told([last])
    assert [label(line, "tool_name") for line in of(found, "tool_result")] == ["Read", "Grep"]


def test_a_result_of_nobodys_call_is_unknown():
    """A request that repeats nothing, and nothing is remembered."""
    *_, last = conversation("chained")
    (found,), _ = told([last])
    assert [label(line, "tool_name") for line in of(found, "tool_result")] == ["unknown", "unknown"]


def test_a_websocket_is_one_turn_with_all_that_was_done_in_it():
    """Its results have the names of calls in the same call; streaks and retries count its rounds."""
    for turns in (agents.responses(chained=True), agents.responses()):
        (found,), track = told([agents.over_websocket(list(turns))])
        assert kinds(found) == [
            *("session_start", "tool_result", "tool_result", "tool_result", "turn_start", "request", "response"),
            *("tool_call", "tool_call", "tool_call", "turn_end"),
        ]
        assert [label(line, "tool_name") for line in of(found, "tool_result")] == ["Read", "Read", "Grep"]
        assert label(only(found, "turn_end"), "is_retry") == "true"
        assert label(only(found, "request"), "stream") == "true"
        assert (end(found)["turn_depth"], end(found)["session_tool_count"], end(found)["output_tokens"]) == (1, 3, 15)
        assert (track.turns, track.pending, len(track.seen)) == (1, (), 3)


def test_parallel_results_between_calls_are_told():
    """Some clients put each result behind its own call: all are behind an answer that is known to wait."""
    output = [
        {"type": "function_call", "call_id": id, "name": name, "arguments": "{}"}
        for id, name in (("a", "One"), ("b", "Two"))
    ]
    first = agents.call(("/v1/responses", {"model": "m", "input": "go"}, {"id": "r1", "output": output}), 1)
    back = [{"type": "function_call_output", "call_id": id, "output": "x"} for id in "ab"]
    mixed = [{"role": "user", "content": "go"}, output[0], back[0], output[1], back[1]]
    second = agents.call(("/v1/responses", {"model": "m", "input": mixed}, {"id": "r2", "output": []}), 2)
    (_, found), track = told([first, second])
    assert [label(line, "tool_name") for line in of(found, "tool_result")] == ["One", "Two"]
    assert track.pending == ()


def test_tools_that_the_provider_runs_are_not_the_clients():
    """Called and answered within an answer, whichever the API; no client waits for them."""
    content = [
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
        {"type": "server_tool_use", "id": "srvtoolu_2", "name": "web_fetch", "input": {}},
        {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {}},
    ]
    claude = ("/v1/messages", {"messages": []}, {"type": "message", "content": content})
    output = [{"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}]
    output.append({"type": "function_call", "call_id": "call_1", "name": "Read", "arguments": "{}"})
    gpt = ("/v1/responses", {"input": "x"}, {"id": "r", "output": output})
    parts = [{"executableCode": {"code": "1"}}, {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}}]
    parts.append({"functionCall": {"name": "Read", "args": {}}})
    google = (
        "/v1beta/models/g:generateContent",
        {"contents": []},
        {"candidates": [{"content": {"role": "model", "parts": parts}}]},
    )
    for turn in (claude, gpt, google):
        (found,), _ = told([agents.call(turn)])
        assert [label(line, "tool_name") for line in of(found, "tool_call")] == ["Read"]
        assert json.loads(only(found, "tool_call").text)["tool_index"] == 0


@pytest.mark.parametrize(
    "name", names("anthropic-tool", "chat-tool", "responses-tool", "gemini-tool", "bedrock", "converse")
)
def test_streams_tell_what_plain_answers_tell(name):
    """The tools called in recorded streams of every API, with their stop reasons and tokens."""
    one = golden(name)
    recorded = session_jsonl.response_entry(one._exchange((one.answer,), Ending.COMPLETE), "s", 1, "ann@desk")
    about = {field: value for field, value in recorded.items() if field not in ("_meta", "type", "seq")}
    call = agents.call((one.path, {}, {}), **about)
    call.request["body"] = one.request.decode()
    if "chunks" in about:
        del call.response["body"]
    (found,), _ = told([call])
    made = [part for part in one.last.message.parts if part.kind == "tool_call"] if one.last.message else []
    assert [label(line, "tool_name") for line in of(found, "tool_call")] == [part.name for part in made]
    assert bool(made) == (name not in ("bedrock-error-stream", "bedrock-plain"))
    assert label(only(found, "turn_end"), "stop_reason") == (one.last.stop_reason or None)
    assert end(found)["output_tokens"] == (one.last.usage.output if one.last.usage else 0)
    assert label(only(found, "request"), "stream") == ("true" if one.asked.stream else "false")


# --- requests that come again


@pytest.mark.parametrize("name", APIS)
def test_a_request_that_is_sent_again_brings_no_result_twice(name):
    """After a failure the same comes again: results once, and what failed is still not recovered from."""
    first, second, third = conversation(name)
    path, request = second.row.path, json.loads(second.request["body"])
    overloaded = agents.call((path, request, {"error": {"type": "overloaded_error"}}), 2, status=529)
    (_, failed, again, last), track = told([first, overloaded, second, third])
    assert kinds(failed) == ["tool_result", "turn_start", "request", "response", "turn_end"]
    assert kinds(again) == ["turn_start", "request", "response", "tool_call", "tool_call", "turn_end"]
    errors = name not in NO_ERRORS
    recovered = [json.loads(only(found, "turn_start").text)["error_recovered"] for found in (failed, again, last)]
    assert recovered == [False, False, errors]
    assert label(only(failed, "turn_end"), "is_retry") == "false"
    assert label(only(again, "turn_end"), "is_retry") == ("true" if errors else "false")
    assert end(failed)["tool_streak"] == 1 and end(again)["tool_streak"] == 2
    assert track.turns == 4


def test_old_results_are_not_told_again():
    """Ten turns, ten results: what stands in the history was told with its own turn."""
    said, found = [{"role": "user", "content": "go"}], []
    track = Track()
    for number in range(1, 12):
        content = [{"type": "tool_use", "id": f"toolu_{number}", "name": "Read", "input": {}}]
        call = agents.call(("/v1/messages", {"messages": list(said)}, {"type": "message", "content": content}), number)
        some, track = lines(call, track, COMMON)
        found += of(some, "tool_result")
        said += [
            {"role": "assistant", "content": content},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": "x"}]},
        ]
    assert [json.loads(line.text)["tool_use_id"] for line in found] == [f"toolu_{n}" for n in range(1, 11)]
    assert track.streak == 11


def test_one_error_long_ago_is_over():
    """An error counts in the turn behind it and in no later one."""
    calls = conversation("anthropic")
    request, answer = json.loads(calls[2].request["body"]), json.loads(calls[2].response["body"])
    request["messages"] += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": "more"}]
    use = {"content": [{"type": "tool_use", "id": "t9", "name": "Read", "input": {}}], "type": "message"}
    (*_, found), _ = told([*calls, agents.call(("/v1/messages", request, use), 4)])
    assert json.loads(only(found, "turn_start").text)["error_recovered"] is False
    assert label(only(found, "turn_end"), "is_retry") == "false"


def test_a_tool_that_works_again_ends_its_retries():
    """Counted while the same tool is called after an error, from nothing once it is not."""
    calls = conversation("anthropic")
    request = json.loads(calls[2].request["body"])
    use = [{"type": "tool_use", "id": "t9", "name": "Read", "input": {}}]
    calls[2] = agents.call(("/v1/messages", request, {"type": "message", "content": use}), 3)
    found, _ = told(calls)
    assert [(end(one)["tool_streak"], end(one)["retry_count"]) for one in found] == [(1, 0), (2, 1), (3, 0)]


def test_a_call_without_a_result_does_not_shift_the_names():
    """Where results have neither ids nor names, they belong to the last answer."""
    said = [
        {"role": "assistant", "tool_calls": [{"function": {"name": "Stopped", "arguments": {}}}]},
        {"role": "user", "content": "do something else"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "Read", "arguments": {}}}]},
        {"role": "tool", "content": "text"},
    ]
    (found,), _ = told([agents.call(("/api/chat", {"messages": said}, {"message": {"content": "x"}, "done": True}))])
    assert label(only(found, "tool_result"), "tool_name") == "Read"


# --- shapes


def test_labels_and_lines_are_those_of_dashboards_that_exist():
    """Every line of a call, to the letter."""
    call = next(iter(conversation("anthropic")))
    (found,), _ = told([call])
    always = {"app": "llm-proxy", "provider": "anthropic", "environment": "prod", "machine": "ann@desk"}
    told_labels = {label(line, "log_type"): dict(line.labels) for line in found}
    assert told_labels == {
        "session_start": always | {"log_type": "session_start", "transport": "direct"},
        "turn_start": always | {"log_type": "turn_start"},
        "request": always
        | {
            "log_type": "request",
            "transport": "direct",
            "model": "claude-sonnet-4-5",
            "stream": "false",
            "has_tools": "true",
        },
        "response": always
        | {"log_type": "response", "transport": "direct", "status_bucket": "2xx", "stop_reason": "tool_use"},
        "tool_call": always | {"log_type": "tool_call", "tool_name": "Read"},
        "turn_end": always | {"log_type": "turn_end", "stop_reason": "tool_use", "is_retry": "false"},
    }
    texts = {label(line, "log_type"): json.loads(line.text) for line in found}
    assert texts["session_start"] == call.start
    body = call.request["body"]
    assert texts["request"] == call.request | {"request_sha": sha256(body.encode()).hexdigest()}
    assert texts["response"] == call.response
    assert texts["turn_start"] == {"type": "turn_start", "session_id": "s", "turn_depth": 1, "error_recovered": False}
    assert texts["tool_call"] == {"type": "tool_call", "session_id": "s", "tool_index": 0, "tool_use_id": "id_1"}
    assert texts["turn_end"] == {
        "type": "turn_end",
        "session_id": "s",
        "turn_depth": 1,
        "tool_streak": 1,
        "retry_count": 0,
        "session_tool_count": 1,
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 2,
    }
    metadata = {label(line, "log_type"): dict(line.metadata) for line in found}
    session = {"session": "s", "client_session": "c-1", "level": "info"}
    ids = session | {"exchange": "call-1", "provider_request_id": "req_1"}
    assert metadata["session_start"] == session
    assert metadata["request"] == metadata["turn_start"] == metadata["tool_call"] == ids
    assert metadata["response"] == metadata["turn_end"] == ids | {"model": "claude-sonnet-4-5"}
    assert all(
        list(line.text) == list(line.text.strip()) and line.labels == tuple(sorted(line.labels)) for line in found
    )


def test_the_page_tells_all_labels_and_metadata():
    """docs/loki.md names exactly those that lines have, on the lines that have them."""
    page = (Path(__file__).parent.parent / "docs/loki.md").read_text()
    calls = [*conversation("anthropic"), agents.call(next(agents.bedrock()), 4, status=429)]
    calls[-1].request["transport"] = calls[-1].response["transport"] = "bedrock"
    calls[-1].response["headers"]["Anthropic-Ratelimit-Unified-Status"] = ["rejected"]
    calls[0].fork = {"type": "fork"}
    found = [line for one in told(calls)[0] for line in one]
    for heading, pairs in (("### Labels", "labels"), ("### Structured metadata", "metadata")):
        section = page.partition(heading)[2].partition("\n#")[0].partition("| `error_type` | |")[0]
        rows = re.findall(r"^\| (`.*?`) \| (.*?) \|", section, re.MULTILINE)
        assert {name for names, _ in rows for name in re.findall(r"`(.+?)`", names)} == {
            name for line in found for name, _ in getattr(line, pairs)
        }
        for named, where in rows:
            if where.startswith("`") and not where.startswith("`exchange`"):
                for name in re.findall(r"`(.+?)`", named):
                    on = {label(line, "log_type") for line in found if name in dict(getattr(line, pairs))}
                    assert on == set(re.findall(r"`(.+?)`", where)), name
    assert max(len(line.labels) for line in found) == 10


def test_a_result_names_its_tool_in_a_label():
    """And tells in its metadata that it failed."""
    (_, found, _), _ = told(conversation("anthropic"))
    line = only(found, "tool_result")
    assert json.loads(line.text) == {"type": "tool_result", "session_id": "s", "tool_use_id": "id_1", "is_error": True}
    assert label(line, "tool_name") == "Read" and label(line, "transport") is None
    assert dict(line.metadata)["level"] == "warn"


def test_bedrocks_door_is_told_as_before():
    """`transport` as a label and in `_meta`, with the model of the path on both halves."""
    call = next(iter(conversation("bedrock")))
    call.request["transport"] = call.response["transport"] = "bedrock"
    (found,), _ = told([call])
    for kind in ("request", "response"):
        line = only(found, kind)
        assert (label(line, "transport"), label(line, "model")) == ("bedrock", "anthropic.claude-sonnet-4-5-v1:0")
        meta = json.loads(line.text)["_meta"]
        assert (meta["transport"], meta["model_override"]) == ("bedrock", "anthropic.claude-sonnet-4-5-v1:0")
        assert "model" not in dict(line.metadata)
    assert label(only(found, "session_start"), "transport") == "bedrock"
    assert label(only(found, "turn_end"), "transport") is None
    assert "model_override" not in call.request["_meta"]


def test_a_fork_is_told_behind_the_start():
    """Both once, with the session's first call."""
    calls = conversation("chat")
    for call in calls:
        call.fork = {"_meta": call.start["_meta"], "type": "fork", "from_seq": 3, "parent_session": "p"}
    (first, second, _), _ = told(calls)
    assert kinds(first)[:3] == ["session_start", "fork", "turn_start"] and "fork" not in kinds(second)
    assert json.loads(first[1].text) == calls[0].fork


def test_the_beginning_of_a_session_is_read_with_its_calls(tmp_path):
    """From the file: the start of any session, and of a fork the entry behind it."""
    call = agents.call(next(agents.chat()))
    fork = {"_meta": call.start["_meta"], "type": "fork", "from_seq": 3, "parent_session": "p"}
    id = UUID(int=7)
    for entry in (call.request, call.response):
        entry["_meta"]["request_id"] = str(id)
    for name, begun in (("forked", [call.start | {"parent_seq": 3}, fork]), ("plain", [call.start]), ("odd", [])):
        places, at = [], 0
        with (tmp_path / name).open("wb") as file:
            for entry in (*begun, call.request, call.response):
                data = session_jsonl.line(entry)
                places.append(Posted(id.bytes, entry["type"], str(tmp_path), name, at, len(data)))
                at += file.write(data)
        read = Reader().call(Waiting(1, places[-1], places[-2]))
        assert (read.start, read.fork) == (begun[0] if begun else None, fork if name == "forked" else None)
        wanted = ["session_start", "fork"][: len(begun)]
        assert kinds(told([read])[0][0]) == [*wanted, "turn_start", "request", "response", "tool_call", "turn_end"]


def test_loki_takes_every_line():
    """All conversations, oversize bodies among them, pushed twice: each line is kept once and nothing is refused."""
    now = time.time_ns()
    store = Store()
    long = agents.call(next(agents.anthropic()), 9, session="long")
    long.request["body"] = "é" * 200_000
    found = [line for name in APIS for one in told(conversation(name))[0] for line in one]
    found += told([long])[0][0]
    shift = now - max(line.ts_ns for line in found)
    for _ in range(2):
        for line in found:
            value = [str(line.ts_ns + shift), line.text, dict(line.metadata)]
            assert store.push(
                "fake", json.dumps({"streams": [{"stream": dict(line.labels), "values": [value]}]}).encode()
            ) == (1, [])
    different = {(line.labels, line.ts_ns, line.text) for line in found}
    assert (store.accepted, store.duplicates) == (len(different), 2 * len(found) - len(different))


def test_what_is_no_conversation_has_entries_only():
    """Counting tokens and listing models are no turns."""
    counted = agents.call(("/v1/messages/count_tokens", {"messages": []}, {"input_tokens": 3}), 2)
    listed = agents.call(("/v1/models", {}, {}), 3)
    listed.row = dataclasses.replace(listed.row, method="GET")
    found, track = told([counted, listed])
    assert [kinds(one) for one in found] == [["request", "response"]] * 2
    assert track == Track()
    assert label(found[1][0], "model") is None and label(found[1][0], "stream") is None


@pytest.mark.parametrize(
    ("about", "wanted"),
    [
        ({"status": 200}, None),
        ({"status": 429}, "rate_limit"),
        ({"status": 500}, "server_error"),
        ({"status": 529}, "server_error"),
        ({"status": 400, "body": "no"}, "invalid_request"),
        ({"status": 400, "body": '{"error":{"message":"prompt is Too Long"}}'}, "context_length"),
        ({"status": 400, "body": "maximum CONTEXT"}, "context_length"),
        ({"status": 413}, "invalid_request"),
        ({"status": 401}, "invalid_request"),
        ({"status": None, "headers": None, "ending": "upstream_failed", "body": ""}, "upstream_failed"),
        ({"status": None, "headers": None, "ending": "timed_out", "body": ""}, "timed_out"),
        ({"status": None, "headers": None, "ending": "client_gone", "body": ""}, "client_gone"),
        ({"status": None, "headers": None, "ending": "interrupted", "body": ""}, "interrupted"),
        ({"status": None, "headers": None, "ending": "refused", "body": ""}, "refused"),
        ({"status": 200, "ending": "upstream_failed"}, "upstream_failed"),
        ({"status": 200, "digest": {"error_type": "overloaded_error"}}, "server_error"),
        ({"status": 200, "digest": {"error_type": "rate_limit_error"}}, "rate_limit"),
        ({"status": 200, "digest": {"error_type": "invalid_request_error"}}, "invalid_request"),
        ({"status": 200, "digest": {"error_type": "context_length_exceeded"}}, "context_length"),
    ],
)
def test_every_turn_ends_and_says_why_it_failed(about, wanted):
    """Also those that no answer came to."""
    (found,), _ = told([agents.call(next(agents.anthropic()), **about)])
    line = only(found, "turn_end")
    assert label(line, "error_type") == wanted
    assert (dict(line.metadata)["level"] == "info") == (wanted is None)
    status = about["status"]
    bucket = f"{status // 100}xx" if status else None
    assert label(only(found, "response"), "status_bucket") == bucket


def test_the_rate_limits_state_is_a_label():
    """In lower case; 1xx and 3xx have no bucket."""
    headers = {"anthropic-ratelimit-unified-status": ["Allowed_Warning"], "X-Request-Id": ["r"]}
    (found,), _ = told([agents.call(next(agents.anthropic()), headers=headers, status=304)])
    line = only(found, "response")
    assert (label(line, "ratelimit_status"), label(line, "status_bucket")) == ("allowed_warning", None)
    assert dict(line.metadata)["provider_request_id"] == "r"


def test_a_record_without_bodies_tells_what_its_digest_tells():
    """Where bodies are left out: no hash of nothing, no guess about tools, tokens all the same."""
    call = agents.call(next(agents.anthropic()))
    for entry in (call.request, call.response):
        del entry["body"]
        entry["left_out"] = "metadata_only"
    call.response["digest"] = {"model": "m", "stop_reason": "end_turn", "usage": {"input": 7, "cache_write_1h": 2}}
    (found,), _ = told([call])
    assert "request_sha" not in json.loads(only(found, "request").text)
    assert label(only(found, "request"), "has_tools") is None
    assert label(only(found, "turn_end"), "stop_reason") == "end_turn"
    assert (end(found)["input_tokens"], end(found)["cache_creation_input_tokens"]) == (7, 2)


def test_the_logs_own_hash_of_a_body_wins():
    """It is of the whole body where the record holds a part of it."""
    call = agents.call(next(agents.anthropic()))
    call.request |= {"truncated": "limit", "sha256": "ab" * 32}
    (found,), _ = told([call])
    assert json.loads(only(found, "request").text)["request_sha"] == "ab" * 32


def test_who_recorded_is_who_it_says_unless_it_is_set():
    """`machine` of the configuration, of the record, or nobody's."""
    call = agents.call(next(agents.anthropic()))
    for machine, wanted in (("box", "box"), ("", "ann@desk")):
        (found,), _ = told([call], common=Common("", machine, 262_000))
        assert {label(line, "machine") for line in found} == {wanted}
        assert {label(line, "environment") for line in found} == {None}
    del call.response["_meta"]["machine"]
    (found,), _ = told([call], common=Common("", "", 262_000))
    assert {label(line, "machine") for line in found} == {"unknown"}


# --- times


def test_times_are_the_entries_own_and_keep_the_order():
    """Strictly growing by nanoseconds; the response at its own moment to the nanosecond."""
    call = conversation("anthropic")[2]
    call.request["_meta"]["ts"] = "2026-11-21T04:00:03.123456789Z"
    call.response["_meta"]["ts"] = "2026-11-21T04:00:03.987654321Z"
    (found,), _ = told([call])
    times = [line.ts_ns for line in found]
    began, ended = moment_of(call.request), moment_of(call.response)
    assert began % 10**9 == 123_456_789
    assert times == [began, began + 1, began + 2, began + 3, ended, ended + 1]


def test_times_grow_where_everything_happened_at_once():
    """A clock that stands, or runs backwards."""
    for ts in ("2026-11-21T04:00:01Z", "2026-11-21T03:00:00Z"):
        call = agents.call(next(agents.anthropic()))
        call.response["_meta"]["ts"] = ts
        (found,), _ = told([call])
        times = [line.ts_ns for line in found]
        assert times == sorted(set(times)) and times[0] == moment_of(call.request)


def test_a_long_call_stays_within_what_loki_takes():
    """What came more than 45 minutes before its end is told as if then; its entry has the true time."""
    call = agents.call(next(agents.anthropic()))
    call.request["_meta"]["ts"] = "2026-11-21T01:00:00Z"
    (found,), _ = told([call])
    times = [line.ts_ns for line in found]
    ended = moment_of(call.response)
    assert ended - times[0] == SPAN and times == sorted(set(times)) and only(found, "response").ts_ns == ended
    assert json.loads(only(found, "request").text)["_meta"]["ts"] == "2026-11-21T01:00:00Z"


def test_without_the_requests_entry_the_rest_is_told():
    """Its log may have gone."""
    call = agents.call(next(agents.anthropic()))
    (found,), _ = told([Call(call.row, None, call.response)])
    assert kinds(found) == ["turn_start", "response", "turn_end"]
    assert kinds(told([Call(call.row, call.request, None)])[0][0]) == ["request"]


# --- sizes


def test_a_body_that_is_too_long_is_summed_up_with_a_pointer():
    """Valid JSON of the same type; what it was can be found and checked."""
    path, request, answer = next(agents.anthropic())
    request["messages"][0]["content"] = "é" * 200_000
    answer["content"] = [{"type": "text", "text": "ü" * 200_000}]
    call = agents.call((path, request, answer))
    places = {"request": Place("api/2026-11-21/s.jsonl", 100, 9), "response": Place("api/2026-11-21/s.jsonl", 200, 9)}
    call.row = dataclasses.replace(call.row, **places)
    (found,), _ = told([call])
    for kind, body in (("request", call.request_body), ("response", call.response_body)):
        line = only(found, kind)
        assert len(line.text.encode()) < 2000
        short = json.loads(line.text)
        assert (short["type"], short["truncated"], short["seq"]) == (kind, "loki", 1) and "body" not in short
        assert short["summary"] == {
            "bytes": len(body),
            "sha256": sha256(body).hexdigest(),
            "model": "claude-sonnet-4-5",
            "log": {**places[kind]._asdict(), "upstream": "api.example.com"},
        }
    assert json.loads(only(found, "request").text)["method"] == "POST"
    assert kinds(found)[-1] == "turn_end" and end(found)["output_tokens"] == 5


def test_a_line_of_the_longest_length_is_whole():
    """To the byte, in UTF-8."""
    call = agents.call(next(agents.anthropic()))
    call.request["body"] = "é" * 5000
    (found,), _ = told([call])
    text = only(found, "request").text
    exact = len(text.encode())
    assert exact > len(text)
    (same,), _ = told([call], common=Common("prod", "ann@desk", exact))
    assert only(same, "request").text == text
    (less,), _ = told([call], common=Common("prod", "ann@desk", exact - 1))
    assert json.loads(only(less, "request").text)["truncated"] == "loki"


def test_what_is_long_beside_the_body_is_left_out_too():
    """Headers, a query or a host of any length: little more than the type remains."""
    call = agents.call(next(agents.anthropic()), truncated="limit")
    call.request["headers"] = {"X-A": ["a" * 300_000]}
    call.request["_meta"]["host"] = "h" * 300_000
    call.response["headers"] = {f"X-{n}": ["b" * 1000] for n in range(300)}
    (found,), _ = told([call])
    request, response = json.loads(only(found, "request").text), json.loads(only(found, "response").text)
    assert "headers" not in request and len(request["_meta"]["host"]) == LONGEST
    assert request["_meta"]["ts"] == call.request["_meta"]["ts"]
    assert response["summary"]["truncated"] == "limit" and response["status"] == 200


def test_ids_and_names_are_short_and_clean():
    """Whatever a model calls its tools, labels and terminals take it."""
    use = {"type": "tool_use", "id": "i" * 100_000, "name": "rm\x1b[2J\n" + "n" * 5000, "input": {}}
    call = agents.call(("/v1/messages", {"messages": []}, {"type": "message", "content": [use]}))
    (found,), track = told([call])
    line = only(found, "tool_call")
    assert len(line.text) < 1000
    name = label(line, "tool_name")
    assert name.startswith("rm�[2J�nn") and len(name) == LONGEST
    assert len(track.to_json()) < 1000


# --- what is remembered


def test_a_track_goes_through_json():
    """As it is kept between runs; what is none of ours begins anew."""
    _, track = told(conversation("anthropic")[:2])
    assert track.pending and track.seen and track.tools
    assert Track.from_json(track.to_json()) == track
    for text in ("", "{", "[]", '{"turns":"x"}', '{"pending":[[1]]}', "\ud800", "[" * 100_000):
        assert Track.from_json(text) == Track()


def test_a_restart_between_calls_changes_nothing():
    """The same lines with a track that was written and read between all calls."""
    for name in APIS:
        straight, _ = told(conversation(name))
        track, restarted = Track(), []
        for call in conversation(name):
            found, track = lines(call, Track.from_json(track.to_json()), COMMON)
            restarted.append(found)
        assert restarted == straight


def test_a_track_is_bounded():
    """Thousands of calls without results, thousands of results without calls."""
    use = [{"type": "tool_use", "id": f"t{n}", "name": "T" * 300, "input": {}} for n in range(3000)]
    back = [{"type": "tool_result", "tool_use_id": f"r{n}", "content": "x"} for n in range(3000)]
    request = {"messages": [{"role": "user", "content": back}]}
    (found,), track = told([agents.call(("/v1/messages", request, {"type": "message", "content": use}))])
    assert len(of(found, "tool_result")) == len(of(found, "tool_call")) == 3000
    assert (len(track.pending), len(track.seen)) == (REMEMBERED, REMEMBERED)
    assert track.pending[-1][1] == "T" * LONGEST


# --- hostile input

BODIES = st.sampled_from([(name, turn) for name, each in APIS.items() for turn in list(each())[1:]])


@st.composite
def hostile(draw):
    """A call of some API with both bodies spoiled, or of a WebSocket."""
    _, (path, request, answer) = draw(BODIES)
    asked, told = (
        draw(spoiled(request)).decode("utf-8", "surrogatepass"),
        draw(spoiled(answer)).decode("utf-8", "surrogatepass"),
    )
    if path == "/v1/responses" and draw(st.booleans()):
        call = agents.over_websocket([(path, request, answer)])
        messages = call.response["websocket"]["messages"]
        messages[0]["raw"], messages[1]["raw"] = asked, f'{{"type":"response.completed","response":{told}}}'
        return call
    call = agents.call((path, request, answer), draw(st.integers(1, 2)))
    call.request["body"], call.response["body"] = asked, told
    call.response["status"] = draw(st.sampled_from([200, 400, 500, None]))
    return call


@settings(max_examples=300, deadline=None)
@given(st.lists(hostile(), min_size=1, max_size=3), st.sampled_from([600, 2000, 262_000]))
def test_hostile_bodies_neither_break_it_nor_grow(calls, most):
    """Valid JSON of a known type within the limit, labels within Loki's, times that grow, the same bytes each time."""
    common = Common("prod", "ann@desk", most)
    track = again = Track()
    for call in calls:
        found, track = lines(call, track, common)
        repeated, again = lines(Call(call.row, call.request, call.response, call.start), again, common)
        assert (found, track) == (repeated, again)
        times = [line.ts_ns for line in found]
        assert times == sorted(set(times))
        for line in found:
            entry = json.loads(line.text)
            assert entry["type"] == label(line, "log_type")
            assert len(line.text.encode()) <= most
            assert len(line.labels) <= 15
            assert all(
                value.isprintable() and len(value.encode()) <= 2048 for _, value in (*line.labels, *line.metadata)
            )
    assert Track.from_json(track.to_json()) == track


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["ts", "type", "_meta", "body", "chunks", "raw", "headers", "digest", "websocket", "messages", "status", "ending", "usage"]), x, max_size=5), max_leaves=12).filter(lambda x: isinstance(x, dict)))  # fmt: skip
def test_entries_of_any_kind_are_told(entry):
    """A log that somebody else has written, or edited."""
    request = entry | {"type": "request", "path": "/v1/messages", "method": "POST"}
    found, _ = lines(Call(row(), request, entry | {"type": "response"}, entry, entry), Track(), COMMON)
    assert {"request", "response", "turn_start", "turn_end"} <= set(kinds(found))
    assert all(isinstance(json.loads(line.text), dict) for line in found)


def test_many_tools_cost_little():
    """A history of 20,000 calls and results is read once, not once for each."""
    from time import process_time

    said = []
    for n in range(20_000):
        said.append({"role": "assistant", "content": [{"type": "tool_use", "id": f"t{n}", "name": "T", "input": {}}]})
        said.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": f"t{n}", "content": "x"}]})
    call = agents.call(("/v1/messages", {"messages": said}, {"type": "message", "content": []}))
    messages = call.digest.asked.messages
    began = process_time()
    assert sum(one.new for one in results(messages)) == 1 and called("anthropic.messages", messages)
    assert process_time() - began < 2  # it takes a tenth of a second; a square of it would be minutes
