"""What the log tells of how a request went out: when it had arrived, and over a connection that was there or a new one."""

import pytest

from llm_proxy.journal.frames import Kind, Note
from llm_proxy.sinks.session_jsonl import response_entry
from tests import journals
from tests.journals import MS
from tests.test_assemble import told


def entry(*frames):
    return response_entry(told(*frames), "s", 1, "m")


@pytest.mark.parametrize(("notes", "connection"), [(0, "new"), (Note.REUSED, "reused"), (Note.RETRIED, "new")])
def test_connection_is_told(notes, connection):
    """As the proxy noted it; a request that was sent again went over a fresh one."""
    assert entry(*journals.Call(1, notes=notes).frames)["connection"] == connection


def test_arrival_of_the_request_is_that_of_its_last_byte():
    """A long upload is no waiting of ours."""
    call = journals.Call(1)
    half = len(b'{"model":"m"}') // 2
    first = call.frame(Kind.REQUEST, 1 * MS, b'{"model":"m"}'[:half])
    second = call.frame(Kind.REQUEST, 70 * MS, b'{"model":"m"}'[half:], 1)
    assert entry(call.open, first, second, call.head, *call.response, call.end)["timing"]["request_ms"] == 70
    assert "request_ms" not in entry(*journals.Call(1, request=b"", method="GET").frames)["timing"]


def test_nothing_is_said_of_what_is_not_known():
    """No answer came, or the run was killed before it could say."""
    call = journals.Call(1, notes=Note.REUSED)
    unanswered = entry(call.open, call.request, call.end)
    interrupted = entry(call.open, call.request, call.head)
    for one in (unanswered, interrupted):
        assert "connection" not in one
        assert "request_ms" not in one["timing"]


def test_the_time_of_connecting_is_that_of_a_connection_made_for_the_call():
    """Of one that was there already there is nothing to tell."""
    assert entry(*journals.Call(1, connected=38 * MS).frames)["timing"]["connect_ms"] == 38
    assert "connect_ms" not in entry(*journals.Call(1, notes=Note.REUSED).frames)["timing"]


async def test_the_proxy_notes_when_it_was_connected(rig):
    """A first call over a new connection, a second over the same."""
    for _ in range(2):
        assert (await rig.exchange(b"{}")).status == 200
    first, second = (one.end for one in await rig.exchanges(2))
    assert 0 < first.connected_at <= first.first_byte_at
    assert not second.connected_at
