"""What the index keeps of a call so that conversations can be put together without reading them."""

import json
import sqlite3
from itertools import pairwise

import pytest

from llm_proxy.dialects.digest import Answer, Asked, Digest, Message, Part, PartKind
from llm_proxy.index import database, threads
from llm_proxy.index.gist import gist, read, telling
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.queries import open_index
from scripts.make_logs import make


def says(role, *texts):
    return Message(role, tuple(Part(PartKind.TEXT, text) for text in texts))


def told(messages, *answers, **asked):
    return read(
        gist(Digest(Asked("x", messages=tuple(messages), **asked), tuple(Answer(message=one) for one in answers)))
    )


def test_a_request_builds_upon_the_answer_that_it_repeats():
    """White space and thinking do not count, system messages neither; another word is another chain."""
    first = told(
        [says("user", "hello")], Message("assistant", (Part(PartKind.THINKING, "hm"), Part(PartKind.TEXT, "hi")))
    )
    again = [says("system", "Be nice."), says("user", " hello\n"), says("assistant", "hi ")]
    second = told([*again, says("user", "more")])
    assert second.onto[0].chain == first.told[0] and second.onto[0].behind == 1
    assert (first.messages, second.messages) == (1, 3)
    other = told([says("user", "hello!"), says("assistant", "hi"), says("user", "more")])
    assert other.onto[0].chain != first.told[0]


def test_a_request_that_the_client_begins_to_answer():
    """The answer before the begun one is told too."""
    first = told([says("user", "a")], says("assistant", "b"))
    begun = told([says("user", "a"), says("assistant", "b"), says("user", "c"), says("assistant", "{")])
    assert [one.behind for one in begun.onto] == [0, 2] and begun.onto[1].chain == first.told[0]


def test_an_answer_is_known_though_what_was_before_it_changed():
    """By itself, where it is long enough or calls a tool; a mere "Yes." is nobody's."""
    long = "This is an answer that hardly anybody else would give."
    for answer, known in ((says("assistant", long), True), (says("assistant", "Yes."), False)):
        first = told([says("user", "a")], answer)
        later = told([says("user", "another"), answer, says("user", "b")])
        assert first.told[0] != later.onto[0].chain
        assert (first.answers[0] == later.onto[0].answer != "") is known


def test_the_outline():
    """A person's words go before what clients add in tags; tools are told with what they do; failures are counted."""
    asked = [
        says("user", "<system-reminder>no</system-reminder>", "Do it,\nplease"),
        Message("tool", (Part(PartKind.TOOL_RESULT, "no", id="1", failed=True),)),
    ]
    call = Part(PartKind.TOOL_CALL, '{"command":"ls -l","description":"Lists"}', "Bash", "2")
    made = told(asked, Message("assistant", (call,)), tools=("Bash", "Read"))
    assert (made.prompt, made.tools, made.calls, made.failed, made.offered) == (
        "Do it, please",
        ("Bash ls -l",),
        1,
        1,
        2,
    )


def test_nothing_is_kept_of_what_is_no_conversation():
    """No messages, no row."""
    assert gist(Digest(Asked("anthropic.batches"))) == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ('{"pattern":"set","path":"src"}', "set src"),
        ('{"file_path":"a.py","limit":20,"offset":5}', "a.py 5–25"),
        ('{"command":["bash","-lc","ls"]}', "bash -lc ls"),
        ('{"x":{"y":1},"z":"last"}', "last"),
        ("{}", ""),
        ("[1,2]", "[1,2]"),
        ("print(1)\n", "print(1)"),
        ('{"command":"\\u0000a\\u202eb\\nc"}', "a b c"),
        ('{"file_path":1,"limit":2}', ""),
    ],
)
def test_what_tells_most_of_a_call(arguments, words):
    """One line, no control characters."""
    assert telling(arguments) == words


def test_lone_surrogates_and_length_are_no_trouble():
    """What SQLite would not take is replaced; a gist stays small."""
    kept = gist(Digest(Asked("x", messages=(says("user", "\ud800" * 5000),)), ()))
    kept.encode()
    assert len(kept) < 1000
    json.loads(kept)


def test_an_older_index_is_filled_again(tmp_path):
    """An index without gists is emptied when it is opened for writing, and has them after the files are read again."""
    make(tmp_path / "logs", calls=20, sessions=3, end=1_795_000_000)
    path = tmp_path / "index.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.create_function("unpacked", 1, lambda stored: stored, deterministic=True)
    for statement in database.MIGRATIONS[0].split(";"):
        db.execute(statement)
    db.execute("INSERT INTO sessions (id, title) VALUES ('old', 'old')")
    db.execute("INSERT INTO files VALUES (1, 'gone.jsonl', 1, 1, 1, x'', 0)")
    db.execute("PRAGMA user_version = 1")
    db.close()
    indexer = Indexer(path, tmp_path / "logs")
    indexer.catch_up_all()
    indexer.close()
    with open_index(path) as index:
        assert threads.session(index, "old") is None
        ((id,),) = index.rows("SELECT id FROM sessions ORDER BY id LIMIT 1", {})
        calls = index.calls_of(id)
        gists = threads.gists(index, id)
        assert calls and gists.keys() == {call.id for call in calls}
        for before, call in pairwise(calls):
            if gists[before.id].told and gists[call.id].messages > gists[before.id].messages:
                assert gists[call.id].onto[0].chain == gists[before.id].told[0]
