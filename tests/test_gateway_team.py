"""A whole team's gateway under 200 clients, while each of its parts is killed, stopped or renewed: nginx, two machines, PostgreSQL, Redis.

Four sides count by themselves: clients, provider, usage log, session logs (`teambed`). Times are wide guards against a
hang; how quick it is, `scripts/bench team` says.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.teambed import CHAT, Bed, Call, a_team, eventually, freeze, thaw

CLIENTS = 200
LIMIT = 150
HELLO = {"model": "fast", "messages": [{"role": "user", "content": "call-none-"}]}
SLACK = 1.0  # seconds between what breaks and who notices, on a busy machine


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """The crowd calls from the first test to the last; what it was told is held against the books after each."""
    with a_team(tmp_path_factory.mktemp("team"), CLIENTS) as bed:
        _, key = bed.new_key("")
        bed.run(bed.crowd.begin(key))
        bed.more(CLIENTS)
        yield bed
        bed.run(bed.crowd.end())


def known(bed: Bed) -> None:
    """Every process has just looked up who calls, as after any change in the store; now it may go away for a while."""
    bed.front.key(name=f"known-{time.monotonic()}")
    time.sleep(0.6)  # until all have noticed, which nothing tells
    bed.more(40)


def under_way(call: Call, moment: float) -> bool:
    return call.began - SLACK < moment < call.ended + SLACK


def agree(bed: Bed) -> None:
    """Of all calls that are over: whoever was answered has his row, once; no row is of a call that the provider never saw."""
    over = [call for call in list(bed.crowd.calls) if call.ended and call.status == 200]

    def missing() -> list[Call]:
        rows = Counter(one for one, provider in bed.run(bed._rows()) if provider)
        assert not [request_id for request_id, count in rows.items() if count > 1], "counted twice"
        return [call for call in over if call.request_id not in rows]

    eventually(lambda: not missing(), 60.0, missing)


def test_limits_are_exact_over_both_machines(team: Bed) -> None:
    """Of 400 calls at once, half a limit's worth too many, exactly as many pass as may."""
    user, key = team.new_key("bounded@example.com")
    team.front.want(200, "PUT", f"/manage/limits/user/{user}", {"requests_day": LIMIT}, team.front.admin)
    time.sleep(1.0)  # until all have noticed, which nothing tells
    made = team.run(team.crowd.burst(key, 2))
    assert Counter((call.status, call.code) for call in made) == {
        (200, ""): LIMIT,
        (429, "rate_limit_exceeded"): 2 * CLIENTS - LIMIT,
    }
    assert "Redis" not in "".join(machine.log() for machine in team.machines)
    agree(team)


def test_a_revoked_key_is_refused_at_both_machines(team: Bed) -> None:
    """Under load, though each had just served it."""
    key = team.front.key(name="to be revoked")
    gateways = [machine.gateway for machine in team.machines]
    for gateway in gateways:
        for _ in range(4):  # of several processes each
            gateway.want(200, "POST", CHAT, HELLO, key)
    (found,) = [
        one
        for one in team.front.want(200, "GET", "/auth/key", None, team.front.admin)
        if one["name"] == "to be revoked"
    ]
    team.front.want(204, "DELETE", f"/auth/key/{found['id']}", None, team.front.admin)
    revoked = time.monotonic()
    eventually(lambda: [one.ask("GET", "/v1/models", None, key).status for one in gateways * 3] == [401] * 6, 10.0)
    assert time.monotonic() - revoked < 5


def test_a_process_is_killed(team: Bed) -> None:
    """Nobody's call fails but those that were at this process then."""
    pid = team.machines[0].processes()[0]
    os.kill(pid, signal.SIGKILL)
    killed = team.killed = time.monotonic()
    team.more(200)
    eventually(lambda: len(set(team.machines[0].processes()) - {pid}) == 2 and team.machines[0].up() == [1, 1], 60.0)
    team.more(100)
    failed = team.failed(killed - SLACK)
    assert all(under_way(call, killed) for call in failed), failed
    assert len(failed) < CLIENTS / 2
    agree(team)


def test_a_process_hangs(team: Bed) -> None:
    """No call fails: what it has not read goes on to another, what it has it answers once it can."""
    began = time.monotonic()
    pid = team.machines[0].processes()[1]
    freeze(pid)
    try:
        eventually(lambda: team.machines[0].up() == [1, 0], 30.0)
        team.more(200)
    finally:
        thaw(pid)
    eventually(lambda: team.machines[0].up() == [1, 1], 30.0)
    team.more(CLIENTS)
    assert team.failed(began) == []
    agree(team)


def test_postgresql_restarts_and_hangs(team: Bed) -> None:
    """No call of whoever is known fails, and no usage is lost."""
    known(team)
    began = time.monotonic()
    team.postgres.halt()
    eventually(lambda: [machine.readiness() for machine in team.machines] == ["degraded"] * 2, 30.0)
    team.more(50)
    team.postgres.resume()
    eventually(lambda: [machine.readiness() for machine in team.machines] == ["ready"] * 2, 30.0)
    known(team)
    team.postgres.freeze()
    try:
        frozen = time.monotonic()
        while time.monotonic() - frozen < 3.0:
            team.more(10)
    finally:
        team.postgres.thaw()
    eventually(lambda: [machine.readiness() for machine in team.machines] == ["ready"] * 2, 30.0)
    assert team.failed(began) == []
    agree(team)


def test_redis_is_killed_and_hangs(team: Bed) -> None:
    """Machines limit by themselves, loudly; no call fails. When it is back they limit together, and nothing was lost of the day."""
    user, key = team.new_key("daily@example.com")
    team.front.want(200, "PUT", f"/manage/limits/user/{user}", {"requests_day": 100}, team.front.admin)
    known(team)
    passed = sum(call.status == 200 for call in team.run(team.crowd.burst(key, 1)))
    assert passed == 100
    began = time.monotonic()
    for end, begin in ((team.redis.stop, team.redis.start), (team.redis.freeze, team.redis.thaw)):
        end()
        try:
            team.more(100)
            passed += sum(call.status == 200 for call in team.run(team.crowd.burst(key, 1)))
        finally:
            begin()
        for machine in team.machines:
            eventually(
                lambda machine=machine: machine.log().rstrip().endswith("limits are shared again"), 30.0, machine.log
            )
    assert passed <= 3 * 100, "no process lets more pass than the limit"
    team.more(50)
    assert {call.code for call in team.failed(began)} == {"rate_limit_exceeded"}
    assert {call.status for call in team.run(team.crowd.burst(key, 1))} == {429}
    agree(team)


def test_nginx_is_reloaded_and_killed(team: Bed) -> None:
    """A reload fails nothing; a kill what goes through it then, and nothing is counted twice because of it."""
    began = time.monotonic()
    team.nginx.reload()
    team.more(200)
    assert team.failed(began) == []
    team.nginx.kill()
    killed = time.monotonic()
    team.nginx.start()
    team.more(200)
    failed = team.failed(killed - SLACK)
    assert failed and all(under_way(call, killed) for call in failed)
    agree(team)


def test_both_machines_are_restarted_one_after_the_other(team: Bed) -> None:
    """As in an upgrade: no call fails."""
    began = time.monotonic()
    for machine in team.machines:
        machine.restart()
        team.more(100)
    assert team.failed(began) == [], team.nginx.said()[-4000:]
    agree(team)


def test_all_that_counted_agree_in_the_end(team: Bed) -> None:
    """Each call is with the provider once, in the session logs as often as there, and has a row unless its process was killed under it."""
    team.run(team.crowd.end())
    calls = {call.id: call for call in team.crowd.calls}
    answered = {id for id, call in calls.items() if call.status == 200}
    agree(team)
    for machine in team.machines:
        machine.stop()
    books = team.books()
    books.arrived.pop("call-none-", None)
    books.logged.pop("call-none-", None)
    twice = [calls[id] for id, count in books.arrived.items() if count > 1]
    # What a killed process had not begun to answer was begun anew by another one.
    assert all(under_way(call, team.killed) for call in twice), twice
    assert books.logged == books.arrived
    assert answered <= books.arrived.keys() <= calls.keys()
    assert set(books.rows.values()) == {1}
    with_row = {books.requests[request_id] for request_id in books.rows}
    lost = books.arrived.keys() - with_row
    assert all(calls[id].status != 200 for id in lost)
    assert books.refused.total() == sum(call.status == 429 for call in calls.values())
