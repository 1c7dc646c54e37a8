"""A keeper that is asked to delete somebody's conversations leaves nothing of them, and nothing else undone."""

import json
import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from datetime import datetime

import pytest

from llm_proxy.keeper import retention
from llm_proxy.keeper.deleting import Deleting
from llm_proxy.keeper.indexing import Indexing
from llm_proxy.keeper.options import Options, Retention
from llm_proxy.keeper.store import Store
from llm_proxy.lanes.reading import Gone, Reader
from llm_proxy.sinks.outbox import Outbox
from llm_proxy.wire import attribution
from llm_proxy.wire.attribution import Attribution
from tests.journals import MS, WALL, Call, Journal
from tests.test_gateway_privacy_record import found, wait
from tests.test_keeper import Place

ANN, BOB = "1a2b3c4d.17", "1a2b3c4d.1"  # one begins like the other
SECOND = 10**9
KILLS = int(os.environ.get("KEEPER_KILLS", "4"))


def by(account, request=""):
    whose = Attribution(request, "1", f"{account}@team.example", account=account)
    return [f"{name}: {value}" for name, value in attribution.fields(whose)]


def said(serial, account, words, *, session="", wall=WALL, request="", **more):
    asked = {"model": "claude-sonnet-4-5", "messages": [{"role": "user", "content": f"{words} asked {serial}"}]}
    answer = {
        "id": f"msg_{serial}",
        "model": "claude-sonnet-4-5",
        "content": [{"type": "text", "text": f"{words} said {serial} " + "at length " * 40}],
        "usage": {"input_tokens": 10, "output_tokens": 5},
        "stop_reason": "end_turn",
    }
    return Call(
        serial,
        session=session,
        why="gateway",
        request=json.dumps(asked).encode(),
        answer=json.dumps(answer).encode(),
        request_headers=by(account, request),
        wall=wall,
        **more,
    )


@pytest.fixture
def place(tmp_path):
    (tmp_path / "asked").mkdir()
    index = str(tmp_path / "state/index.db")
    given = {"deletions": str(tmp_path / "asked"), "rules_stand": 0.2}
    return Place(tmp_path, Options(index=index, projects=False, posts=True, **given))


def write(place, *calls):
    journal = Journal(place.journal)
    for call in calls:
        journal.add(*call.frames)
    journal.close()
    place.settle()


def ask(place, account, before=0, name="1a2b3c4d-1", **more):
    asked = {"id": name, "account": account, "before": before or time.time_ns(), **more}
    draft = place.folder / "asked" / "draft"
    draft.write_text(json.dumps(asked))
    draft.rename(place.folder / "asked" / f"{name}.ask")
    return place.folder / "asked" / f"{name}.done"


def delete(place, account, before=0, name="1a2b3c4d-1"):
    """What the keeper reports."""
    done = ask(place, account, before, name)
    with place.running():
        wait(done.exists)
    return json.loads(done.read_text())


def calls_of(place):
    with closing(sqlite3.connect(place.options.index)) as db:
        return {id for (id,) in db.execute("SELECT id FROM calls")}


def test_nothing_of_theirs_is_left_and_all_of_others_is(place):
    """Log, index with its search, what sinks have not got yet: on the disk too, not just out of sight."""
    place.options = Options(**{**as_given(place), "sent": ("Loki: https://loki.example",)})
    ours = [said(number, ANN, "canary", session=f"s{number % 2}") for number in range(1, 5)]
    others = [said(number, BOB, "robin", session="s1") for number in range(5, 8)]
    write(place, *ours, *others)
    assert found(place, "canary said") and len(calls_of(place)) == 7
    before = {path: path.read_bytes() for path in place.files() if b"robin" in path.read_bytes()}
    report = delete(place, ANN)
    assert found(place, "canary", "17@team.example", 'msg_1"') == []
    assert {path: path.read_bytes() for path in place.files()} == before
    assert calls_of(place) == {str(one.id) for one in others}
    assert report["conversations"] == 2 and report["left"] == "what was passed on: Loki: https://loki.example"
    assert abs(report["at"] - time.time()) < 60
    waiting = Outbox(place.state / "sessions.db").after(0, 100)
    assert [one.response.call for one in waiting] == [one.id.bytes for one in others]
    assert found(place, "robin said")


def as_given(place):
    return {name: getattr(place.options, name) for name in Options.__dataclass_fields__}


def test_what_was_begun_later_stays_and_is_found_where_it_stands_now(place):
    """A conversation keeps the calls behind the moment, its numbers, its rows, and its lines for the sinks."""
    times = [WALL, WALL + SECOND, WALL + 2 * SECOND, WALL + 3 * SECOND]
    ours = [said(n, ANN, "canary" if n < 3 else "kept", session="s", wall=at) for n, at in enumerate(times, start=1)]
    write(place, *ours)
    (file,) = place.files()
    stamp = file.stat().st_mtime_ns
    assert delete(place, ANN, WALL + 2 * SECOND)["conversations"] == 1
    assert found(place, "canary") == [] and file.stat().st_mtime_ns == stamp
    entries = place.entries()
    assert [(one["type"], one.get("seq")) for one in entries] == [
        ("session_start", None),
        *(("request", 3), ("response", 3), ("request", 4), ("response", 4)),
    ]
    assert calls_of(place) == {str(one.id) for one in ours[2:]}
    waiting = Outbox(place.state / "sessions.db").after(0, 100)
    data = file.read_bytes()
    for one, call in zip(waiting, ours[2:], strict=True):
        line = data[one.response.offset : one.response.offset + one.response.length]
        assert json.loads(line)["_meta"]["request_id"] == str(call.id)
    write(place, said(9, ANN, "kept", session="s", wall=WALL + 9 * SECOND))
    assert [one["seq"] for one in place.entries() if one["type"] == "request"] == [3, 4, 5]
    assert found(place, "canary") == [] and place.files() == [file]


def test_a_call_that_is_under_way_is_deleted_when_it_ends(place):
    """Begun before: its request goes, its response never comes; begun after, by the same user, it is recorded."""
    journal = Journal(place.journal)
    now = time.time_ns()
    old, new = (
        said(1, ANN, "canary", session="s", wall=now - SECOND),
        said(2, ANN, "kept", session="s", wall=now + SECOND),
    )
    retried = said(
        3, ANN, "canary", session="s", wall=now + SECOND, request=f"req_{(now - SECOND) // 10**6:012x}70008000"
    )
    journal.add(old.open, old.request)
    with place.running():
        wait(lambda: len(place.entries()) == 2)
        wait(ask(place, ANN, now).exists)
        assert place.entries() == []
        journal.add(old.head, *old.response, old.end, *new.frames, *retried.frames)
        wait(lambda: len([one for one in place.entries() if one["type"] == "response"]) == 1)
        wait(lambda: place.snapshot().get("withheld") == 2)
        journal.close()
    assert found(place, "canary") == []
    assert [one["type"] for one in place.entries()] == ["session_start", "request", "response"]
    assert calls_of(place) == {str(new.id)}
    assert 'llm_proxy_withheld_calls_total{why="deleted"} 2' in (place.journal / "keeper.prom").read_text()
    with closing(sqlite3.connect(place.state / "sessions.db")) as db:
        assert db.execute("SELECT count(*) FROM in_flight").fetchone() == (0,)


def test_what_was_deleted_does_not_come_back_from_an_old_journal(place):
    """It holds for good, also for a keeper that begins with nothing but the rules: a journal may be settled much later."""
    write(place, said(9, BOB, "before"))
    delete(place, ANN)
    for path in (place.state / "sessions.db", place.folder / "asked/1a2b3c4d-1.ask"):
        path.unlink()
    write(place, said(1, ANN, "canary"), said(2, BOB, "robin"))
    assert found(place, "canary") == [] and len(calls_of(place)) == 2


def test_compressed_logs_drafts_and_old_indexes_are_cleaned_too(place):
    """What stands in an archive of ours, beside it where something was killed, or in an index that was moved aside."""
    ours = [said(n, ANN, "canary", session="s", wall=WALL + n * SECOND) for n in range(1, 4)]
    kept = said(4, ANN, "kept", session="s", wall=WALL + 60 * SECOND)
    write(place, *ours, kept, said(5, BOB, "robin", session="r"))
    store = Store(place.state / "sessions.db", "j")
    store._db.execute("DELETE FROM outbox")
    done = list(retention.run(Retention(compress_days=1), place.logs, store, now=time.time() + 10 * 86_400))
    store.close()
    assert len(done) == 2 and not place.files()
    folder = next(place.logs.rglob("*.zst")).parent
    (folder / ".new-20260101-000000-01234567.jsonl").write_bytes(b"canary draft")
    for suffix in ("", "-wal"):
        (place.state / f"index.db.aside{suffix}").write_bytes(b"canary aside")
    write(place, said(6, ANN, "canary", session="s", wall=WALL + 5 * SECOND))
    assert delete(place, ANN, WALL + 30 * SECOND)["conversations"] == 1
    assert found(place, "canary") == [] and len(calls_of(place)) == 2
    from llm_proxy.sinks import log_reader

    told = [entry for file in log_reader.files(place.logs) for _, _, entry in log_reader.entries(place.logs / file)]
    assert [one["type"] for one in told if "kept" in one.get("body", "")] == ["request", "response"]
    assert not any("canary" in json.dumps(one) for one in told)


def test_calls_that_do_not_say_whose_they_are_are_named(place):
    """Recorded before accounts were told: they stay, and the report says so."""
    write(place, said(1, "", "older"), said(2, ANN, "canary"))
    report = delete(place, ANN)
    assert report["left"] == "1 calls recorded before it was told whose account makes them"
    assert found(place, "canary") == [] and found(place, "older said")


def test_asked_twice_and_for_several_each_is_answered_for_itself(place):
    """Nothing is left to do the second time; a question that is none is passed over."""
    write(place, said(1, ANN, "canary", session="a"), said(2, BOB, "robin", session="b"), said(3, "x.2", "wren"))
    (place.folder / "asked/odd.ask").write_text("{")
    (place.folder / "asked/other.ask").write_text(json.dumps({"id": "../../up", "account": "x.2", "before": 2**62}))
    done = [ask(place, ANN, name="a-1"), ask(place, BOB, name="b-1")]
    with place.running():
        wait(lambda: all(path.exists() for path in done))
        again = ask(place, ANN, name="a-2")
        wait(again.exists)
    assert [json.loads(path.read_text())["conversations"] for path in (*done, again)] == [1, 1, 0]
    assert found(place, "canary", "robin") == [] and found(place, "wren said")


def test_only_keepers_of_the_log_folder_that_is_meant_answer(place):
    """Another daemon of the same user, with a log folder of its own, is as deaf as one without a gateway."""
    write(place, said(1, ANN, "canary", session="a"))
    elsewhere = ask(place, ANN, name="a-1", logs=str(place.folder / "elsewhere"))
    waiting = ask(place, ANN, name="a-2", logs=str(place.folder / "elsewhere"))
    waiting.with_suffix(".logs").write_text(json.dumps({"at": 0, "conversations": 0, "left": ""}))
    with place.running():
        wait(lambda: place.snapshot().get("state") == "ok")
        here = ask(place, BOB, name="b-1", logs=str(place.logs))
        wait(here.exists)
    assert not elsewhere.exists() and not waiting.exists() and found(place, "canary said")


def test_only_keepers_of_a_daemon_with_a_gateway_are_asked():
    """Neither those of a run with sinks of its own, nor the lanes of either."""
    from llm_proxy.service import keeping, passing
    from llm_proxy.settings import Settings

    with_one, without = Settings(gateway_enabled=True, sinks=("sessions", "csv")), Settings()
    given = keeping.options(with_one)
    assert given.deletions.endswith("/gateway/deletions") and given.deletions == passing.options(with_one).deletions
    assert passing.options(with_one, "target").name
    assert (keeping.options(with_one, "target-1").deletions, passing.options(with_one, "target").deletions) == ("", "")
    assert (keeping.options(without).deletions, passing.options(without).deletions) == ("", "")


def test_killed_anywhere_it_is_done_in_the_end(place):
    """Each time the keeper is killed at a random moment of it; others' calls are all there, once."""
    ours = [said(n, ANN, "canary", session=f"s{n % 20}") for n in range(1, 61)]
    others = [said(n, BOB, "robin", session=f"s{n % 20}") for n in range(61, 121)]
    write(place, *ours, *others)
    done = ask(place, ANN)
    rng = random.Random(11)
    for _ in range(KILLS):
        keeper = place.start()
        wait(lambda: (place.folder / "asked/rules.json").exists())
        time.sleep(place.options.rules_stand + rng.random() * 0.6)  # the moment at which it is killed is the point
        keeper.send_signal(signal.SIGKILL)
        keeper.wait()
        keeper.stdout.close()
        keeper.stdin.close()
        if done.exists():
            break
    with place.running():
        wait(done.exists)
    assert found(place, "canary") == []
    place.assert_told_once(others)
    assert calls_of(place) == {str(one.id) for one in others}
    # The one whose file went in the moment of a kill may not be counted.
    assert 14 <= json.loads(done.read_text())["conversations"] <= 20


def test_a_keeper_that_cannot_write_begins_anew(place):
    """A log folder that refuses is trouble, which is told; nothing is reported before all is done."""
    write(place, said(1, ANN, "canary", session="a"))
    (file,) = place.files()
    blocked = file.with_name(f".new-{file.name}")
    write(place, said(2, ANN, "kept", session="a", wall=WALL + 50 * SECOND))
    blocked.mkdir()  # in the way of the draft
    (blocked / "x").touch()
    done = ask(place, ANN, WALL + SECOND)
    with place.running():
        wait(lambda: "could not be deleted" in str(place.snapshot().get("last_error")))
        assert not done.exists() and found(place, "canary said")
        (blocked / "x").unlink()
        blocked.rmdir()
        wait(done.exists)
    assert found(place, "canary") == [] and found(place, "kept said")


class Watched(Indexing):
    """Counts what it is asked for."""

    found: tuple[bool, ...] = ()

    def forget(self, found=True):
        done = super().forget(found)
        self.found += (found,)
        return done


def test_where_nothing_was_found_the_index_is_left_alone(place):
    """It may be large, and making its file anew takes as long as it takes; only one that was moved aside goes."""
    write(place, said(1, ANN, "canary"))
    deleting = Deleting(Options(**{**as_given(place), "rules_stand": 0.0}), place.logs)
    aside = place.state / "index.db.aside"
    aside.write_bytes(b"canary aside")
    before = (place.state / "index.db").read_bytes()
    store, indexing = Store(place.state / "sessions.db", "j"), Watched(place.options.index, place.logs)
    for number, (whose, found_any) in enumerate(((BOB, False), (ANN, True))):
        done = ask(place, whose, name=f"a-{number}")
        while not done.exists():
            deleting.step(store, indexing, lambda: None)
        assert set(indexing.found) == {found_any} and not aside.exists()
        assert ((place.state / "index.db").read_bytes() == before) is not found_any
        indexing.found = ()
    indexing.close()
    store.close()
    assert found(place, "canary") == []


def test_the_index_catches_up_a_slice_at_a_time(place, monkeypatch):
    """However much it has missed: who deletes goes on with calls in between, and reports when it is done."""
    write(place, said(1, ANN, "canary"))
    (place.state / "index.db").unlink()
    indexing = Indexing(place.options.index, place.logs)
    with monkeypatch.context() as patched:
        patched.setattr("llm_proxy.keeper.indexing.SLICE", 0.0)
        assert not indexing.forget() and (indexing.state, indexing.trouble) == ("behind", "")
    assert indexing.forget() and indexing.state == "ok" and len(calls_of(place)) == 1
    indexing.close()


class Interrupted(Deleting):
    """At one of its steps something happens, once."""

    def __init__(self, place, step, happens):
        options = {"deletions": place.options.deletions, "rules_stand": 0.0}
        super().__init__(Options(**{**as_given(place), **options}), place.logs)
        usual = getattr(self, step)

        def interrupted(*arguments):
            setattr(self, step, usual)
            usual(*arguments)
            happens()

        setattr(self, step, interrupted)

    def until(self, store, done):
        while not done():
            self.step(store, Indexing("", self._root), lambda: None)


def test_lines_that_come_while_a_log_is_read_are_in_the_new_one(place):
    """Another keeper of the same folder may have the next call of the conversation: then it is all read once more."""
    write(place, *(said(n, ANN, w, session="s", wall=WALL + n * SECOND) for n, w in ((1, "canary"), (2, "kept"))))
    (file,) = place.files()
    late = said(3, ANN, "late", session="s", wall=WALL + 9 * SECOND)
    deleting = Interrupted(place, "_name", lambda: write(place, late))
    done = ask(place, ANN, WALL + 2 * SECOND)
    store = Store(place.state / "sessions.db", "j")
    with pytest.raises(OSError, match="has grown while it was read"):
        deleting.until(store, done.exists)
    assert b"late" in file.read_bytes() and b"canary" in file.read_bytes() and not done.exists()
    deleting.until(store, done.exists)
    store.close()
    assert b"late" in file.read_bytes() and b"canary" not in file.read_bytes()


def test_sinks_find_lines_that_have_moved_before_it_was_said_where(place):
    """A keeper is killed between putting the new log in its place and committing where its lines stand."""
    write(place, *(said(n, ANN, w, session="s", wall=WALL + n * SECOND) for n, w in ((1, "canary"), (2, "kept"))))

    def killed():
        raise KeyboardInterrupt

    deleting = Interrupted(place, "_replace", killed)
    done = ask(place, ANN, WALL + 2 * SECOND)
    store = Store(place.state / "sessions.db", "j")
    with pytest.raises(KeyboardInterrupt):
        deleting.until(store, done.exists)
    deleting.until(store, done.exists)
    store.close()
    gone, kept = Outbox(place.state / "sessions.db").after(0, 100)
    assert b"kept said" in Reader().call(kept).response_body
    with pytest.raises(Gone):
        Reader().call(gone)


def test_times_of_lines_are_read_as_they_are_written():
    """To the nanosecond: a call that began in the moment itself is not before it."""
    from llm_proxy.records import understood

    for ns in (WALL, WALL + 1, WALL + 999_999_999, WALL + 5 * MS):
        from llm_proxy.sinks.session_jsonl import utc

        assert understood.moment_of({"_meta": {"ts": utc(ns)}}) == ns
        assert datetime.fromisoformat(utc(ns)[:19] + "Z")
