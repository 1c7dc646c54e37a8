"""`compare`: the record beside Claude Code's and Codex's own session files, written by us and by the programs themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from llm_proxy.dialects.digest import Usage
from llm_proxy.service.compare import claude_code, codex
from tests.fakeprovider import FakeProvider
from tests.journals import WALL, Call
from tests.test_clients import base_url, claude_environment, client, codex_arguments, run, service
from tests.test_keeper import fill
from tests.test_prices_command import Home, configure

__all__ = ["client", "service"]

Entry = dict[str, Any]


@pytest.fixture
def place(environ: dict[str, str]) -> Home:
    return Home(Path(environ["HOME"]))


def write(path: Path, *lines: Entry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def at(seconds: int) -> str:
    return datetime.fromtimestamp(WALL / 1e9 + seconds, UTC).isoformat().replace("+00:00", "Z")


# --- Claude Code


def noted(id: str, output: int, *, request: str = "req", session: str = "s", when: int = 1, **usage: Any) -> Entry:
    """A line of an assistant's message, as Claude Code writes one for each of its blocks."""
    counts = {"input_tokens": 100, "cache_read_input_tokens": 10, "output_tokens": output} | usage
    message = {"id": id, "role": "assistant", "model": "claude-haiku-4-5", "content": [], "usage": counts}
    return {"type": "assistant", "sessionId": session, "requestId": request, "timestamp": at(when), "message": message}


def answered(number: int, id: str, output: int, *, session: str = "s", more: str = "", wall: int = WALL) -> Call:
    usage = {"input_tokens": 100, "cache_read_input_tokens": 10, "output_tokens": output}
    body = {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "usage": usage,
        "content": [],
    }
    asked = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": f"q{number}"}]}
    return Call(
        number,
        session=session,
        request=json.dumps(asked).encode(),
        answer=(more or json.dumps(body)).encode(),
        headers=("Content-Type: application/json", f"request-id: req_{number}"),
        wall=wall,
    )


def test_claude_codes_lines(tmp_path: Path) -> None:
    """A line per block repeats the usage, early ones hold a placeholder, copies stand in other files: it is one answer."""
    write(
        tmp_path / "projects/p/one.jsonl",
        {"type": "user", "message": {"role": "user", "content": "hi"}},
        noted("msg_1", 1),
        noted("msg_1", 1),
        noted("msg_1", 50),
        noted("msg_2", 7, cache_creation_input_tokens=9, cache_creation={"ephemeral_1h_input_tokens": 9}),
        {"type": "assistant", "message": {"model": "<synthetic>", "usage": {"input_tokens": 0, "output_tokens": 0}}},
        {"type": "assistant", "message": {"content": "no usage"}},
        {"type": "assistant", "message": "odd", "timestamp": 7},
    )
    write(tmp_path / "projects/p/one/subagents/agent-1.jsonl", noted("msg_1", 50, session="copy"), noted("msg_3", 2))
    (tmp_path / "projects/p/broken.jsonl").write_bytes(b'\xff\n{"torn')
    (tmp_path / "projects/p/link.jsonl").symlink_to("/etc/passwd")
    found = claude_code(tmp_path)
    assert (found.files, found.unreadable) == (4, 1)
    told = {one.id: one for one in found.answers.values()}
    assert list(told) == ["msg_1", "msg_2", "msg_3"]
    first = told["msg_1"]
    assert (first.usage.output, first.lines, first.added_up.output, first.session) == (50, 4, 102, "s")
    assert told["msg_2"].usage.cache_write_1h == 9


def test_what_claude_code_missed_and_counted_twice(command: Any, place: Home) -> None:
    """Joined by ids: the same, other tokens, never noted, never recorded; and what adding up its lines comes to."""
    fill(
        place.journal,
        [
            answered(1, "msg_1", 50),
            answered(2, "msg_2", 60),
            answered(3, "msg_title", 5),
            answered(4, "msg_elsewhere", 5, session="somebody else's"),
            answered(5, "", 0, more='{"type":"error","error":{"type":"overloaded_error","message":"no"}}'),
        ],
    )
    place.settle()
    write(
        place.folder / ".claude/projects/p/s.jsonl",
        noted("msg_1", 1),
        noted("msg_1", 50),
        noted("msg_1", 50),
        noted("msg_2", 1),
        noted("msg_direct", 3),
        noted("msg_of_old", 3, when=-86_400),
    )
    done = command("compare", "--json")
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)
    assert (told["client"], told["files"], told["both"], told["equal"], told["lines"]) == ("Claude Code", 1, 2, 1, 5)
    (unequal,) = told["unequal"]
    assert (unequal["id"], unequal["usage"]["output"], unequal["recorded_usage"]["output"]) == ("msg_2", 1, 60)
    assert [one["id"] for one in told["missed_by_client"]] == ["msg_title"]
    assert [one["id"] for one in told["not_recorded"]] == ["msg_direct"]
    assert told["usage"]["recorded"] == {"input": 200, "cache_read": 20, "output": 110}
    assert told["usage"]["noted"] == {"input": 200, "cache_read": 20, "output": 51}
    assert told["usage"]["all_lines_added_up"] == {"input": 400, "cache_read": 40, "output": 102}
    text = command("compare").stdout
    assert "2  answers are in both, 1 of them with the same tokens" in text
    assert "msg_2: it noted 100 in 10 cached 1 out; recorded are 100 in 10 cached 60 out" in text
    assert "counts 542 tokens where 330 were used" in text


def test_an_answer_that_was_cut_is_found_by_its_request(command: Any, place: Home) -> None:
    """Where the record has no message id, the id of the request in the response's head joins them."""
    nameless = answered(1, "msg_1", 50).response[0].partition(b"{")[2]
    body = json.loads(b"{" + nameless)
    del body["id"]
    fill(place.journal, [answered(1, "", 0, more=json.dumps(body))])
    place.settle()
    write(place.folder / ".claude/projects/p/s.jsonl", noted("msg_1", 50, request="req_1"))
    (told,) = json.loads(command("compare", "--json").stdout)
    assert (told["both"], told["equal"], told["missed_by_client"], told["not_recorded"]) == (1, 1, [], [])


def test_a_span_of_time(command: Any, place: Home) -> None:
    """`--from` and `--to` bound both sides."""
    day = 86_400 * 10**9
    fill(place.journal, [answered(1, "msg_1", 5, wall=WALL - 3 * day), answered(2, "msg_2", 5)])
    place.settle()
    write(place.folder / ".claude/projects/p/s.jsonl", noted("msg_1", 5, when=1 - 3 * 86_400), noted("msg_x", 5))
    (told,) = json.loads(command("compare", "--json", "--to", "2d").stdout)
    assert (told["both"], told["missed_by_client"], told["not_recorded"]) == (1, [], [])
    (told,) = json.loads(command("compare", "--json", "--from", "2d").stdout)
    assert (told["both"], len(told["missed_by_client"]), len(told["not_recorded"])) == (0, 1, 1)


def test_an_answer_noted_just_after_the_span_began(command: Any, place: Home) -> None:
    """It was asked for before, but it is recorded."""
    fill(place.journal, [answered(1, "msg_1", 5, wall=WALL - 100 * 10**9), answered(2, "msg_2", 5)])
    place.settle()
    write(place.folder / ".claude/projects/p/s.jsonl", noted("msg_1", 5, when=-50), noted("msg_2", 5))
    (told,) = json.loads(command("compare", "--json", "--from", at(-75)).stdout)
    assert (told["both"], told["missed_by_client"], told["not_recorded"]) == (2, [], [])


def test_nothing_to_compare(command: Any) -> None:
    """No files, no record: it says so; wrong usage is status 2."""
    done = command("compare")
    assert done.returncode == 0 and "neither Claude Code nor Codex" in done.stdout
    assert json.loads(command("compare", "--json").stdout) == []
    assert command("compare", "--form", "2d").returncode == 2


# --- Codex


def counted(fresh: int, cached: int, output: int) -> Entry:
    return {"input_tokens": fresh + cached, "cached_input_tokens": cached, "output_tokens": output}


def event(last: Entry, total: Entry, when: int = 1) -> Entry:
    info = {"last_token_usage": last, "total_token_usage": total}
    return {"type": "event_msg", "timestamp": at(when), "payload": {"type": "token_count", "info": info}}


def meta(session: str) -> Entry:
    return {"type": "session_meta", "timestamp": at(0), "payload": {"id": session}}


def used(id: str, usage: Entry) -> Entry:
    return {"type": "token_usage_record", "timestamp": at(1), "payload": {"response_id": id, "usage": usage}}


def responded(number: int, id: str, fresh: int, cached: int, output: int, session: str) -> Call:
    usage = {
        "input_tokens": fresh + cached,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": output,
        "total_tokens": fresh + cached + output,
    }
    body = {"id": id, "object": "response", "status": "completed", "model": "gpt-5", "output": [], "usage": usage}
    return Call(
        number,
        provider="openai",
        upstream="api.openai.com",
        target="/v1/responses",
        request=b'{"model":"gpt-5","input":"hi"}',
        request_headers=(f"session-id: {session}", "originator: codex_exec"),
        answer=json.dumps(body).encode(),
        wall=WALL + number * 10**6,
    )


def test_codexs_lines(tmp_path: Path) -> None:
    """Newer files name the response; in older ones an event is a new answer only where the total has grown."""
    first, second = counted(10, 5, 3), counted(20, 5, 4)
    both = counted(30, 10, 7)
    write(
        tmp_path / "sessions/2026/11/21/rollout-new.jsonl",
        meta("s"),
        {"type": "turn_context", "payload": {"model": "gpt-5"}},
        used("resp_1", first),
        event(first, first),
    )
    write(
        tmp_path / "archived_sessions/rollout-old.jsonl",
        meta("t"),
        {"type": "event_msg", "payload": {"type": "token_count", "info": None}},
        event(first, first),
        event(first, first),
        event(second, both),
    )
    found = codex(tmp_path)
    told = [(one.id, one.session, one.usage, one.lines) for one in found.answers.values()]
    assert told == [
        ("resp_1", "s", Usage(input=10, cache_read=5, output=3), 1),
        ("", "t", Usage(input=10, cache_read=5, output=3), 2),
        ("", "t", Usage(input=20, cache_read=5, output=4), 1),
    ]


def test_what_codex_missed_and_counted_twice(command: Any, place: Home) -> None:
    """By response ids, else by session and tokens."""
    fill(
        place.journal,
        [
            responded(1, "resp_1", 10, 5, 3, "s"),
            responded(2, "resp_2", 20, 5, 4, "s"),
            responded(3, "resp_3", 10, 5, 3, "t"),
            responded(4, "resp_4", 10, 5, 3, "t"),
            responded(5, "resp_5", 10, 5, 3, "not codex"),
        ],
    )
    place.settle()
    write(place.folder / ".codex/sessions/2026/rollout-new.jsonl", meta("s"), used("resp_1", counted(10, 5, 3)))
    once = counted(10, 5, 3)
    write(
        place.folder / ".codex/sessions/2026/rollout-old.jsonl",
        meta("t"),
        event(once, once),
        event(once, once),
        event(counted(7, 0, 1), counted(17, 5, 4)),
    )
    (told,) = json.loads(command("compare", "--json").stdout)
    assert (told["client"], told["both"], told["equal"], told["lines"]) == ("Codex", 2, 2, 4)
    assert [one["id"] for one in told["missed_by_client"]] == ["resp_2", "resp_4"]
    assert [one["usage"] for one in told["not_recorded"]] == [{"input": 7, "output": 1}]
    assert told["usage"]["all_lines_added_up"]["output"] == 9


# --- the programs themselves


async def test_claude_code_itself(
    client: Callable[[str], Path], service: Any, command: Any, fake: FakeProvider, place: Home
) -> None:
    """A tool loop of the real program: every answer in both, with the same tokens, and at the cost that it says itself."""
    program = client("claude")
    url = base_url(command, "ANTHROPIC_BASE_URL", "api.anthropic.com", fake.port)
    words = ["-p", 'call Bash {"command":"echo ran-$((40+2))","description":"count"}', "--allowedTools", "Bash"]
    env = claude_environment(place.folder, url)
    out = await run(program, *words, "--output-format", "json", env=env, cwd=place.folder)
    service.entries(60, lambda entries: sum(entry["type"] == "response" for entry in entries) >= 2)
    (told,) = json.loads(command("compare", "--json").stdout)
    assert (told["client"], told["both"], told["equal"]) == ("Claude Code", 2, 2), told
    assert (told["missed_by_client"], told["not_recorded"]) == ([], []) and told["lines"] > 2
    answer = json.loads(out)
    ((model, _),) = answer["modelUsage"].items()
    offers = json.loads(command("prices", "show", model, "--json").stdout)
    (offer,) = [offer for offer in offers if (offer["seller"], offer["model"]) == ("anthropic", model)]
    prices = {one["class"]: one["usd"] for one in offer["prices"] if not one["above_prompt"]}
    configure(place.folder, f'[prices."{model}"]\n' + "".join(f'{name} = "{usd}"\n' for name, usd in prices.items()))
    repriced = json.loads(command("reprice", "--json").stdout)
    assert Decimal(repriced["after"]) == pytest.approx(Decimal(str(answer["total_cost_usd"])), abs=Decimal("1e-9"))


@pytest.mark.parametrize("way", ["websocket", "events"])
async def test_codex_itself(
    client: Callable[[str], Path], service: Any, command: Any, fake: FakeProvider, place: Home, way: str
) -> None:
    """The real program, over a WebSocket and over events: its answer is in both, with the same tokens."""
    program = client("codex")
    (place.folder / ".codex").mkdir()
    env = claude_environment(place.folder, "") | {"CODEX_API_KEY": "sk-dummy-0000000000000000"}
    url = base_url(command, "OPENAI_BASE_URL", "api.openai.com", fake.port)
    words = ["exec", "--skip-git-repo-check", *codex_arguments(url, own_provider=way == "events"), "hi"]
    await run(program, *words, env=env, cwd=place.folder)
    service.entries(60, lambda entries: sum(entry["type"] == "response" for entry in entries) >= len(fake.requests))
    (told,) = json.loads(command("compare", "--json").stdout)
    assert (told["client"], told["both"], told["equal"], told["not_recorded"]) == ("Codex", 1, 1, []), told
    # Over a WebSocket it first sends the prompt to have it cached, and does not note what that used.
    warmed_up = [one["usage"].get("output", 0) for one in told["missed_by_client"]]
    assert warmed_up == ([0] if way == "websocket" else [])
