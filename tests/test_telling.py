"""Between journal and log a call is understood, priced and indexed; nothing of that can hold up the record."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from llm_proxy.index.ingest import Indexer
from llm_proxy.index.queries import CallRow, Filter, Index, open_index
from llm_proxy.journal.writer import writer_lock
from llm_proxy.keeper.options import Options, options
from tests.journals import Journal
from tests.test_keeper import Place, finish, until, wake
from tests.test_sessions import Talk, interleaved, said, user

SECRET = "sk-ant-api03-" + "aB3dE6gH9jK2mN5pQ8sT1vW4xY7z"


def place_of(folder: Path, **more: Any) -> Place:
    return Place(folder, Options(index=str(folder / "state/index.db"), **more))


def settle(place: Place, talk: Talk) -> None:
    run = Journal(place.journal)
    run.add(*(frame for call in talk.calls.values() for frame in call.frames))
    run.close()
    place.settle()


def calls(place: Place) -> list[CallRow]:
    with open_index(place.folder / "state/index.db") as index:
        return list(index.calls(Filter()))


def everything(index: Index) -> list[object]:
    return [*index.sessions(Filter(), None), *index.calls(Filter()), *index.search("files", Filter(), 1000)]


def test_a_call_is_told_with_what_it_meant_and_cost(tmp_path: Path) -> None:
    """In the log, and from there in the index."""
    place = place_of(tmp_path)
    talk = Talk()
    talk.claude("1", "a", [user("hello there")], "hi")
    settle(place, talk)
    (answer,) = [entry for entry in place.entries() if entry["type"] == "response"]
    assert answer["digest"] == {
        "api": "anthropic.messages",
        "model": "claude-sonnet-4-5",
        "response_id": "msg_1",
        "stop_reason": "end_turn",
        "usage": {"input": 3, "output": 2},
    }
    price = answer["price"]
    assert isinstance(price, dict)
    assert (price["basis"], price["usd"]) == ("list", pytest.approx((3 * 3 + 2 * 15) / 1e6))
    assert list(answer) == sorted(answer)
    (row,) = calls(place)
    assert (row.id, row.model, row.usage and row.usage.output) == (str(talk.calls["1"].id), "claude-sonnet-4-5", 2)
    assert row.usd is not None and float(row.usd) == pytest.approx(price["usd"])
    with open_index(tmp_path / "state/index.db") as index:
        assert [hit.call for hit in index.search("there", Filter())] == [row.id]


def test_what_was_asked_while_the_call_was_open_counts_when_it_ends(tmp_path: Path) -> None:
    """The same keeper remembers it, another one reads it again; the log and the index are as if it had come at once."""
    place = place_of(tmp_path)
    talk = Talk()
    for label in ("same", "other"):
        talk.claude(label, label, [user(f"first words of {label}")], "hi")
    run = Journal(place.journal)
    with writer_lock(place.journal):
        with place.running() as keeper:
            for call in talk.calls.values():
                run.add(*call.frames[:2])
            wake(keeper)
            until(lambda: len(place.told()) == 2)
            run.add(*talk.calls["same"].frames[2:])
            wake(keeper)
            until(lambda: len(place.told()) == 3)
            keeper.terminate()
        run.add(*talk.calls["other"].frames[2:])
        with place.running() as keeper:
            until(lambda: len(place.told()) == 4)
            keeper.terminate()
    run.close()
    place.assert_told_once(list(talk.calls.values()))
    rows = calls(place)
    assert [row.usage and row.usage.input for row in rows] == [3, 3] and not any(row.open for row in rows)
    with open_index(tmp_path / "state/index.db") as index:
        assert {row.title for row in index.sessions(Filter())} == {"first words of same", "first words of other"}


def test_nothing_of_what_was_said_is_kept_where_only_metadata_are_wanted(tmp_path: Path) -> None:
    """Neither in the log nor in the index; usage, price, and whose conversation it is are known all the same."""
    place = place_of(tmp_path, metadata_only=True)
    talk = Talk()
    start = [user("secretword hello")]
    talk.claude("1", "a", start, "secretword hi")
    talk.claude("2", "a", [*start, said("secretword hi"), user("secretword more")], "secretword yes")
    talk.response("3", "b", "secretword asked")
    settle(place, talk)
    written = [path for folder in (place.logs, place.state) for path in folder.rglob("*") if path.is_file()]
    assert len(written) >= 4
    assert [path for path in written if b"secretword" in path.read_bytes() or b"answer to" in path.read_bytes()] == []
    entries = [entry for entry in place.entries() if "seq" in entry]
    assert {entry["left_out"] for entry in entries} == {"metadata_only"}
    assert all("usage" in entry["digest"] and "price" in entry for entry in entries if entry["type"] == "response")  # type: ignore[operator]
    assert len(place.files()) == 2
    assert [row.usage and row.usage.output for row in calls(place)] == [2, 2, 4]


def test_secrets_reach_neither_log_nor_index(tmp_path: Path) -> None:
    """And the same secret has the same token in both halves."""
    place = place_of(tmp_path)
    talk = Talk()
    talk.claude("1", "a", [user(f"my key is {SECRET}")], f"your key is {SECRET}")
    settle(place, talk)
    written = [path for folder in (place.logs, place.state) for path in folder.rglob("*") if path.is_file()]
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
    entries = [entry for entry in place.entries() if "seq" in entry]
    assert [entry["redacted"] for entry in entries] == [{"ANTHROPIC_KEY": 1}] * 2
    assert all("<ANTHROPIC_KEY#1>" in str(entry["body"]) for entry in entries)
    with open_index(tmp_path / "state/index.db") as index:
        assert [hit.role for hit in index.search("ANTHROPIC_KEY", Filter())].count("user") == 1


def test_killed_keepers_leave_an_index_as_if_made_anew(tmp_path: Path) -> None:
    """Live, over kills, and from the files: the same rows."""
    chance = random.Random(5)
    place = place_of(tmp_path)
    talk = interleaved()
    frames = [frame for call in talk.calls.values() for frame in call.frames]
    run = Journal(place.journal)
    with writer_lock(place.journal):
        while frames:
            count = chance.randint(10, 80)
            run.add(*frames[:count])
            frames = frames[count:]
            keeper = place.start()
            time.sleep(chance.random() * 0.8)
            keeper.kill()
            finish(keeper)
    run.close()
    place.settle()
    path = tmp_path / "state/index.db"
    with open_index(path) as index:
        live = everything(index)
    indexer = Indexer(tmp_path / "anew.db", place.logs)
    assert indexer.rebuild() == len(talk.calls)
    indexer.close()
    with open_index(tmp_path / "anew.db") as index:
        assert everything(index) == live
    assert len(calls(place)) == len(talk.calls)


def in_the_way(index: Path) -> None:
    index.mkdir()


def not_ours(index: Path) -> None:
    with sqlite3.connect(index) as database:
        database.execute("CREATE TABLE calls (x)")
    database.close()


@pytest.mark.parametrize("trouble", [in_the_way, not_ours])
def test_an_index_that_refuses_holds_up_nothing(tmp_path: Path, trouble: Any) -> None:
    """The log goes on, the trouble is told, and when it is over the index catches up by itself."""
    place = place_of(tmp_path)
    place.state.mkdir()
    path = place.state / "index.db"
    trouble(path)
    talk = interleaved()
    run = Journal(place.journal)
    with writer_lock(place.journal), place.running() as keeper:
        for call in talk.calls.values():
            run.add(*call.frames)
        wake(keeper)
        until(lambda: len(place.told()) == 2 * len(talk.calls))
        until(lambda: place.snapshot().get("index") == "failing")
        assert "index.db" in str(place.snapshot()["index_trouble"]) and place.snapshot()["state"] == "ok"
        path.rmdir() if path.is_dir() else path.unlink()
        until(lambda: place.snapshot().get("index") == "ok", limit=30)
        keeper.terminate()
    run.close()
    assert len(calls(place)) == len(talk.calls)


def test_no_index_where_none_is_wanted(tmp_path: Path) -> None:
    """A keeper that is told nothing writes the log alone."""
    place = Place(tmp_path)
    talk = Talk()
    talk.claude("1", "a", [user("hello")], "hi")
    settle(place, talk)
    assert place.snapshot()["index"] == "off"
    assert sorted(path.name for path in place.state.iterdir()) == ["sessions.db"]


def test_what_is_not_understood_is_told_and_named(tmp_path: Path) -> None:
    """The entries are there without it; how often and why stands in the keeper's snapshot."""
    place = place_of(tmp_path)
    talk = Talk()
    talk.openai("odd", "a", "/v1/responses", {"model": "gpt-5", "input": "x"}, {})
    talk.claude("broken", "b", [user("hello")], "", raw=b"<html>not JSON</html>")
    settle(place, talk)
    digests = [entry.get("digest") for entry in place.entries() if entry["type"] == "response"]
    assert sum("trouble" in (digest or {}) for digest in digests) == 1  # type: ignore[operator]
    snapshot = place.snapshot()
    assert snapshot["troubles"] == {"understand": 1} and "understand" in str(snapshot["last_trouble"])
    assert len(calls(place)) == 2


def test_options_say_what_is_wrong_with_them() -> None:
    """They come from our own service, but perhaps from another version of it."""
    told = Options(index="i", patterns=(("A", "b"),), prices=(("m", (("input", "1.5"),)),), metadata_only=True)
    assert options(told.to_json()) == told
    assert options("{}") == Options() == options(json.dumps({"of another version": 1}))
    with pytest.raises(ValueError, match="index"):
        options('{"index": 5}')
